/// Matrices of ±1 whose rows are orthogonal, of sizes that are no power of two, by Paley's two constructions: from the squares
/// modulo a prime q, of size q + 1 where q leaves 3 when divided by 4, and 2 (q + 1) where it leaves 1.
enum HadamardMatrix {
  /// Rows one after the other.
  /// - Returns: nil for sizes that neither construction has
  static func elements(size: Int) -> [Float]? {
    if isPrime(size - 1), size % 4 == 0 {
      let core = bordered(prime: size - 1)
      return core.indices.map { core[$0] + ($0 % (size + 1) == 0 ? 1 : 0) }
    }
    let half = size / 2
    guard size % 4 == 0, isPrime(half - 1), half % 4 == 2 else { return nil }
    let core = bordered(prime: half - 1)
    return (0..<size * size).map { index in
      let (row, column) = (index / size, index % size)
      let (i, j) = (row / 2, column / 2)
      // [[1, -1], [-1, -1]] on the diagonal, the core's element times [[1, 1], [1, -1]] elsewhere.
      let isLast = row % 2 == 1 && column % 2 == 1
      if i == j { return row % 2 == 0 && column % 2 == 0 ? 1 : -1 }
      return isLast ? -core[i * half + j] : core[i * half + j]
    }
  }

  /// Whether i − j is a square modulo the prime, 1 or −1, with a row and a column of ±1 before; 0 on the diagonal.
  private static func bordered(prime: Int) -> [Float] {
    var isSquare = [Bool](repeating: false, count: prime)
    for root in 1..<prime { isSquare[root * root % prime] = true }
    let size = prime + 1
    // It is symmetric where −1 is a square, and skew where not.
    let corner: Float = prime % 4 == 1 ? 1 : -1
    return (0..<size * size).map { index in
      let (row, column) = (index / size, index % size)
      if row == column { return 0 }
      if row == 0 { return 1 }
      if column == 0 { return corner }
      return isSquare[(row - column + prime) % prime] ? 1 : -1
    }
  }

  private static func isPrime(_ number: Int) -> Bool {
    guard number > 1 else { return false }
    var divisor = 2
    while divisor * divisor <= number {
      if number % divisor == 0 { return false }
      divisor += 1
    }
    return true
  }
}
