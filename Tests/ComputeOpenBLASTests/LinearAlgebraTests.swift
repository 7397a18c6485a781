import Compute
import ComputeOpenBLAS
import Tensors
import Testing

@Suite struct LinearAlgebraTests {
  @Test(arguments: [(1, 1, 1), (3, 17, 5), (65, 40, 1030), (600, 33, 70), (130, 577, 576)], [false, true])
  func `a product agrees with its definition`(_ shape: (m: Int, k: Int, n: Int), transposingB: Bool) {
    let a = Matrix.random(shape.m, shape.k, seed: 1)
    let b = transposingB ? Matrix.random(shape.n, shape.k, seed: 2) : .random(shape.k, shape.n, seed: 2)
    expectAgreement(within: 2e-6) { backend in
      let c = Matrix.random(shape.m, shape.n, seed: 3)
      backend.multiply(a, b, transposingB: transposingB, scale: -0.5, into: c, keeping: 0.75)
      return c
    }
  }

  @Test func `a product that keeps nothing overwrites NaN`() {
    expectAgreement(within: 2e-6) { backend in
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
  func `a Gram matrix grows in its upper triangle alone`(_ shape: (tokens: Int, features: Int)) {
    let inputs = Matrix.random(shape.tokens, shape.features, seed: 4)
    expectAgreement(within: 2e-6) { backend in
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
  func `a cross product agrees with its definition`(_ shape: (tokens: Int, m: Int, n: Int)) {
    let a = Matrix.random(shape.tokens, shape.m, seed: 6)
    let b = Matrix.random(shape.tokens, shape.n, seed: 7)
    expectAgreement(within: 2e-6) { backend in
      let product = Matrix.random(shape.m, shape.n, seed: 8)
      backend.accumulateCrossProduct(a, b, into: product)
      return product
    }
  }

  // One block of columns, two, and several of them and of rows.
  @Test(arguments: [(1, 1), (3, 40), (5, 200), (300, 450)])
  func `quadratic forms agree with their definition`(_ shape: (rows: Int, order: Int)) {
    let matrix = Matrix.positiveDefinite(order: shape.order, seed: 16)
    let rows = Matrix.random(shape.rows, shape.order, seed: 17)
    expectAgreement(within: 2e-6) { backend in
      Matrix(rows: shape.rows, columns: 1, backend.quadraticForms(rows, matrix).map(Float.init))
    }
  }

  @Test(arguments: [1, 15, 64, 131])
  func `symmetrizing copies the upper triangle exactly`(order: Int) {
    expectAgreement(within: 0) { backend in
      let matrix = Matrix.random(order, order, seed: 9)
      backend.symmetrize(matrix)
      return matrix
    }
  }

  // Within one panel, at its edge, and with several panels and tiles.
  @Test(arguments: [1, 6, 256, 257, 800])
  func `a Cholesky factor agrees with its definition`(order: Int) throws {
    let matrix = Matrix.positiveDefinite(order: order, seed: 10)
    try expectAgreement(within: 2e-5) { backend in
      let factor = matrix.copy()
      // Only the lower triangle is read.
      if order > 1 { factor[0, order - 1] = .nan }
      try backend.factorizeCholesky(factor)
      return factor
    }
  }

  @Test(arguments: [1, 6, 65, 300])
  func `a pivoted Cholesky factor multiplies to the reordered matrix`(order: Int) throws {
    let matrix = Matrix.positiveDefinite(order: order, seed: 11)
    for backend in [ReferenceBackend(), OpenBLASBackend(threads: 2)] as [any Operations] {
      var error: Float = 0
      let factor = matrix.copy()
      let rows = try backend.factorizePivotedCholesky(factor)
      #expect(rows.sorted() == Array(0..<order))
      let product = Matrix(rows: order, columns: order)
      backend.accumulateCrossProduct(factor, factor, into: product)
      for row in 0..<order {
        for column in 0..<order {
          error = max(error, abs(product[row, column] - matrix[rows[row], rows[column]]))
        }
      }
      #expect(error < 1e-5, "by \(type(of: backend))")
    }
  }

  @Test(arguments: [0, 300], [-1, Float.nan])
  func `a factorisation names the pivot that is not positive`(pivot: Int, value: Float) {
    let identity = Matrix(rows: 600, columns: 600)
    for row in 0..<600 { identity[row, row] = row == pivot ? value : 1 }
    for backend in [ReferenceBackend(), OpenBLASBackend(threads: 2)] as [any Operations] {
      #expect(throws: ComputeError.notPositiveDefinite(pivot: pivot)) {
        try backend.factorizeCholesky(identity.copy())
      }
    }
  }

  @Test(arguments: [(1, 1), (5, 9), (300, 120)])
  func `solving with a factor agrees with its definition`(_ shape: (rows: Int, order: Int)) throws {
    let factor = Matrix.positiveDefinite(order: shape.order, seed: 12)
    try ReferenceBackend().factorizeCholesky(factor)
    expectAgreement(within: 1e-4) { backend in
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
