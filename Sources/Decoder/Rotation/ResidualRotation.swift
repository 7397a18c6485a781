import Compute
import Glibc
import Tensors

/// An orthogonal matrix R that spreads every feature of the residual stream over all others: signs by chance, then a
/// Hadamard matrix over the features' power of two, and another over the rest; where there is none of that size, an orthogonal
/// matrix by chance.
///
/// Outliers of single features, which a grid has to reach, become the same little of every feature. The same size has the same
/// R everywhere.
struct ResidualRotation: Sendable {
  let size: Int
  /// size = powerOfTwo · rest
  let powerOfTwo: Int
  let rest: Int
  private let signs: [Float]
  /// `[rest, rest]`, orthogonal, by 1 / √powerOfTwo
  private let mixing: [Float]

  /// A product of this size takes longer than those that it is to serve.
  static let largestRest = 512

  /// The odd part of a size, which is to be known before a matrix of it is made.
  static func oddPart(of size: Int) -> Int { size >> size.trailingZeroBitCount }

  init(size: Int, seed: UInt64 = 0) {
    precondition(size > 0, "nothing to rotate")
    self.size = size
    let odd = Self.oddPart(of: size)
    var generator = SplitMix64(seed: seed)
    signs = (0..<size).map { _ in generator.next() >> 63 == 0 ? 1 : -1 }
    if let (rest, elements) = Self.hadamard(multipleOf: odd, dividing: size) {
      self.rest = rest
      let scale = 1 / Float(size).squareRoot()
      mixing = elements.map { $0 * scale }
    } else {
      rest = odd
      let scale = 1 / Double(size / odd).squareRoot()
      mixing = Self.orthogonal(rest, &generator).map { Float($0 * scale) }
    }
    powerOfTwo = size / rest
  }

  /// The smallest Hadamard matrix whose size is a multiple of the odd part.
  private static func hadamard(multipleOf odd: Int, dividing size: Int) -> (size: Int, elements: [Float])? {
    if odd == 1 { return (1, [1]) }
    var multiple = 4 * odd
    while multiple <= min(size, largestRest), size % multiple == 0 {
      if let elements = HadamardMatrix.elements(size: multiple) { return (multiple, elements) }
      multiple *= 2
    }
    return nil
  }

  /// Normal numbers by chance, row after row made orthogonal to those before, twice, as once leaves what rounding made.
  private static func orthogonal(_ size: Int, _ generator: inout SplitMix64) -> [Double] {
    func uniform() -> Double { (Double(generator.next() >> 11) + 0.5) * 0x1p-53 }
    var rows: [[Double]] = []
    while rows.count < size {
      var row = (0..<size).map { _ in (-2 * log(uniform())).squareRoot() * cos(2 * .pi * uniform()) }
      for _ in 0..<2 {
        for other in rows {
          let share = zip(row, other).reduce(0) { $0 + $1.0 * $1.1 }
          for index in row.indices { row[index] -= share * other[index] }
        }
      }
      let norm = row.reduce(0) { $0 + $1 * $1 }.squareRoot()
      if norm > 1e-6 { rows.append(row.map { $0 / norm }) }
    }
    return rows.flatMap { $0 }
  }

  /// Rows that a thread rotates at a time.
  private static let rowsOfThread = 64

  /// x ← x R for every row x, several at a time.
  func rotate(rows matrix: Matrix, threads: Int = 1) {
    precondition(matrix.columns == size, "the rows have another width")
    let rows = matrix.rows
    let parts = (rows + Self.rowsOfThread - 1) / Self.rowsOfThread
    matrix.withMutableSpan { span in
      unsafe span.withUnsafeMutableBufferPointer { values in
        guard let first = values.baseAddress else { return }
        nonisolated(unsafe) let base = unsafe first
        ThreadTeam(threads: threads).run(
          chunks: parts, scratch: { Matrix(rows: rest, columns: 1) }
        ) { part, scratch in
          for row in part * Self.rowsOfThread..<min((part + 1) * Self.rowsOfThread, rows) {
            unsafe rotate(base + row * size, width: 1, scratch)
          }
        }
      }
    }
  }

  /// W ← Rᵀ W, which is x R for every column x.
  func rotate(columns matrix: Matrix) {
    precondition(matrix.rows == size, "the columns have another height")
    let scratch = Matrix(rows: rest, columns: matrix.columns)
    matrix.withMutableSpan { span in
      unsafe span.withUnsafeMutableBufferPointer { values in
        guard let base = values.baseAddress else { return }
        unsafe rotate(base, width: matrix.columns, scratch)
      }
    }
  }

  /// v ← v R for `width` vectors whose elements stand side by side.
  /// - Parameter scratch: `[rest, width]`
  private func rotate(_ v: UnsafeMutablePointer<Float>, width: Int, _ scratch: Matrix) {
    for index in 0..<size where signs[index] < 0 {
      let element = unsafe v + index * width
      for column in 0..<width { unsafe element[column] = -element[column] }
    }
    var half = rest * width
    while half < size * width {
      for first in stride(from: 0, to: size * width, by: 2 * half) {
        let (low, high) = unsafe (v + first, v + first + half)
        for index in 0..<half {
          let (one, other) = unsafe (low[index], high[index])
          unsafe low[index] = one + other
          unsafe high[index] = one - other
        }
      }
      half *= 2
    }
    unsafe mixing.withUnsafeBufferPointer { mixing in
      scratch.withMutableSpan { span in
        unsafe span.withUnsafeMutableBufferPointer { unsafe mix(v, width: width, by: mixing, into: $0) }
      }
    }
  }

  /// Every block of v by the matrix of the rest.
  private func mix(
    _ v: UnsafeMutablePointer<Float>, width: Int, by mixing: UnsafeBufferPointer<Float>,
    into sums: UnsafeMutableBufferPointer<Float>
  ) {
    for block in 0..<powerOfTwo {
      let block = unsafe v + block * rest * width
      unsafe sums.update(repeating: 0)
      for from in 0..<rest {
        if width == 1 {
          let value = unsafe block[from]
          for to in 0..<rest { unsafe sums[to] += value * mixing[from * rest + to] }
          continue
        }
        for to in 0..<rest {
          let factor = unsafe mixing[from * rest + to]
          for column in 0..<width {
            unsafe sums[to * width + column] += factor * block[from * width + column]
          }
        }
      }
      for index in 0..<rest * width { unsafe block[index] = sums[index] }
    }
  }
}
