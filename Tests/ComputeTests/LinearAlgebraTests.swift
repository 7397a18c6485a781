import Compute
import ComputeOpenBLAS
import Tensors
import TestSupport
import Testing

@Suite struct LinearAlgebraTests {
  @Test(arguments: [(1, 1, 1), (3, 17, 5), (65, 40, 1030), (600, 33, 70), (130, 577, 576)], [false, true])
  func `a product agrees with its definition`(_ shape: (m: Int, k: Int, n: Int), transposingB: Bool) throws {
    let a = Matrix.random(shape.m, shape.k, seed: 1)
    let b = transposingB ? Matrix.random(shape.n, shape.k, seed: 2) : .random(shape.k, shape.n, seed: 2)
    try expectAgreement(within: 2e-6) { backend in
      let c = Matrix.random(shape.m, shape.n, seed: 3)
      backend.multiply(a, b, transposingB: transposingB, scale: -0.5, into: c, keeping: 0.75)
      return c
    }
  }

  @Test func `a product that keeps nothing overwrites NaN`() throws {
    try expectAgreement(within: 2e-6) { backend in
      let c = Matrix(rows: 100, columns: 9)
      c.fill(.nan)
      backend.multiply(
        .random(100, 8, seed: 1), .random(8, 9, seed: 2), transposingB: false, scale: 1, into: c, keeping: 0)
      return c
    }
  }

  @Test func `a product over no terms scales what it keeps`() {
    let c = Matrix(rows: 2, columns: 2, [1, 2, 3, 4])
    OpenBLASBackend(threads: 2).multiply(
      Matrix(rows: 2, columns: 0), Matrix(rows: 0, columns: 2), transposingB: false, scale: 1, into: c,
      keeping: 0.5)
    #expect(c.elements == [0.5, 1, 1.5, 2])
  }

  // The shapes take one tile and several.
  @Test(arguments: [(1, 1), (17, 5), (2100, 33), (64, 800)])
  func `a Gram matrix grows in its lower triangle alone`(_ shape: (tokens: Int, features: Int)) throws {
    let inputs = Matrix.random(shape.tokens, shape.features, seed: 4)
    try expectAgreement(within: 2e-6) { backend in
      let gram = Matrix.random(shape.features, shape.features, seed: 5)
      backend.accumulateGram(inputs, into: gram)
      return gram
    }
  }

  // Too many terms for the reference.
  @Test func `a large Gram matrix is the cross product of the inputs with themselves`() {
    let inputs = Matrix.random(2100, 780, seed: 4)
    let results = (1...3).map { threads in
      let gram = Matrix(rows: 780, columns: 780)
      let backend = OpenBLASBackend(threads: threads)
      backend.accumulateGram(inputs, into: gram)
      backend.symmetrize(gram)
      return gram.elements
    }
    let product = Matrix(rows: 780, columns: 780)
    OpenBLASBackend(threads: 2).accumulateCrossProduct(inputs, inputs, into: product)
    #expect(results[1] == results[0] && results[2] == results[0])
    #expect(zip(results[0], product.elements).allSatisfy { abs($0 - $1) < 1e-3 })
  }

  @Test func `a batch without tokens leaves the Gram matrix as it is`() {
    let gram = Matrix.random(7, 7, seed: 1)
    let before = gram.elements
    OpenBLASBackend(threads: 2).accumulateGram(Matrix(rows: 0, columns: 7), into: gram)
    #expect(gram.elements == before)
  }

  @Test(arguments: [(1, 1, 1), (19, 7, 30), (40, 390, 520)])
  func `a cross product agrees with its definition`(_ shape: (tokens: Int, m: Int, n: Int)) throws {
    let a = Matrix.random(shape.tokens, shape.m, seed: 6)
    let b = Matrix.random(shape.tokens, shape.n, seed: 7)
    try expectAgreement(within: 2e-6) { backend in
      let product = Matrix.random(shape.m, shape.n, seed: 8)
      backend.accumulateCrossProduct(a, b, into: product)
      return product
    }
  }

  // One block of columns, two, and several of them and of rows.
  @Test(arguments: [(1, 1), (3, 40), (5, 200), (300, 450)])
  func `quadratic forms agree with their definition`(_ shape: (rows: Int, order: Int)) throws {
    let matrix = Matrix.positiveDefinite(order: shape.order, seed: 16)
    let rows = Matrix.random(shape.rows, shape.order, seed: 17)
    try expectAgreement(within: 2e-6) { backend in
      Matrix(rows: shape.rows, columns: 1, backend.quadraticForms(rows, matrix).map(Float.init))
    }
  }

  @Test(arguments: [1, 15, 64, 131])
  func `symmetrizing copies the lower triangle exactly`(order: Int) throws {
    try expectAgreement(within: 0) { backend in
      let matrix = Matrix.random(order, order, seed: 9)
      backend.symmetrize(matrix)
      return matrix
    }
  }

  @Test(arguments: [1, 15, 64, 131])
  func `the upper triangle takes the lower one's elements in any order`(order: Int) throws {
    let matrix = Matrix.random(order, order, seed: 9)
    let places = Array((0..<order).map { ($0 * 7 + 3) % order })
    guard Set(places).count == order else { return }
    for backend in try [
      ReferenceBackend(), OpenBLASBackend(threads: 3), HostedBackend(EmulatedGPU.backend()),
    ]
      as [any Operations]
    {
      let result = matrix.copy()
      backend.fillUpperTriangle(of: result, inOrder: places)
      for row in 0..<order {
        for column in 0..<order {
          let (high, low) = (max(places[row], places[column]), min(places[row], places[column]))
          #expect(result[row, column] == (column > row ? matrix[high, low] : matrix[row, column]))
        }
      }
    }
  }

  // Within one panel, at its edge, and with several panels and tiles.
  @Test(arguments: [1, 6, 256, 257, 800])
  func `a Cholesky factor agrees with its definition, and leaves the other triangle`(order: Int) throws {
    let matrix = Matrix.positiveDefinite(order: order, seed: 10)
    for row in 1..<max(order, 1) { for column in 0..<row { matrix[row, column] = 7 } }
    try expectAgreement(within: 2e-5) { backend in
      let factor = matrix.copy()
      try backend.factorizeCholesky(factor)
      for row in 1..<max(order, 1) {
        for column in 0..<row where factor[row, column] != 7 { Issue.record("changed") }
      }
      return factor
    }
  }

  // Within one block, at its edge, and with several blocks and tiles.
  @Test(arguments: [1, 6, 64, 65, 300, 700], [0, 1, 5, 65])
  func `a pivoted Cholesky factor multiplies to the reordered matrix`(order: Int, leading: Int) throws {
    let leading = min(leading, order)
    let matrix = Matrix.positiveDefinite(order: order, seed: 11)
    // What comes first, and what is above the diagonal, is of no account.
    let first = Array((0..<order).reversed())
    let backends: [any Operations] =
      (1...3).map { OpenBLASBackend(threads: $0) } + (order <= 300 ? [ReferenceBackend()] : [])
      + [HostedBackend(try EmulatedGPU.backend())]
    var factors: [[Float]] = []
    for backend in backends {
      let factor = matrix.copy()
      for row in 0..<order {
        for column in row + 1..<max(order, row + 1) { factor[row, column] = 7 }
        factor[row, row] = matrix[first[row], first[row]]
      }
      let rows = try backend.factorizePivotedCholesky(factor, inOrder: first, leading: leading)
      #expect(rows.sorted() == Array(0..<order))
      #expect(rows.prefix(leading).allSatisfy { $0 >= order - leading })
      for row in 1..<max(order, 1) {
        for column in 0..<row {
          #expect(factor[row, column] == matrix[row, column])
          factor[row, column] = 0
        }
      }
      factors.append(factor.elements)
      let product = Matrix(rows: order, columns: order)
      backend.accumulateCrossProduct(factor, factor, into: product)
      var error: Float = 0
      for row in 0..<order {
        for column in 0..<order {
          error = max(error, abs(product[row, column] - matrix[rows[row], rows[column]]))
        }
        // No pivot is larger than what the rows after it would have had in its place; of those that a device chooses
        // together, a 32nd of them all, the first.
        let together = (order + 31) / 32
        if backend is HostedBackend && (row < leading ? row : row - leading) % together != 0 { continue }
        if row + 1 < (row < leading ? leading : order) {
          let next = (row + 1..<(row < leading ? leading : order)).map { later in
            (row...later).reduce(Float(0)) { $0 + factor[$1, later] * factor[$1, later] }
          }
          #expect(next.allSatisfy { $0 >= factor[row, row] * factor[row, row] * (1 - 1e-4) })
        }
      }
      #expect(error < 1e-5, "by \(type(of: backend))")
    }
    #expect(factors[0] == factors[1] && factors[0] == factors[2])
  }

  @Test(arguments: [1, 65, 200])
  func `rows are divided by the diagonal above it alone`(order: Int) throws {
    let matrix = Matrix.random(order, order, seed: 18)
    for row in 0..<order { matrix[row, row] += 3 }
    try expectAgreement(within: 2e-7) { backend in
      let result = matrix.copy()
      backend.divideUpperRowsByDiagonal(result)
      #expect(backend.diagonal(of: result) == backend.diagonal(of: matrix))
      return result
    }
  }

  @Test(arguments: [0, 300], [-1, Float.nan])
  func `a factorisation names the pivot that is not positive`(pivot: Int, value: Float) throws {
    let identity = Matrix(rows: 600, columns: 600)
    for row in 0..<600 { identity[row, row] = row == pivot ? value : 1 }
    for backend in try [
      ReferenceBackend(), OpenBLASBackend(threads: 2), HostedBackend(EmulatedGPU.backend()),
    ]
      as [any Operations]
    {
      #expect(throws: ComputeError.notPositiveDefinite(pivot: pivot)) {
        try backend.factorizeCholesky(identity.copy())
      }
    }
  }

  @Test(arguments: [(1, 1), (5, 9), (300, 120)])
  func `solving with a factor agrees with its definition`(_ shape: (rows: Int, order: Int)) throws {
    let factor = Matrix.positiveDefinite(order: shape.order, seed: 12)
    try ReferenceBackend().factorizeCholesky(factor)
    try expectAgreement(within: 1e-4) { backend in
      let rows = Matrix.random(shape.rows, shape.order, seed: 13)
      backend.solveCholesky(rows: rows, factor: factor)
      return rows
    }
  }

  @Test func `solving undoes the product with the matrix`() throws {
    let backend = OpenBLASBackend(threads: 2)
    let matrix = Matrix.positiveDefinite(order: 90, seed: 14)
    let rows = Matrix.random(200, 90, seed: 15)
    let product = Matrix(rows: 200, columns: 90)
    backend.multiply(rows, matrix, transposingB: false, scale: 1, into: product, keeping: 0)
    try backend.factorizeCholesky(matrix)
    backend.solveCholesky(rows: product, factor: matrix)
    #expect(zip(product.elements, rows.elements).allSatisfy { abs($0 - $1) < 1e-4 })
  }

  @Test func `a shape that does not fit traps`() async {
    await #expect(processExitsWith: .failure) {
      OpenBLASBackend(threads: 1).accumulateGram(
        Matrix(rows: 2, columns: 3), into: Matrix(rows: 4, columns: 4))
    }
  }
}
