import COpenBLAS
import Compute

/// The processor backend: dense products by OpenBLAS, everything else by the loops of CKernels.
///
/// OpenBLAS itself runs single-threaded. An operation is cut into chunks whose bounds follow from the shapes
/// alone, and a ``ThreadTeam`` works through them: the bits of a result do not depend on the thread count.
public struct OpenBLASBackend: HostMemoryBackend {
  let team: ThreadTeam
  let bfloat16: BFloat16Kernels?
  /// What has been multiplied so far.
  public let counter = ProductCounter()

  /// - Parameters:
  ///   - threads: how many threads an operation may use, at least 1
  ///   - bfloat16: what multiplies matrices of bfloat16, which the processor must have; nil to multiply in fp32 alone
  public init(threads: Int, bfloat16: BFloat16Kernels? = nil) {
    Self.configure()
    precondition(bfloat16?.isAvailable ?? true, "the processor has no such instructions")
    team = ThreadTeam(threads: threads)
    self.bfloat16 = bfloat16
  }

  public var threads: Int { team.threads }

  public func kernels(for operands: OperandType) -> String {
    ProcessorKernels(set: .current, bfloat16: operands == .bfloat16 ? bfloat16 : nil).description
  }

  public var progress: Int { team.done.value }

  /// Makes OpenBLAS single-threaded in the whole process, once. Every backend does it when it is made;
  /// a composition root that shares the process with other users of OpenBLAS calls it before they start.
  public static func configure() {
    _ = singleThreaded
  }

  private static let singleThreaded: Void = openblas_set_num_threads(1)
}
