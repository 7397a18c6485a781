/// A row-major fp32 matrix with reference semantics: `rows(_:)` lends a part of the same memory.
///
/// Its memory is this process's, or that of a backend that made it. The latter has elements for that backend alone: others
/// reach them by the backend's operations, and trap or worse where they read, write or copy them here.
///
/// A matrix crosses threads; whoever writes makes sure that nobody else touches those rows meanwhile.
@safe public final class Matrix: @unchecked Sendable {
  public let rows: Int
  public let columns: Int

  /// The first element; rows follow one another without gaps.
  @unsafe public let pointer: UnsafeMutablePointer<Float>
  public let memory: any MatrixMemory

  /// A matrix over memory of a backend's, from its first element on.
  public init(rows: Int, columns: Int, memory: any MatrixMemory) {
    self.rows = rows
    self.columns = columns
    self.memory = memory
    unsafe pointer = memory.pointer
  }

  /// A matrix of zeros.
  public init(rows: Int, columns: Int) {
    precondition(rows >= 0 && columns >= 0, "a matrix has no negative dimension")
    self.rows = rows
    self.columns = columns
    memory = HostMemory(elements: rows * columns)
    unsafe pointer = memory.pointer
  }

  /// A matrix whose elements are whatever stood in its memory: for what is written before it is read.
  public init(uninitializedRows rows: Int, columns: Int) {
    precondition(rows >= 0 && columns >= 0, "a matrix has no negative dimension")
    self.rows = rows
    self.columns = columns
    memory = HostMemory(elements: rows * columns, isZeroed: false)
    unsafe pointer = memory.pointer
  }

  /// A matrix with the given elements, row after row.
  public convenience init(rows: Int, columns: Int, _ elements: [Float]) {
    precondition(elements.count == rows * columns, "the elements do not fill the matrix")
    self.init(rows: rows, columns: columns)
    for index in elements.indices { unsafe pointer[index] = elements[index] }
  }

  private init(sharing owner: Matrix, offset: Int, rows: Int, columns: Int) {
    self.rows = rows
    self.columns = columns
    memory = owner.memory
    unsafe pointer = owner.pointer + offset
  }

  public var count: Int { rows * columns }

  /// The rows in `range`, over the same memory.
  public func rows(_ range: Range<Int>) -> Matrix {
    precondition(range.lowerBound >= 0 && range.upperBound <= rows, "rows outside the matrix")
    return Matrix(sharing: self, offset: range.lowerBound * columns, rows: range.count, columns: columns)
  }

  /// The same memory under another shape with as many elements.
  public func reshaped(rows: Int, columns: Int) -> Matrix {
    precondition(rows * columns == count, "the shape does not hold the same elements")
    return Matrix(sharing: self, offset: 0, rows: rows, columns: columns)
  }

  /// The first rows, over the same memory.
  public func prefix(_ count: Int) -> Matrix { rows(0..<count) }

  /// The first elements, over the same memory and under a shape of their own.
  public func prefix(rows: Int, columns: Int) -> Matrix {
    precondition(rows >= 0 && columns >= 0 && rows * columns <= count, "the matrix has fewer elements")
    return Matrix(sharing: self, offset: 0, rows: rows, columns: columns)
  }

  public subscript(row: Int, column: Int) -> Float {
    get {
      precondition(row >= 0 && row < rows && column >= 0 && column < columns)
      return unsafe pointer[row * columns + column]
    }
    set {
      precondition(row >= 0 && row < rows && column >= 0 && column < columns)
      unsafe pointer[row * columns + column] = newValue
    }
  }

  /// All elements, row after row, as a copy.
  public var elements: [Float] {
    unsafe Array(UnsafeBufferPointer(start: pointer, count: count))
  }

  /// Lends the elements for reading.
  public func withSpan<Result>(_ body: (Span<Float>) throws -> Result) rethrows -> Result {
    try body(unsafe UnsafeBufferPointer(start: pointer, count: count).span)
  }

  /// Lends the elements for writing.
  public func withMutableSpan<Result>(
    _ body: (inout MutableSpan<Float>) throws -> Result
  ) rethrows -> Result {
    var span = unsafe UnsafeMutableBufferPointer(start: pointer, count: count).mutableSpan
    return try body(&span)
  }

  /// Copies every element of `source`, which has the same shape.
  public func copy(from source: Matrix) {
    precondition(source.rows == rows && source.columns == columns, "the shapes differ")
    unsafe pointer.update(from: source.pointer, count: count)
  }

  public func copy() -> Matrix {
    let result = Matrix(rows: rows, columns: columns)
    result.copy(from: self)
    return result
  }

  /// Sets every element to `value`.
  public func fill(_ value: Float) {
    unsafe pointer.update(repeating: value, count: count)
  }

  /// The index of the first element that is NaN or infinite.
  public var firstNonFinite: Int? {
    var sum: Float = 0
    for index in 0..<count { sum += unsafe pointer[index] * 0 }
    if sum == 0 { return nil }
    return (0..<count).first { !(unsafe pointer[$0].isFinite) }
  }
}
