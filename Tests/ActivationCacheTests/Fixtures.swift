import Glibc
import Tensors

@testable import ActivationCache

/// A directory that goes with its content when the last reference goes.
final class TemporaryDirectory: Sendable {
  let path: String

  init() throws {
    let parent = unsafe getenv("TMPDIR").map { unsafe String(cString: $0) } ?? "/tmp"
    var template = Array("\(parent)/activation-cache-XXXXXX".utf8CString)
    guard unsafe mkdtemp(&template) != nil else { throw Failure(operation: "mkdtemp", code: errno) }
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  deinit {
    for name in ["cache.mdb", "cache.mdb-lock", "other"] { unsafe unlink("\(path)/\(name)") }
    unsafe rmdir(path)
  }

  var cache: String { path + "/cache.mdb" }
}

struct Failure: Error {
  var operation: String
  var code: Int32
}

/// SplitMix64: the same numbers on every machine.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }
}

/// Hidden states as models have them: bell-shaped, a scale per channel, a few channels far larger.
func hiddenStates(rows: Int, columns: Int, seed: UInt64) -> Matrix {
  var generator = SeededGenerator(state: seed)
  let scales = (0..<columns).map { column -> Float in
    column % 97 == 5 ? 200 : Float.random(in: 0.2..<3, using: &generator)
  }
  let matrix = Matrix(rows: rows, columns: columns)
  for row in 0..<rows {
    for column in 0..<columns {
      let sum = (0..<4).reduce(Float(0)) { sum, _ in sum + Float.random(in: -1..<1, using: &generator) }
      matrix[row, column] = sum * scales[column]
    }
  }
  return matrix
}

func bitPatterns(_ matrix: Matrix) -> [UInt32] { matrix.elements.map(\.bitPattern) }

func roundedBitPatterns(_ matrix: Matrix, to elementType: DType) -> [UInt32] {
  matrix.elements.map { $0.rounded(to: elementType).bitPattern }
}

func key(stream: Int = 0, stage: Int = 0, batch: Int = 0) -> HiddenStatesKey {
  HiddenStatesKey(stream: stream, stage: stage, batch: batch)
}

extension HiddenStatesStore {
  func matrix(_ key: HiddenStatesKey, rows: Int, columns: Int) throws -> Matrix {
    let matrix = Matrix(rows: rows, columns: columns)
    try read(key, into: matrix)
    return matrix
  }

  /// The value of `key` as it is stored, or nil.
  func storedBytes(_ key: HiddenStatesKey) throws -> [UInt8]? {
    try unsafe environment.withValue(of: key) { unsafe $0.map { unsafe [UInt8]($0) } }
  }

  func replaceStoredBytes(_ key: HiddenStatesKey, with bytes: [UInt8]) throws {
    try environment.write { (transaction) throws(CacheError) in
      try unsafe transaction.put(key, count: bytes.count) { unsafe $0.copyBytes(from: bytes) }
    }
  }
}
