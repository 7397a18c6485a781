import Tensors
import Testing

@testable import ActivationCache

@Suite struct HiddenStatesStoreTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  func store(
    _ elementType: DType = .bfloat16, level: Int = HiddenStatesStore.defaultCompressionLevel,
    threads: Int = 2
  ) throws -> HiddenStatesStore {
    try HiddenStatesStore(
      path: directory.cache, elementType: elementType, compressionLevel: level, threads: threads)
  }

  @Test(arguments: [DType.float32, .float16, .bfloat16], [(1, 1), (3, 7), (0, 5), (700, 900)])
  func `what is read is what was written, rounded to the element type`(
    elementType: DType, shape: (rows: Int, columns: Int)
  ) throws {
    let store = try store(elementType)
    let matrix = hiddenStates(rows: shape.rows, columns: shape.columns, seed: 1)
    try store.write(matrix, key: key())
    let result = try store.matrix(key(), rows: shape.rows, columns: shape.columns)
    #expect(bitPatterns(result) == roundedBitPatterns(matrix, to: elementType))
  }

  @Test(arguments: [DType.float32, .float16, .bfloat16])
  func `zeros, subnormals, ties and the largest values survive to the bit`(elementType: DType) throws {
    let largest: Float = elementType == .float16 ? 65_519.996 : 3.38e38
    let values: [Float] = [
      0, -0.0, .leastNonzeroMagnitude, -.leastNormalMagnitude / 8, 6e-8, 3e-8, 1.00390625, 1.01171875,
      -1.0009765625, largest, -largest, 0.1,
    ]
    let matrix = Matrix(rows: 3, columns: 4, values)
    let store = try store(elementType)
    try store.write(matrix, key: key())
    #expect(
      bitPatterns(try store.matrix(key(), rows: 3, columns: 4))
        == roundedBitPatterns(matrix, to: elementType))
  }

  @Test(arguments: [-131_072, -256, -1, 1, 3])
  func `every compression level gives the same matrix`(level: Int) throws {
    let store = try store(level: level)
    let matrix = hiddenStates(rows: 64, columns: 576, seed: 2)
    try store.write(matrix, key: key())
    #expect(
      bitPatterns(try store.matrix(key(), rows: 64, columns: 576))
        == roundedBitPatterns(matrix, to: .bfloat16))
  }

  @Test func `the number of threads changes no stored byte`() throws {
    let matrix = hiddenStates(rows: 2000, columns: 576, seed: 3)
    var stored: [[UInt8]?] = []
    for threads in [1, 2, 5] {
      let store = try store(threads: threads)
      // Twice, so that contexts that have already worked are compared too.
      try store.write(matrix, key: key(batch: 1))
      try store.write(matrix, key: key())
      stored.append(try store.storedBytes(key()))
      #expect(
        bitPatterns(try store.matrix(key(), rows: 2000, columns: 576))
          == roundedBitPatterns(matrix, to: .bfloat16))
    }
    #expect(stored[0] != nil)
    #expect(stored[0] == stored[1])
    #expect(stored[0] == stored[2])
  }

  @Test(arguments: [DType.float32, .float16, .bfloat16], [(1, 1), (3, 7), (0, 5), (700, 900)])
  func `what is held in memory is what the file would give back`(
    elementType: DType, shape: (rows: Int, columns: Int)
  ) throws {
    let store = try store(elementType)
    let matrix = hiddenStates(rows: shape.rows, columns: shape.columns, seed: 1)
    let expected = roundedBitPatterns(matrix, to: elementType)
    try store.hold(matrix, key: key())
    // Computed with from then on.
    #expect(bitPatterns(matrix) == expected)
    #expect(try store.contains(key()))
    for _ in 0..<2 {
      store.prefetch(key())
      #expect(
        bitPatterns(try store.matrix(key(), rows: shape.rows, columns: shape.columns)) == expected)
    }
    #expect(store.statistics.rawBytesWritten == 0)
    #expect(try store.storedBytes(key()) == nil)
  }

  @Test func `what is held gives way to what replaces it, and the file's values stay`() throws {
    let store = try store()
    let matrix = hiddenStates(rows: 8, columns: 16, seed: 2)
    try store.write(matrix, key: key(stage: 0))
    try store.hold(matrix, key: key(stage: 1))
    try store.hold(matrix, key: key(stage: 2), replacing: [key(stage: 0), key(stage: 1)])
    #expect(try store.contains(key(stage: 0)))
    #expect(try !store.contains(key(stage: 1)))
    try store.removeAll()
    #expect(try !store.contains(key(stage: 2)))
    #expect(throws: CacheError.self) { try store.matrix(key(stage: 2), rows: 8, columns: 16) }
  }

  @Test func `memory that is used again is nobody else's`() throws {
    let store = try store()
    var expected: [HiddenStatesKey: [UInt32]] = [:]
    var number = 0
    func hold(rows: Int, columns: Int, batch: Int, replacing previous: [HiddenStatesKey]) throws
      -> HiddenStatesKey
    {
      number += 1
      let key = key(stage: number, batch: batch)
      let matrix = hiddenStates(rows: rows, columns: columns, seed: UInt64(number))
      try store.hold(matrix, key: key, replacing: previous)
      for key in previous { expected[key] = nil }
      expected[key] = bitPatterns(matrix)
      return key
    }
    // As stages do it, with batches of two sizes: one more slot, which the next stage uses up.
    let rows = [40, 23]
    var residuals = try [0, 1].map { try hold(rows: rows[$0], columns: 48, batch: $0, replacing: []) }
    for width in [48, 128, 48, 128, 30, 200] {
      let others = try [0, 1].map { try hold(rows: rows[$0], columns: width, batch: $0, replacing: []) }
      for (key, bits) in expected {
        let matrix = Matrix(rows: rows[key.batch], columns: bits.count / rows[key.batch])
        try store.read(key, into: matrix)
        #expect(bitPatterns(matrix) == bits, "\(key)")
      }
      residuals = try [0, 1].map {
        try hold(rows: rows[$0], columns: 48, batch: $0, replacing: [residuals[$0], others[$0]])
      }
      #expect(try !store.contains(others[0]))
    }
    #expect(expected.count == 2)
  }

  @Test(arguments: [Float.nan, .infinity, 3.4e38])
  func `what is not sound is not held, and its place is told`(value: Float) throws {
    let store = try store()
    let matrix = hiddenStates(rows: 700, columns: 900, seed: 3)
    try store.hold(matrix, key: key(stage: 0))
    matrix[600, 7] = value
    let error = try #require(throws: CacheError.self) {
      try store.hold(matrix, key: key(stage: 1), replacing: [key(stage: 0)])
    }
    switch error {
    case .notFinite(_, 600, 7, _), .overflow(_, 600, 7, _, _): break
    default: Issue.record("\(error)")
    }
    #expect(try store.contains(key(stage: 0)))
    #expect(try !store.contains(key(stage: 1)))
  }

  @Test func `some of a stream's stages can be deleted, and nothing else is`() throws {
    let store = try store()
    let matrix = hiddenStates(rows: 40, columns: 70, seed: 4)
    let keys = (0..<3).flatMap { stream in
      [0, 1, 2, 300].flatMap { stage in (0..<3).map { key(stream: stream, stage: stage, batch: $0) } }
    }
    for key in keys { try store.write(matrix, key: key) }
    store.prefetch(key(stream: 1, stage: 1, batch: 2))
    try store.removeAll(ofStream: 1, stages: 0..<2)
    for key in keys {
      #expect(try store.contains(key) == !(key.stream == 1 && key.stage < 2), "\(key)")
    }
    #expect(throws: CacheError.self) {
      try store.matrix(key(stream: 1, stage: 1, batch: 2), rows: 40, columns: 70)
    }
    try store.removeAll(ofStream: 1, stages: 0..<0)
    #expect(try store.contains(key(stream: 1, stage: 2)))
    #expect(store.statistics.currentRawBytes == 30 * 40 * 70 * 2)
  }

  @Test func `what is deleted is neither in the file nor in memory`() throws {
    let store = try store()
    let matrix = hiddenStates(rows: 40, columns: 70, seed: 4)
    for batch in 0..<3 {
      try store.write(matrix, key: key(batch: batch))
      try store.hold(matrix, key: key(stage: 1, batch: batch))
    }
    store.prefetch(key(batch: 1))
    for stage in 0..<2 { try store.remove(key(stage: stage, batch: 1)) }
    try store.remove(key(stage: 2))
    for stage in 0..<2 {
      for batch in 0..<3 { #expect(try store.contains(key(stage: stage, batch: batch)) == (batch != 1)) }
      #expect(throws: CacheError.missing(key(stage: stage, batch: 1))) {
        try store.matrix(key(stage: stage, batch: 1), rows: 40, columns: 70)
      }
    }
    try store.removeAll(ofStream: 0, stages: 1..<Int.max)
    for batch in [0, 2] {
      #expect(try store.contains(key(batch: batch)))
      #expect(try !store.contains(key(stage: 1, batch: batch)))
    }
  }

  @Test func `hidden states shrink by a quarter and statistics say so`() throws {
    let store = try store()
    let matrix = hiddenStates(rows: 1000, columns: 576, seed: 4)
    try store.write(matrix, key: key(stage: 0))
    try store.write(matrix, key: key(stage: 1), replacing: [key(stage: 0)])
    _ = try store.matrix(key(stage: 1), rows: 1000, columns: 576)
    let statistics = store.statistics
    let rawBytes = 1000 * 576 * 2
    #expect(statistics.rawBytesWritten == 2 * rawBytes)
    #expect(statistics.currentRawBytes == rawBytes)
    #expect(statistics.currentCompressedBytes * 2 == statistics.compressedBytesWritten)
    #expect(statistics.currentCompressedBytes == (try store.storedBytes(key(stage: 1)))?.count)
    #expect(statistics.currentCompressedBytes * 4 < rawBytes * 3)
    #expect(statistics.peakFileBytes >= statistics.currentCompressedBytes)
    #expect(statistics.secondsCompressing > 0)
    #expect(statistics.secondsCommitting > 0)
    #expect(statistics.secondsDecompressing > 0)
  }

  @Test func `a missing key is named`() throws {
    let store = try store()
    #expect(throws: CacheError.missing(key(stage: 3, batch: 4))) {
      try store.matrix(key(stage: 3, batch: 4), rows: 1, columns: 1)
    }
    #expect("\(CacheError.missing(key(stage: 3, batch: 4)))".contains("stream 0, stage 3, batch 4"))
  }

  @Test func `another shape than the stored one is refused`() throws {
    let store = try store()
    try store.write(hiddenStates(rows: 4, columns: 6, seed: 5), key: key())
    let expected = CacheError.shapeMismatch(
      key(), storedRows: 4, storedColumns: 6, wantedRows: 6, wantedColumns: 4)
    #expect(throws: expected) { try store.matrix(key(), rows: 6, columns: 4) }
    store.prefetch(key())
    #expect(throws: expected) { try store.matrix(key(), rows: 6, columns: 4) }
  }

  @Test func `the next stage's value replaces the previous one`() throws {
    let store = try store()
    let matrix = hiddenStates(rows: 4, columns: 6, seed: 6)
    try store.write(matrix, key: key(stage: 0))
    try store.write(matrix, key: key(stage: 1), replacing: [key(stage: 0)])
    #expect(try store.storedBytes(key(stage: 0)) == nil)
    #expect(try store.storedBytes(key(stage: 1)) != nil)
  }

  @Test func `the file stays near one layer's size over twenty layers`() throws {
    let store = try store()
    let batches = 24
    var largestLayer = 0
    for layer in 0..<20 {
      for batch in 0..<batches {
        // Value sizes differ from layer to layer and from batch to batch, as they do in a model.
        let matrix = hiddenStates(
          rows: 96 + (layer * 7 + batch * 3) % 11, columns: 512, seed: UInt64(layer % 3))
        let previous = layer > 0 ? [key(stage: layer - 1, batch: batch)] : []
        try store.write(matrix, key: key(stage: layer, batch: batch), replacing: previous)
      }
      largestLayer = max(largestLayer, store.statistics.currentCompressedBytes)
    }
    #expect(Double(store.statistics.peakFileBytes) < 1.3 * Double(largestLayer))
  }

  @Test(arguments: [DType.float32, .float16, .bfloat16], [Float.nan, .infinity, -.infinity])
  func `an activation that is not finite is named`(elementType: DType, value: Float) throws {
    let store = try store(elementType)
    let matrix = hiddenStates(rows: 1000, columns: 300, seed: 8)
    matrix[997, 3] = .nan
    matrix[996, 299] = value
    let expected = CacheError.notFinite(key(), row: 996, column: 299, value: "\(value)")
    #expect(throws: expected) { try store.write(matrix, key: key()) }
    #expect(try store.storedBytes(key()) == nil)
  }

  @Test(arguments: [(DType.float16, Float(65_520)), (.bfloat16, 3.4e38)])
  func `a value beyond the element type's range is named`(elementType: DType, value: Float) throws {
    let store = try store(elementType)
    let matrix = hiddenStates(rows: 10, columns: 30, seed: 9)
    matrix[7, 4] = -value
    let expected = CacheError.overflow(key(), row: 7, column: 4, value: -value, elementType: elementType)
    #expect(throws: expected) { try store.write(matrix, key: key()) }
  }

  @Test func `a failed write leaves the replaced value alone`() throws {
    let store = try store()
    let matrix = hiddenStates(rows: 4, columns: 6, seed: 10)
    try store.write(matrix, key: key(stage: 0))
    matrix[0, 0] = .nan
    #expect(throws: CacheError.self) {
      try store.write(matrix, key: key(stage: 1), replacing: [key(stage: 0)])
    }
    #expect(try store.storedBytes(key(stage: 0)) != nil)
  }

  @Test func `a negative stage is a programmer's error`() async {
    await #expect(processExitsWith: .failure) {
      _ = HiddenStatesKey(stream: 0, stage: -1, batch: 0)
    }
  }

  @Test func `keys sort by stream, then stage, then batch`() {
    let keys = [
      key(), key(batch: 1), key(batch: 255), key(batch: 256), key(stage: 1), key(stage: 300),
      key(stream: 1), key(stream: 1, stage: 70_000, batch: 2),
    ]
    let encoded = keys.map(\.encoded)
    #expect(encoded.allSatisfy { $0.count == 24 })
    for (earlier, later) in zip(encoded, encoded.dropFirst()) {
      #expect(earlier.lexicographicallyPrecedes(later))
    }
  }
}
