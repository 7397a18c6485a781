import CCUDA
import CUDAOnCPU
import Compute
import ComputeCUDA

/// The CUDA backend on a machine without a GPU: the driver, cuBLAS and the kernels themselves on the processor.
public enum EmulatedGPU {
  /// The order in which threads that do not wait for one another run: forward, backward, and as a seed has it.
  public static let orders: [Int32] = [0, 1, 7]

  public static func libraries(
    _ change: (UnsafeMutablePointer<qe_cuda_libraries>) -> Void = { _ in }
  ) -> CUDALibraries {
    unsafe CUDALibraries { calls in
      unsafe qe_cuda_on_cpu(calls)
      unsafe change(calls)
    }
  }

  /// A backend with matrices in memory of its own, one for all tests: to make one takes longer than most tests do.
  public static func backend(isExact: Bool = true) throws -> CUDABackend {
    try (isExact ? exact : rounding).get()
  }

  /// A backend that nobody else has.
  /// - Parameter memoryLimit: what plans may count on; nil for all there is
  public static func backend(
    isExact: Bool = true, _ libraries: CUDALibraries = unsafe libraries(), memoryLimit: Int? = nil
  ) throws -> CUDABackend {
    try CUDABackend(
      CUDADevice.all(libraries)[0], libraries, isExact: isExact, memoryLimit: memoryLimit)
  }

  private static let exact = Result { unsafe try backend(isExact: true, libraries()) }
  private static let rounding = Result { unsafe try backend(isExact: false, libraries()) }

  /// Results in every order of threads, on matrices of the host's.
  public static func results<Result>(
    isExact: Bool = true, _ body: (any ComputeBackend) throws -> Result
  ) throws -> [Result] {
    defer { qe_cuda_on_cpu_set_order(0) }
    return try orders.map { order in
      qe_cuda_on_cpu_set_order(order)
      return try body(HostedBackend(backend(isExact: isExact)))
    }
  }
}
