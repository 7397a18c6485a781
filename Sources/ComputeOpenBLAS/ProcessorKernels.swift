/// All that decides on the processor which bits a product has.
public struct ProcessorKernels: Equatable, Sendable, LosslessStringConvertible {
  public let set: KernelSet
  /// What multiplies matrices of bfloat16; nil where there are none.
  public let bfloat16: BFloat16Kernels?

  init(set: KernelSet, bfloat16: BFloat16Kernels?) {
    self.set = set
    self.bfloat16 = bfloat16
  }

  private static let library = "OpenBLAS "
  private static let products = ", bfloat16 products by "

  public var description: String {
    Self.library + set.name + (bfloat16.map { Self.products + $0.rawValue } ?? "")
  }

  /// Has the library take the kernels that a job was begun with, where the processor has them, or the best; to be called
  /// before anything has begun.
  /// - Parameter description: those of the job; nil where it is yet to begin
  /// - Returns: the same, for the backend
  public static func take(begun description: String?) -> ProcessorKernels? {
    let begun = description.flatMap(ProcessorKernels.init)
    KernelSet.useBest(unless: begun?.set)
    return begun
  }

  /// Reads what ``description`` says; nil of other kernels, such as a GPU's.
  public init?(_ description: String) {
    guard description.hasPrefix(Self.library) else { return nil }
    let text = description.dropFirst(Self.library.count)
    guard let end = text.firstRange(of: Self.products) else {
      self.init(set: KernelSet(String(text)), bfloat16: nil)
      return
    }
    guard let bfloat16 = BFloat16Kernels(rawValue: String(text[end.upperBound...])) else { return nil }
    self.init(set: KernelSet(String(text[..<end.lowerBound])), bfloat16: bfloat16)
  }
}
