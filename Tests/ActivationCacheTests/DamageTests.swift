import Dispatch
import Glibc
import Synchronization
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

  // A page of the map may leave memory and come back from a failing disk at any time, between two looks at it, too.
  @Test(arguments: [DType.bfloat16, .float32])
  func `what changes while it is read is either what was written or detected`(_ elementType: DType) throws {
    let other = try HiddenStatesStore(path: directory.path + "/other", elementType: elementType, threads: 1)
    let expected = hiddenStates(rows: 64, columns: 512, seed: 2)
    try other.write(expected, key: key())
    let bytes = try #require(try other.storedBytes(key()))
    let workers = ChunkWorkers(threads: 1, level: -256, planeCount: elementType.byteWidth)
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 64)
    defer { unsafe memory.deallocate() }
    unsafe memory.copyBytes(from: bytes)
    let isOver = Atomic(false)
    let changes = DispatchGroup()
    nonisolated(unsafe) let changing = unsafe memory
    // A thread of its own: the shared ones may all be busy with other tests.
    DispatchQueue(label: "changes").async(group: changes) {
      var generator = SeededGenerator(state: 3)
      while !isOver.load(ordering: .relaxed) {
        let place = Int.random(in: bytes.indices, using: &generator)
        unsafe changing[place] ^= 64
        usleep(1)
        unsafe changing[place] ^= 64
        usleep(1)
      }
    }
    defer {
      isOver.store(true, ordering: .relaxed)
      changes.wait()
    }
    var outcomes = (sound: 0, corrupt: 0)
    // However seldom the other thread gets its turn.
    for attempt in 0..<1_000_000 {
      if attempt >= 3_000 && outcomes.sound > 0 && outcomes.corrupt > 0 { break }
      do {
        let matrix = try unsafe ValueDecoder.decode(
          UnsafeRawBufferPointer(memory), key: key(), workers: workers
        ) { (rows, columns) throws(CacheError) in
          // Impossible dimensions, which a table that is sound cannot have.
          guard rows == 64, columns == 512 else {
            throw .zstd(operation: "\(rows) × \(columns)", message: "")
          }
          return Matrix(rows: rows, columns: columns)
        }
        try #require(bitPatterns(matrix) == bitPatterns(expected))
        outcomes.sound += 1
      } catch CacheError.corrupt { outcomes.corrupt += 1 }
    }
    #expect(outcomes.sound > 0 && outcomes.corrupt > 0, "\(outcomes)")
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
