import Tensors
import Testing

@testable import ActivationCache

@Suite struct DamageTests {
  let directory: TemporaryDirectory
  let store: HiddenStatesStore
  let bytes: [UInt8]

  init() throws {
    directory = try TemporaryDirectory()
    store = try HiddenStatesStore(path: directory.cache, elementType: .bfloat16, threads: 1)
    try store.write(hiddenStates(rows: 40, columns: 50, seed: 1), key: key())
    bytes = try #require(try store.storedBytes(key()))
  }

  func isCorrupt(_ damaged: [UInt8]) throws -> Bool {
    try store.replaceStoredBytes(key(), with: damaged)
    do {
      _ = try store.matrix(key(), rows: 40, columns: 50)
      return false
    } catch CacheError.corrupt {
      return true
    }
  }

  @Test func `a flipped bit in any byte is detected`() throws {
    for index in bytes.indices {
      var damaged = bytes
      damaged[index] ^= 1 << UInt8(index % 8)
      #expect(try isCorrupt(damaged), "byte \(index)")
    }
    #expect(try !isCorrupt(bytes))
  }

  @Test func `every truncation is detected, and so is a byte too many`() throws {
    for count in 0..<bytes.count { #expect(try isCorrupt(Array(bytes[..<count])), "\(count) bytes") }
    #expect(try isCorrupt(bytes + [0]))
  }

  @Test func `dimensions that no memory could hold are refused`() throws {
    var damaged = bytes
    for index in 8..<24 { damaged[index] = 0x7F }
    #expect(try isCorrupt(damaged))
    damaged.replaceSubrange(8..<24, with: [UInt8](repeating: 0xFF, count: 16))
    #expect(try isCorrupt(damaged))
  }

  @Test func `the damaged byte is named`() throws {
    var damaged = bytes
    damaged[damaged.count - 1] ^= 0x80
    try store.replaceStoredBytes(key(), with: damaged)
    #expect {
      try store.matrix(key(), rows: 40, columns: 50)
    } throws: { error in
      guard case CacheError.corrupt(key(), let byte, _) = error else { return false }
      return byte > StoredValue.headerBytes && byte < bytes.count
    }
  }

  @Test func `equal blocks hash equally and the length counts`() {
    func hash(_ bytes: [UInt8]) -> UInt64 { unsafe bytes.withUnsafeBytes { unsafe blockHash($0) } }
    for count in 0..<80 {
      let zeros = [UInt8](repeating: 0, count: count)
      #expect(hash(zeros) == hash(zeros))
      #expect(hash(zeros) != hash(zeros + [0]))
    }
    let words = (0..<64).map { UInt8($0) }
    let swapped = Array(words[32...]) + Array(words[..<32])
    #expect(hash(words) != hash(swapped))
  }
}
