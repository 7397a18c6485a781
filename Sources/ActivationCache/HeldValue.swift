import Tensors

/// A matrix that stays in memory, in the byte planes of the element type as the file would have them: neither compressed
/// nor with a checksum, which memory needs as little as any other matrix does.
@safe final class HeldValue: Sendable {
  let rows: Int
  let columns: Int
  private let elementType: DType
  /// Chunk after chunk, its planes one after the other.
  let memory: Matrix

  /// Rounds `matrix` to the element type, in place, and copies it.
  /// - Parameter memory: room for at least ``elements(of:as:)``
  /// - Throws: ``CacheError/notFinite(_:row:column:value:)``,
  ///   ``CacheError/overflow(_:row:column:value:elementType:)`` for the first such element.
  init(
    rounding matrix: Matrix, to elementType: DType, key: HiddenStatesKey, workers: ChunkWorkers,
    in memory: Matrix
  ) throws(CacheError) {
    rows = matrix.rows
    columns = matrix.columns
    self.elementType = elementType
    self.memory = memory
    try workers.forEachChunk(StoredValue.chunkCount(elements: matrix.count)) {
      (_, chunk) throws(CacheError) in
      let range = StoredValue.chunk(chunk, elements: matrix.count)
      try unsafe roundIntoPlanes(
        matrix, range, elementType: elementType, planes: planes(of: range), stride: range.count, key: key)
    }
  }

  /// The memory that a value of a matrix takes, in floats.
  static func elements(of matrix: Matrix, as elementType: DType) -> Int {
    (matrix.count * elementType.byteWidth + 3) / MemoryLayout<Float>.stride
  }

  /// Fills `matrix`, which has the same shape.
  func copy(into matrix: Matrix, workers: ChunkWorkers) throws(CacheError) {
    try workers.forEachChunk(StoredValue.chunkCount(elements: matrix.count)) {
      (_, chunk) throws(CacheError) in
      let range = StoredValue.chunk(chunk, elements: matrix.count)
      let first = unsafe planes(of: range)
      let all = unsafe (0..<elementType.byteWidth).map { unsafe UnsafePointer(first + $0 * range.count) }
      unsafe mergePlanes(
        all, count: range.count, elementType: elementType, into: matrix.pointer + range.lowerBound)
    }
  }

  @unsafe private func planes(of chunk: Range<Int>) -> UnsafeMutablePointer<UInt8> {
    unsafe UnsafeMutableRawPointer(memory.pointer).assumingMemoryBound(to: UInt8.self)
      + chunk.lowerBound * elementType.byteWidth
  }
}

/// The values that are held, and the memory of some that are gone: to have pages anew takes longer than to write them.
///
/// All of it together is no more than the values have taken at the most.
struct HeldValues {
  private var values: [HiddenStatesKey: HeldValue] = [:]
  /// Oldest first.
  private var spares: [Matrix] = []
  /// Elements of all values, of all spares, and the most that the values have had.
  private var held = 0
  private var spare = 0
  private var most = 0

  subscript(key: HiddenStatesKey) -> HeldValue? { values[key] }

  mutating func removeAll() { self = HeldValues() }

  mutating func removeAll(where isGone: (HiddenStatesKey) -> Bool) {
    for key in values.keys.filter(isGone) {
      if let memory = values.removeValue(forKey: key)?.memory { release(memory) }
    }
    trim()
  }

  /// Memory for so many elements: of the spares that are large enough the smallest one, or new memory.
  mutating func makeMemory(elements: Int) -> Matrix {
    let fitting = spares.indices.filter { spares[$0].count >= elements }
    if let index = fitting.min(by: { spares[$0].count < spares[$1].count }) {
      spare -= spares[index].count
      return spares.remove(at: index)
    }
    return Matrix(uninitializedRows: 1, columns: elements)
  }

  /// Takes memory back that no value has come to stand in.
  mutating func keep(_ memory: Matrix) {
    spares.append(memory)
    spare += memory.count
    trim()
  }

  mutating func set(_ value: HeldValue, at key: HiddenStatesKey, replacing previous: [HiddenStatesKey]) {
    let gone = ([key] + previous).compactMap { values.removeValue(forKey: $0)?.memory }
    values[key] = value
    held += value.memory.count
    most = max(most, held)
    gone.forEach { release($0) }
    trim()
  }

  /// The value that stood there is gone.
  private mutating func release(_ memory: Matrix) {
    held -= memory.count
    spares.append(memory)
    spare += memory.count
  }

  private mutating func trim() {
    while held + spare > most, !spares.isEmpty { spare -= spares.removeFirst().count }
  }
}
