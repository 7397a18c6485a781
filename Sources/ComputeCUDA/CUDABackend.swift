import CCUDA
import Compute
import Tensors

/// A backend on one NVIDIA GPU: products by cuBLAS, everything else by the kernels beside this file.
///
/// Operations are asked of the device one after the other and return before they are done; what hands a result to the host
/// waits for it. A call that fails has no result: see ``failure``.
public struct CUDABackend: Sendable {
  let context: DeviceContext
  /// Whether products of fp32 operands round them to TF32, and bfloat16 models are multiplied in bfloat16.
  let isExact: Bool
  /// Of the host, for what is its part.
  public let threads: Int
  private let memoryLimit: Int

  /// - Parameters:
  ///   - device: the GPU
  ///   - threads: of the host, for what is its part
  ///   - isExact: fp32 throughout
  ///   - memoryLimit: what matrices may take, in bytes; nil for nearly all that is free
  /// - Throws: ``CUDAError``
  public init(
    _ device: CUDADevice, _ libraries: CUDALibraries, threads: Int = 1, isExact: Bool = false,
    memoryLimit: Int? = nil
  ) throws(CUDAError) {
    context = try DeviceContext(device, libraries)
    self.threads = threads
    self.isExact = isExact
    // What the driver and cuBLAS take for themselves comes off what was free.
    self.memoryLimit = memoryLimit ?? device.freeBytes - max(device.freeBytes / 20, Self.leastReserve)
  }

  private static let leastReserve = 768 << 20

  public var device: CUDADevice { context.device }

  /// The first call that failed; nothing was computed from there on.
  public var failure: (any DeviceError)? { context.failure }

  public var progress: Int { context.progress }

  public var deviceMemory: (any DeviceMemoryGauge)? { Gauge(context: context, limitBytes: memoryLimit) }

  private struct Gauge: DeviceMemoryGauge {
    let context: DeviceContext
    let limitBytes: Int

    func lap() -> Int { context.lapPeak() }

    var pinnedBytes: Int { context.pinnedBytes }
  }

  public func kernels(for operands: OperandType) -> String {
    let types = isExact ? "fp32" : operands == .bfloat16 ? "bfloat16 and TF32" : "TF32"
    return
      "\(device.name), \(types) products by cuBLAS \(versions.cublas), kernels by NVRTC \(versions.nvrtc), "
      + "driver for CUDA \(versions.driver)"
  }

  /// Of the libraries that it computes with.
  public var versions: (driver: String, nvrtc: String, cublas: String) {
    let blas = context.blasVersion
    return (
      context.driverVersion.cudaVersion, context.libraries.compilerVersion,
      "\(blas / 10_000).\(blas % 10_000 / 100).\(blas % 100)"
    )
  }

  var isTF32: Bool { !isExact }
}

extension CUDABackend: ComputeBackend {}

extension CUDABackend: MatrixStorage {
  public func makeMatrix(rows: Int, columns: Int) -> Matrix {
    let matrix = uninitialized(rows: rows, columns: columns)
    context.fill(matrix.address, with: 0, count: matrix.count)
    return matrix
  }

  /// A matrix whose elements are whatever stood in its memory.
  func uninitialized(rows: Int, columns: Int) -> Matrix {
    precondition(rows >= 0 && columns >= 0, "a matrix has no negative dimension")
    return Matrix(rows: rows, columns: columns, memory: context.scratch(floats: rows * columns))
  }

  public func withHostMatrix<Result, Failure: Error>(
    _ matrix: Matrix, for access: HostAccess, _ body: (_ host: Matrix) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    let (host, buffer) = context.lend(rows: matrix.rows, columns: matrix.columns)
    defer { context.give(buffer) }
    let bytes = matrix.count * MemoryLayout<Float>.stride
    if access != .writing { unsafe context.download(matrix.address, to: buffer.memory, bytes: bytes) }
    let result = try body(host)
    if access != .reading { unsafe context.upload(buffer.memory, to: matrix.address, bytes: bytes) }
    return result
  }

  public func copy(_ source: Matrix, into destination: Matrix) {
    precondition(
      source.rows == destination.rows && source.columns == destination.columns, "the shapes differ")
    context.copy(source.address, to: destination.address, bytes: source.count * MemoryLayout<Float>.stride)
  }

  public func fill(_ matrix: Matrix, with value: Float) {
    context.fill(matrix.address, with: value, count: matrix.count)
  }

  public func convert(_ stored: RawSpan, _ type: DType, into matrix: Matrix) {
    precondition(stored.byteCount == matrix.count * type.byteWidth, "the values do not fill the matrix")
    let memory = context.scratch(bytes: stored.byteCount)
    unsafe stored.withUnsafeBytes { unsafe context.upload($0, to: memory.address, threads: threads) }
    convert(memory.address, type.kernelNumber, into: matrix)
  }

  private func convert(_ address: UInt64, _ type: Int, into matrix: Matrix) {
    context.launch(
      .convert_stored, elements: matrix.count,
      [.address(matrix.address), .address(address), .int(type), .long(matrix.count)])
  }

  public func isFinite(_ matrix: Matrix) -> Bool {
    let unsound = context.uploaded([Int32(0)])
    context.launch(
      .find_unsound, elements: matrix.count,
      [.address(matrix.address), .address(unsound.address), .long(matrix.count)])
    return context.downloaded(unsound, count: 1, of: Int32(0))[0] == 0
  }

  public func keep(_ states: Matrix, as type: DType, in place: KeptStates.Place) -> KeptStates? {
    let number = type.kernelNumber
    let bytes = states.count * type.byteWidth
    let memory = context.scratch(bytes: bytes)
    let unsound = context.uploaded([Int32(0)])
    context.launch(
      .keep_states, elements: states.count,
      [
        .address(memory.address), .address(states.address), .int(number), .address(unsound.address),
        .long(states.count),
      ])
    let isSound = context.downloaded(unsound, count: 1, of: Int32(0))[0] == 0
    return isSound
      ? KeptStates(
        rows: states.rows, columns: states.columns, type: type, number: number,
        memory: place == .device ? memory : HostBlocks(copyOf: memory, bytes: bytes, context)) : nil
  }

  public func restore(_ kept: KeptStates, into states: Matrix) {
    precondition(kept.rows == states.rows && kept.columns == states.columns, "the shapes differ")
    guard let blocks = kept.memory as? HostBlocks else {
      return convert(UInt64(UInt(bitPattern: unsafe kept.memory.pointer)), kept.number, into: states)
    }
    let memory = context.scratch(bytes: blocks.bytes)
    blocks.copy(to: memory)
    convert(memory.address, kept.number, into: states)
  }

  public func downloadCodes(_ panel: Matrix, to codes: inout [UInt8], firstRow: Int) {
    let place = firstRow * panel.columns
    precondition(firstRow >= 0 && place + panel.count <= codes.count, "rows outside the linear")
    let bytes = context.scratch(bytes: panel.count)
    context.launch(
      .to_bytes, elements: panel.count,
      [.address(bytes.address), .address(panel.address), .long(panel.count)])
    unsafe codes.withUnsafeMutableBytes { codes in
      let part = unsafe UnsafeMutableRawBufferPointer(rebasing: codes[place..<place + panel.count])
      unsafe context.download(bytes.address, to: part, threads: threads)
    }
  }

  public func uploadCodes(_ codes: [UInt8], firstRow: Int, to panel: Matrix) {
    let place = firstRow * panel.columns
    precondition(firstRow >= 0 && place + panel.count <= codes.count, "rows outside the linear")
    let bytes = context.scratch(bytes: panel.count)
    unsafe codes.withUnsafeBytes { codes in
      let part = unsafe UnsafeRawBufferPointer(rebasing: codes[place..<place + panel.count])
      unsafe context.upload(part, to: bytes.address, threads: threads)
    }
    context.launch(
      .from_bytes, elements: panel.count,
      [.address(panel.address), .address(bytes.address), .long(panel.count)])
  }
}

extension DType {
  /// What kernels call a float type of states and weights.
  fileprivate var kernelNumber: Int {
    switch self {
    case .float32: 0
    case .float16: 1
    case .bfloat16: 2
    default: preconditionFailure("states and weights are float32, float16 or bfloat16")
    }
  }
}
