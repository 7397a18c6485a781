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

  /// The GPUs of this machine.
  /// - Throws: ``CUDAError`` where there are none, or none that can be used
  public static func all(_ libraries: CUDALibraries) throws(CUDAError) -> [CUDADevice] {
    var count: Int32 = 0
    let calls = unsafe libraries.calls.pointee
    var version: Int32 = 0
    if calls.cuInit(0) != 0 { throw .noDevice }
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
    var context: OpaquePointer?
    guard unsafe calls.cuDeviceGet(&device, Int32(index)) == 0,
      unsafe calls.cuDeviceGetName(&name, 255, device) == 0,
      unsafe calls.cuDeviceTotalMem_v2(&total, device) == 0,
      unsafe calls.cuDevicePrimaryCtxRetain(&context, device) == 0, let context = unsafe context,
      unsafe calls.cuCtxSetCurrent(context) == 0, unsafe calls.cuMemGetInfo_v2(&free, &all) == 0
    else { throw .noDevice }
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
