import CCUDA
import Compute
import Glibc
import Synchronization
import Tensors

/// One GPU at work: its memory, one stream on which everything happens in order, cuBLAS, and the compiled kernels.
///
/// The first call that fails is kept, and nothing is called after it: operations then leave their results as they are, and
/// whoever uses them asks for ``failure`` before anything of them is believed.
@safe final class DeviceContext: @unchecked Sendable {
  let device: CUDADevice
  let libraries: CUDALibraries
  private let context: OpaquePointer
  private let stream: OpaquePointer
  private let pool: OpaquePointer
  private let blas: OpaquePointer
  private let kernels: [OpaquePointer]
  private let firstFailure = Mutex<CUDAError?>(nil)
  private let launches = Atomic<Int>(0)
  private let pinned = Mutex(PinnedBuffers())
  private let spareBlocks = Mutex(SpareBlocks())
  private let pinnedByteCount = Atomic<Int>(0)
  private let profile = CallProfile.shared
  private var workspace: UInt64 = 0
  let blasVersion: Int
  let driverVersion: Int

  /// What cuBLAS works in. It is the same for every product, so that the way a product is computed depends on its shape.
  private static let workspaceBytes = 64 << 20

  /// - Throws: ``CUDAError``
  init(_ device: CUDADevice, _ libraries: CUDALibraries) throws(CUDAError) {
    if !device.isSupported { throw .deviceTooOld(device.name, capability: device.capability) }
    self.device = device
    self.libraries = libraries
    let calls = unsafe libraries.calls.pointee
    func check(_ result: Int32, _ call: String) throws(CUDAError) {
      if result == 0 { return }
      let words = call.hasPrefix("cublas") ? calls.blasWords(of: result) : calls.words(of: result)
      throw .callFailed(call, words: "\(words); is the library for a newer driver?")
    }
    var ordinal: Int32 = 0
    try check(unsafe calls.cuDeviceGet(&ordinal, Int32(device.index)), "cuDeviceGet")
    func made(_ name: String, _ make: (UnsafeMutablePointer<OpaquePointer?>) -> Int32) throws(CUDAError)
      -> OpaquePointer
    {
      var object: OpaquePointer?
      try check(unsafe make(&object), name)
      guard let object = unsafe object else { throw .callFailed(name, words: "nothing was made") }
      return unsafe object
    }
    unsafe context = try made("cuDevicePrimaryCtxRetain") {
      unsafe calls.cuDevicePrimaryCtxRetain($0, ordinal)
    }
    try check(unsafe calls.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    unsafe stream = try made("cuStreamCreate") { unsafe calls.cuStreamCreate($0, 1) }
    unsafe pool = try made("cuDeviceGetDefaultMemPool") {
      unsafe calls.cuDeviceGetDefaultMemPool($0, ordinal)
    }
    // What is given back is kept for the next layer, which asks for the same.
    var threshold = UInt64.max
    try check(
      unsafe calls.cuMemPoolSetAttribute(pool, Int32(qe_pool_release_threshold), &threshold),
      "cuMemPoolSetAttribute")
    unsafe blas = try made("cublasCreate") { unsafe calls.cublasCreate_v2($0) }
    try check(unsafe calls.cublasSetStream_v2(blas, stream), "cublasSetStream")
    var version: Int32 = 0
    try check(unsafe calls.cublasGetVersion_v2(blas, &version), "cublasGetVersion")
    blasVersion = Int(version)
    try check(unsafe calls.cuDriverGetVersion(&version), "cuDriverGetVersion")
    driverVersion = Int(version)
    var address: UInt64 = 0
    try check(unsafe calls.cuMemAllocAsync(&address, Self.workspaceBytes, stream), "cuMemAllocAsync")
    try check(unsafe calls.cuStreamSynchronize(stream), "cuStreamSynchronize")
    try check(unsafe calls.cublasSetWorkspace_v2(blas, address, Self.workspaceBytes), "cublasSetWorkspace")
    workspace = address
    var module: OpaquePointer?
    let image = try KernelProgram.image(for: device.architecture, libraries)
    if unsafe calls.cuModuleLoadData(&module, image) != 0 {
      let anew = try KernelProgram.image(for: device.architecture, isAnew: true, libraries)
      try check(unsafe calls.cuModuleLoadData(&module, anew), "cuModuleLoadData")
    }
    guard let module = unsafe module else {
      throw .callFailed("cuModuleLoadData", words: "nothing was loaded")
    }
    var kernels = unsafe [OpaquePointer]()
    for kernel in KernelProgram.Kernel.allCases {
      unsafe kernels.append(
        try made("cuModuleGetFunction of \(kernel.rawValue)") {
          unsafe calls.cuModuleGetFunction($0, module, kernel.rawValue)
        })
    }
    unsafe self.kernels = kernels
  }

  deinit {
    free(workspace)
    for buffer in pinned.withLock({ $0.removeAll() }) { release(buffer) }
    for slab in spareBlocks.withLock({ $0.removeAll() }) { release(slab) }
  }

  // MARK: Failures

  var failure: CUDAError? { firstFailure.withLock { $0 } }

  /// Calls, unless a call has failed before.
  /// - Returns: whether it succeeded
  @discardableResult
  func call(
    _ name: String, isBLAS: Bool = false, operations: Double = 0, _ body: (qe_cuda_libraries) -> Int32
  ) -> Bool {
    if failure != nil { return false }
    let calls = unsafe libraries.calls.pointee
    _ = unsafe calls.cuCtxSetCurrent(context)
    let start = ContinuousClock.now
    let result = body(calls)
    if let profile {
      _ = unsafe calls.cuStreamSynchronize(stream)
      let time = (ContinuousClock.now - start).components
      profile.add(
        name, seconds: Double(time.seconds) + Double(time.attoseconds) * 1e-18, operations: operations)
    }
    if result == 0 { return true }
    let words = isBLAS ? calls.blasWords(of: result) : calls.words(of: result)
    fail(.callFailed(name, words: words))
    return false
  }

  func fail(_ error: CUDAError) { firstFailure.withLock { if $0 == nil { $0 = error } } }

  // MARK: Memory

  /// Memory whose elements are whatever stood there.
  /// - Returns: an address, or one that nothing is at where there is no memory left
  func allocate(bytes: Int) -> UInt64 {
    var address: UInt64 = 0
    var result: Int32 = 0
    if failure != nil { return Self.nowhere }
    let calls = unsafe libraries.calls.pointee
    _ = unsafe calls.cuCtxSetCurrent(context)
    result = unsafe calls.cuMemAllocAsync(&address, max(bytes, 4), stream)
    if result == 0 { return address }
    if result == Int32(qe_cuda_out_of_memory) {
      // What was freed may lie there until the stream has come to it.
      _ = unsafe calls.cuStreamSynchronize(stream)
      if unsafe calls.cuMemAllocAsync(&address, max(bytes, 4), stream) == 0 { return address }
      var (free, total) = (0, 0)
      _ = unsafe calls.cuMemGetInfo_v2(&free, &total)
      fail(.outOfMemory(bytes: bytes, free: total - usedBytes, total: total))
    } else {
      fail(.callFailed("cuMemAllocAsync", words: calls.words(of: result)))
    }
    return Self.nowhere
  }

  func free(_ address: UInt64) {
    if address == Self.nowhere { return }
    call("cuMemFreeAsync") { unsafe $0.cuMemFreeAsync(address, stream) }
  }

  /// The address of matrices that there was no memory for, which nobody reads or writes.
  private static let nowhere: UInt64 = 64

  /// Bytes that matrices take now.
  var usedBytes: Int { poolValue(qe_pool_used_now) }

  /// The most that they have taken since this was last asked.
  func lapPeak() -> Int {
    let peak = poolValue(qe_pool_used_at_most)
    var zero: UInt64 = 0
    call("cuMemPoolSetAttribute") {
      unsafe $0.cuMemPoolSetAttribute(pool, Int32(qe_pool_used_at_most), &zero)
    }
    return peak
  }

  private func poolValue(_ attribute: Int) -> Int {
    var value: UInt64 = 0
    call("cuMemPoolGetAttribute") { unsafe $0.cuMemPoolGetAttribute(pool, Int32(attribute), &value) }
    return Int(value)
  }

  func copy(_ source: UInt64, to destination: UInt64, bytes: Int) {
    if bytes == 0 { return }
    call("cuMemcpyDtoDAsync") { unsafe $0.cuMemcpyDtoDAsync_v2(destination, source, bytes, stream) }
  }

  func fill(_ destination: UInt64, with value: Float, count: Int) {
    if count == 0 { return }
    call("cuMemsetD32Async") { unsafe $0.cuMemsetD32Async(destination, value.bitPattern, count, stream) }
  }

  func upload(_ source: UnsafeRawPointer, to destination: UInt64, bytes: Int) {
    if bytes == 0 { return }
    call("cuMemcpyHtoDAsync") { unsafe $0.cuMemcpyHtoDAsync_v2(destination, source, bytes, stream) }
  }

  /// Copies to the host, and waits for it.
  func download(_ source: UInt64, to destination: UnsafeMutableRawPointer, bytes: Int) {
    if bytes > 0 {
      call("cuMemcpyDtoHAsync") { unsafe $0.cuMemcpyDtoHAsync_v2(destination, source, bytes, stream) }
    }
    synchronize()
  }

  /// Copies to memory that only the device reads, as soon as it has come there.
  func downloadLater(_ source: UInt64, to block: SpareBlocks.Block, bytes: Int) {
    if bytes == 0 { return }
    call("cuMemcpyDtoHAsync") { unsafe $0.cuMemcpyDtoHAsync_v2(block.memory, source, bytes, stream) }
  }

  func synchronize() {
    call("cuStreamSynchronize") { unsafe $0.cuStreamSynchronize(stream) }
    pinned.withLock { $0.markDone() }
    launches.wrappingAdd(1, ordering: .relaxed)
  }

  // MARK: Pinned memory

  /// A matrix in memory of the host's that the device copies from and to by itself.
  ///
  /// The device may still read it after `give(_:)`: it is not handed out again before the stream has passed.
  func lend(rows: Int, columns: Int) -> (matrix: Matrix, buffer: PinnedBuffer) {
    let bytes = max(rows * columns, 1) * MemoryLayout<Float>.stride
    let (known, mustWait) = pinned.withLock { $0.take(bytes) }
    if mustWait { synchronize() }
    let buffer = known ?? makePinned(bytes: bytes)
    return (Matrix(rows: rows, columns: columns, memory: buffer), buffer)
  }

  func give(_ buffer: PinnedBuffer) {
    for old in pinned.withLock({ $0.keep(buffer) }) {
      synchronize()
      release(old)
    }
  }

  /// What large copies from and to the host's own memory are cut into, each by way of a pinned buffer: the driver's way is
  /// one thread's.
  private static let stagedBytes = 32 << 20

  func upload(_ source: UnsafeRawBufferPointer, to destination: UInt64, threads: Int) {
    for start in stride(from: 0, to: source.count, by: Self.stagedBytes) {
      let part = unsafe UnsafeRawBufferPointer(
        rebasing: source[start..<min(start + Self.stagedBytes, source.count)])
      let (_, buffer) = lend(rows: 1, columns: (part.count + 3) / 4)
      unsafe buffer.copy(from: part, threads: threads)
      unsafe upload(buffer.memory, to: destination + UInt64(start), bytes: part.count)
      give(buffer)
    }
  }

  func download(_ source: UInt64, to destination: UnsafeMutableRawBufferPointer, threads: Int) {
    for start in stride(from: 0, to: destination.count, by: Self.stagedBytes) {
      let part = unsafe UnsafeMutableRawBufferPointer(
        rebasing: destination[start..<min(start + Self.stagedBytes, destination.count)])
      let (_, buffer) = lend(rows: 1, columns: (part.count + 3) / 4)
      unsafe download(source + UInt64(start), to: buffer.memory, bytes: part.count)
      unsafe buffer.copy(to: part, threads: threads)
      give(buffer)
    }
  }

  /// - Parameter mustPin: whether a run ends that gets no pinned memory, and does not go on with other memory
  private func makePinned(bytes: Int, mustPin: Bool = true) -> PinnedBuffer {
    var memory: UnsafeMutableRawPointer?
    // 1: for every context.
    if mustPin {
      call("cuMemHostAlloc") { unsafe $0.cuMemHostAlloc(&memory, bytes, 1) }
    } else if failure == nil {
      let calls = unsafe libraries.calls.pointee
      _ = unsafe calls.cuCtxSetCurrent(context)
      _ = unsafe calls.cuMemHostAlloc(&memory, bytes, 1)
    }
    if let memory = unsafe memory {
      pinnedByteCount.add(bytes, ordering: .relaxed)
      return unsafe PinnedBuffer(memory, bytes: bytes, isPinned: true)
    }
    // After a failure the host goes on for a while, with memory of its own.
    return unsafe PinnedBuffer(
      UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 64), bytes: bytes, isPinned: false)
  }

  var pinnedBytes: Int { pinnedByteCount.load(ordering: .relaxed) }

  /// Memory of the host's in blocks of ``SpareBlocks/blockBytes`` that nobody but the device reads or writes: what is given
  /// back can be lent at once, since the device does one thing after the other.
  func lendBlocks(_ count: Int) -> [SpareBlocks.Block] {
    while true {
      if let blocks = spareBlocks.withLock({ $0.take(count) }) { return blocks }
      // Where little may be pinned, copies are slower and all else is as it was.
      let slab = makePinned(bytes: SpareBlocks.slabBytes, mustPin: false)
      spareBlocks.withLock { $0.add(slab) }
    }
  }

  func give(_ blocks: [SpareBlocks.Block]) { spareBlocks.withLock { $0.give(blocks) } }

  private func release(_ buffer: PinnedBuffer) {
    if !buffer.isPinned { return unsafe buffer.memory.deallocate() }
    pinnedByteCount.subtract(buffer.bytes, ordering: .relaxed)
    _ = unsafe libraries.calls.pointee.cuMemFreeHost(buffer.memory)
  }

  // MARK: Work

  /// How much has been asked of the device: a number that stands still for long is work that hangs.
  var progress: Int { launches.load(ordering: .relaxed) }

  enum Argument {
    case address(UInt64)
    case int(Int)
    case long(Int)
    case float(Float)

    fileprivate var bits: UInt64 {
      switch self {
      case .address(let address): address
      case .int(let value): UInt64(UInt32(bitPattern: Int32(value)))
      case .long(let value): UInt64(bitPattern: Int64(value))
      case .float(let value): UInt64(value.bitPattern)
      }
    }
  }

  /// Runs a kernel.
  /// - Parameters:
  ///   - blocks: along x, y and z; none of a dimension is nothing to do
  ///   - threads: of a block, along x and y
  func launch(
    _ kernel: KernelProgram.Kernel, blocks: (x: Int, y: Int), threads: (x: Int, y: Int),
    _ arguments: [Argument]
  ) {
    if blocks.x == 0 || blocks.y == 0 { return }
    precondition(blocks.y <= 65_535 && blocks.x < 1 << 31, "a grid is larger than devices take")
    var slots = arguments.map(\.bits)
    let index = kernel.index
    call(kernel.rawValue) { calls in
      unsafe slots.withUnsafeMutableBufferPointer { slots in
        guard let base = slots.baseAddress else { return 0 }
        var pointers = unsafe (0..<slots.count).map { unsafe Optional(UnsafeMutableRawPointer(base + $0)) }
        return unsafe calls.cuLaunchKernel(
          kernels[index], UInt32(blocks.x), UInt32(blocks.y), 1, UInt32(threads.x), UInt32(threads.y), 1, 0,
          stream,
          &pointers, nil)
      }
    }
    launches.wrappingAdd(1, ordering: .relaxed)
  }

  /// Runs a kernel with a thread an element.
  func launch(_ kernel: KernelProgram.Kernel, elements: Int, _ arguments: [Argument]) {
    let threads = 256
    // Threads take several elements each where there are more than fill the device many times over.
    let blocks = min((elements + threads - 1) / threads, 1 << 16)
    launch(kernel, blocks: (blocks, 1), threads: (threads, 1), arguments)
  }

  /// Runs a kernel with a block a row.
  func launch(_ kernel: KernelProgram.Kernel, rows: Int, width: Int, _ arguments: [Argument]) {
    launch(kernel, blocks: (rows, 1), threads: (width <= 128 ? 32 : 256, 1), arguments)
  }

  // MARK: Products

  /// An operand of a product: a row-major matrix in device memory.
  struct Operand {
    let address: UInt64
    /// Elements from row to row.
    let stride: Int
    var isTransposed = false
    var isBFloat16 = false
  }

  /// C ← α op(A) op(B) + β C, `[rows, inner] × [inner, columns]`.
  /// - Parameter isTF32: whether fp32 operands are rounded to TF32
  func multiply(
    _ a: Operand, _ b: Operand, into c: Operand, rows: Int, inner: Int, columns: Int, alpha: Float = 1,
    beta: Float = 0, isTF32: Bool
  ) {
    if rows == 0 || columns == 0 { return }
    if inner == 0 {
      // cuBLAS leaves C alone then, as β asks.
      precondition(beta == 1 || c.stride == columns, "an empty product scales a whole matrix")
      if beta == 0 { fill(c.address, with: 0, count: rows * columns) }
      return
    }
    precondition(a.isBFloat16 == b.isBFloat16, "operands are of one type")
    let type = Int32(a.isBFloat16 ? qe_type_bfloat16 : qe_type_float32)
    let compute = Int32(!a.isBFloat16 && isTF32 ? qe_compute_tf32 : qe_compute_float32)
    var (alpha, beta) = (alpha, beta)
    // A row-major matrix is its transpose by columns.
    let name =
      a.isBFloat16
      ? "product in bfloat16" : compute == qe_compute_tf32 ? "product in TF32" : "product in fp32"
    call(name, isBLAS: true, operations: 2 * Double(rows) * Double(inner) * Double(columns)) {
      unsafe $0.cublasGemmEx(
        blas, b.operation, a.operation, Int32(columns), Int32(rows), Int32(inner), &alpha, b.address, type,
        Int32(b.stride), a.address, type, Int32(a.stride), &beta, c.address, Int32(qe_type_float32),
        Int32(c.stride),
        compute, -1)
    }
    launches.wrappingAdd(1, ordering: .relaxed)
  }

  /// As many products, every operand so many elements further than the one before.
  func multiplyBatch(
    _ count: Int, _ a: Operand, step aStep: Int, _ b: Operand, step bStep: Int, into c: Operand,
    step cStep: Int,
    rows: Int, inner: Int, columns: Int, alpha: Float, isTF32: Bool
  ) {
    if count == 0 || rows == 0 || columns == 0 { return }
    let type = Int32(a.isBFloat16 ? qe_type_bfloat16 : qe_type_float32)
    let compute = Int32(!a.isBFloat16 && isTF32 ? qe_compute_tf32 : qe_compute_float32)
    var (alpha, beta): (Float, Float) = (alpha, 0)
    call(
      "batch of products", isBLAS: true,
      operations: 2 * Double(count) * Double(rows) * Double(inner) * Double(columns)
    ) {
      unsafe $0.cublasGemmStridedBatchedEx(
        blas, b.operation, a.operation, Int32(columns), Int32(rows), Int32(inner), &alpha, b.address, type,
        Int32(b.stride), Int64(bStep), a.address, type, Int32(a.stride), Int64(aStep), &beta, c.address,
        Int32(qe_type_float32), Int32(c.stride), Int64(cStep), Int32(count), compute, -1)
    }
    launches.wrappingAdd(1, ordering: .relaxed)
  }

  /// X ← X R⁻¹, or X R⁻ᵀ, for X `[rows, size]` and the upper triangle R.
  func solve(_ x: Operand, factor: Operand, rows: Int, size: Int, isTransposed: Bool) {
    if rows == 0 || size == 0 { return }
    var one: Float = 1
    // By columns the factor is a lower triangle, Rᵀ, and X its transpose.
    call("cublasStrsm", isBLAS: true) {
      unsafe $0.cublasStrsm_v2(
        blas, Int32(qe_left), Int32(qe_lower), Int32(isTransposed ? qe_transposed : qe_as_it_is),
        Int32(qe_non_unit),
        Int32(size), Int32(rows), &one, factor.address, Int32(factor.stride), x.address, Int32(x.stride))
    }
  }

  /// X ← R⁻ᵀ X for X `[size, columns]` and the upper triangle R.
  func solveTransposed(_ factor: Operand, _ x: Operand, size: Int, columns: Int) {
    if size == 0 || columns == 0 { return }
    var one: Float = 1
    call("cublasStrsm", isBLAS: true) {
      unsafe $0.cublasStrsm_v2(
        blas, Int32(qe_right), Int32(qe_lower), Int32(qe_transposed), Int32(qe_non_unit), Int32(columns),
        Int32(size),
        &one, factor.address, Int32(factor.stride), x.address, Int32(x.stride))
    }
  }
}

extension DeviceContext.Operand {
  fileprivate var operation: Int32 { Int32(isTransposed ? qe_transposed : qe_as_it_is) }

  /// A part that begins at a row and a column of what is stored.
  func at(row: Int = 0, column: Int = 0) -> Self {
    var part = Self(
      address: address + UInt64((row * stride + column) * (isBFloat16 ? 2 : 4)), stride: stride)
    part.isTransposed = isTransposed
    part.isBFloat16 = isBFloat16
    return part
  }

  var transposed: Self {
    var result = self
    result.isTransposed.toggle()
    return result
  }
}

extension KernelProgram.Kernel {
  /// Its place among all of them.
  fileprivate var index: Int { Self.places[self] ?? 0 }

  private static let places = Dictionary(uniqueKeysWithValues: allCases.enumerated().map { ($1, $0) })
}

extension qe_cuda_libraries {
  /// cuBLAS's words for a result.
  func blasWords(of result: Int32) -> String { unsafe String(cString: cublasGetStatusString(result)) }

  /// The driver's words for a result.
  func words(of result: Int32) -> String {
    var text: UnsafePointer<CChar>?
    guard unsafe cuGetErrorString(result, &text) == 0, let text = unsafe text else {
      return "error \(result)"
    }
    return "\(unsafe String(cString: text)) (\(result))"
  }
}
