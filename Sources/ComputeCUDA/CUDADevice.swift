import CCUDA

/// A GPU as its driver describes it.
public struct CUDADevice: Sendable, Equatable {
  /// As the driver counts them, from 0.
  public let index: Int
  public let name: String
  /// Of its memory, in bytes.
  public let totalBytes: Int
  /// What nobody used when it was asked for.
  public let freeBytes: Int
  /// Major and minor, for example 9 and 0 of an H100.
  public let capability: [Int]
  public let multiprocessors: Int

  /// What NVRTC compiles for.
  var architecture: String { "sm_\(capability[0])\(capability[1])" }

  /// Whether the kernels and products are for such a device: bfloat16, and as much shared memory, came with 8.0.
  public var isSupported: Bool { capability[0] >= 8 }

  /// The GPUs of this machine.
  /// - Throws: ``CUDAError`` where there are none, or none that can be used
  public static func all(_ libraries: CUDALibraries) throws(CUDAError) -> [CUDADevice] {
    var count: Int32 = 0
    let calls = unsafe libraries.calls.pointee
    var version: Int32 = 0
    switch calls.cuInit(0) {
    case 0: break
    case Int32(qe_cuda_no_device): throw .noDevice
    case let result: throw .callFailed("cuInit", words: calls.words(of: result))
    }
    _ = unsafe calls.cuDriverGetVersion(&version)
    if version < CUDAError.oldestDriver { throw .driverTooOld(version: Int(version)) }
    guard unsafe calls.cuDeviceGetCount(&count) == 0, count > 0 else { throw .noDevice }
    var devices: [CUDADevice] = []
    for index in 0..<Int(count) { devices.append(try CUDADevice(index, libraries)) }
    return devices
  }

  private init(_ index: Int, _ libraries: CUDALibraries) throws(CUDAError) {
    let calls = unsafe libraries.calls.pointee
    var device: Int32 = 0
    var name = [CChar](repeating: 0, count: 256)
    var (total, free, all) = (0, 0, 0)
    guard unsafe calls.cuDeviceGet(&device, Int32(index)) == 0,
      unsafe calls.cuDeviceGetName(&name, 255, device) == 0,
      unsafe calls.cuDeviceTotalMem_v2(&total, device) == 0
    else { throw .noDevice }
    // One that is full, or somebody's own, is there and has nothing free. What is asked of it takes memory of its own, which
    // those that are not chosen get back.
    var context: OpaquePointer?
    if unsafe calls.cuDevicePrimaryCtxRetain(&context, device) == 0, let context = unsafe context {
      if unsafe calls.cuCtxSetCurrent(context) != 0 || calls.cuMemGetInfo_v2(&free, &all) != 0 { free = 0 }
      _ = calls.cuDevicePrimaryCtxRelease_v2(device)
    }
    func attribute(_ attribute: Int) -> Int {
      var value: Int32 = 0
      _ = unsafe calls.cuDeviceGetAttribute(&value, Int32(attribute), device)
      return Int(value)
    }
    self.index = index
    self.name = name.text
    totalBytes = total
    freeBytes = free
    capability = [
      attribute(qe_attribute_compute_capability_major), attribute(qe_attribute_compute_capability_minor),
    ]
    multiprocessors = attribute(qe_attribute_multiprocessors)
  }
}
