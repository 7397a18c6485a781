import Tensors

/// Every operation as its definition reads, in fp64, one element after the other: what tests compare with.
///
/// It is slow on purpose. Nothing here is shared with a backend that it checks.
public struct ReferenceBackend: HostMemoryBackend {
  public init() {}

  public var threads: Int { 1 }

  public var progress: Int { 0 }

  public func kernels(for operands: OperandType) -> String { "the definitions, in fp64" }
}

/// Σ term(i), in fp64.
func sum(_ range: Range<Int>, _ term: (Int) -> Double) -> Double {
  range.reduce(0) { $0 + term($1) }
}

extension Float {
  /// The value as an operand of the given type.
  func rounded(to operands: OperandType) -> Double {
    Double(operands == .float32 ? self : Float(bfloat16Bits: bfloat16Bits))
  }
}

extension Matrix {
  func value(_ row: Int, _ column: Int) -> Double { Double(self[row, column]) }

  /// The values as operands of the given type.
  func rounded(to operands: OperandType) -> Matrix {
    if operands == .float32 { return self }
    return Matrix(rows: rows, columns: columns, elements.map { Float($0.rounded(to: operands)) })
  }

  /// Sets every element by its row and column.
  func setEach(_ value: (Int, Int) -> Double) {
    for row in 0..<rows {
      for column in 0..<columns { self[row, column] = Float(value(row, column)) }
    }
  }
}
