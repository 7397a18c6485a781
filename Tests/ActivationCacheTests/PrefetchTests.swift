import Dispatch
import Tensors
import Testing

@testable import ActivationCache

@Suite struct PrefetchTests {
  let directory: TemporaryDirectory
  let store: HiddenStatesStore
  static let batches = 6

  init() throws {
    directory = try TemporaryDirectory()
    store = try HiddenStatesStore(path: directory.cache, elementType: .bfloat16, threads: 2)
    for batch in 0..<Self.batches {
      try store.write(Self.matrix(batch), key: key(batch: batch))
    }
  }

  static func matrix(_ seed: Int) -> Matrix { hiddenStates(rows: 300, columns: 128, seed: UInt64(seed)) }

  func expectStored(_ key: HiddenStatesKey, seed: Int) throws {
    #expect(
      bitPatterns(try store.matrix(key, rows: 300, columns: 128))
        == roundedBitPatterns(Self.matrix(seed), to: .bfloat16))
  }

  @Test func `a prefetched value is the stored one`() throws {
    for batch in 0..<Self.batches {
      store.prefetch(key(batch: batch + 1))
      try expectStored(key(batch: batch), seed: batch)
    }
  }

  @Test func `values that nobody picks up give way to later ones`() throws {
    for batch in 0..<Self.batches { store.prefetch(key(batch: batch)) }
    for batch in 0..<Self.batches { try expectStored(key(batch: batch), seed: batch) }
  }

  @Test func `a value that is replaced after its prefetch is read anew`() throws {
    store.prefetch(key(batch: 2))
    try store.write(Self.matrix(40), key: key(batch: 2))
    try expectStored(key(batch: 2), seed: 40)
  }

  @Test func `a value that is deleted after its prefetch is missing`() throws {
    store.prefetch(key(batch: 1))
    try store.write(Self.matrix(41), key: key(stage: 1, batch: 1), replacing: [key(batch: 1)])
    #expect(throws: CacheError.missing(key(batch: 1))) { try expectStored(key(batch: 1), seed: 1) }
  }

  @Test func `an error shows when the value is read`() throws {
    store.prefetch(key(stage: 9))
    #expect(throws: CacheError.missing(key(stage: 9))) { try expectStored(key(stage: 9), seed: 0) }
    try store.write(Self.matrix(42), key: key(stage: 9))
    try expectStored(key(stage: 9), seed: 42)
  }

  @Test func `a prefetch that outlives its store does no harm`() throws {
    let directory = try TemporaryDirectory()
    for _ in 0..<20 {
      let store = try HiddenStatesStore(path: directory.cache, elementType: .bfloat16, threads: 2)
      try store.write(Self.matrix(0), key: key())
      store.prefetch(key())
    }
  }

  @Test func `threads may read, prefetch and write at once`() throws {
    let (store, batches) = (self.store, Self.batches)
    let failures = DispatchQueue.concurrentFailures(iterations: 8) { thread in
      for round in 0..<12 {
        let batch = (round + thread) % batches
        store.prefetch(key(batch: (batch + 1) % batches))
        let result = try store.matrix(key(batch: batch), rows: 300, columns: 128)
        guard bitPatterns(result) == roundedBitPatterns(Self.matrix(batch), to: .bfloat16) else {
          throw Failure(operation: "compare", code: Int32(batch))
        }
        try store.write(result, key: key(stream: thread, stage: round + 1))
      }
    }
    #expect(failures == [])
  }
}

extension DispatchQueue {
  /// Runs `body` on several threads and describes what they threw.
  static func concurrentFailures(
    iterations: Int, _ body: @escaping @Sendable (Int) throws -> Void
  ) -> [String] {
    let failures = Locked()
    concurrentPerform(iterations: iterations) { iteration in
      do { try body(iteration) } catch { failures.append("\(error)") }
    }
    return failures.all
  }

  private final class Locked: @unchecked Sendable {
    private let queue = DispatchQueue(label: "failures")
    private var list: [String] = []
    func append(_ failure: String) { queue.sync { list.append(failure) } }
    var all: [String] { queue.sync { list } }
  }
}
