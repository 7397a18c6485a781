import CKernels

/// Instructions that multiply bfloat16 and sum up in fp32.
///
/// Each rounds its sums in other places, so results have the bits of the kernels that made them.
public enum BFloat16Kernels: String, Sendable, CaseIterable {
  /// By conversion to fp32: on any processor, and slower than fp32 itself.
  case converting
  case avx512 = "AVX-512 BF16"
  case amx = "AMX"

  /// Whether this processor, and its operating system, have them.
  public var isAvailable: Bool { qe_bf16_available(kind) != 0 }

  /// Those that are faster than products in fp32 on this processor, if there are any. AVX-512 BF16 is twice as fast as
  /// fp32 on AMD's processors and half as fast on Intel's.
  public static let best: BFloat16Kernels? = {
    if Self.amx.isAvailable { return .amx }
    return Self.avx512.isAvailable && qe_is_amd() != 0 ? .avx512 : nil
  }()

  var kind: qe_bf16_kernels {
    switch self {
    case .converting: qe_bf16_plain
    case .avx512: qe_bf16_avx512
    case .amx: qe_bf16_amx
    }
  }
}
