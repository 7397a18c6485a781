import Calibration
import Testing

struct CalibrationSetTests {
  /// Two rows of 0…9 and 10…16.
  private let source = TokenRows(name: "rows", rows: [Array(0..<10), Array(10..<17)])

  @Test func `windows are consecutive, do not overlap and keep within their row`() {
    #expect(source.windows(length: 4).map(Array.init) == [[0, 1, 2, 3], [4, 5, 6, 7], [10, 11, 12, 13]])
    #expect(source.windows(length: 10).map(Array.init) == [Array(0..<10)])
    #expect(source.windows(length: 11).isEmpty)
    #expect(source.windows(length: 1).count == 17)
    #expect(source.tokenCount == 17)
  }

  @Test func `the same seed draws the same sequences, another seed others`() throws {
    let source = TokenRows(name: "text", rows: [Array(0..<1_000)])
    func draw(_ seed: UInt64) throws -> [Int32] {
      try CalibrationSet(drawing: 10, sequenceLength: 10, from: source, seed: seed).tokens
    }
    #expect(try draw(1) == draw(1))
    #expect(try draw(1) != draw(2))
  }

  @Test(arguments: 0..<20 as Range<UInt64>)
  func `sequences are drawn once each and keep the source's order`(_ seed: UInt64) throws {
    let source = TokenRows(name: "text", rows: [Array(0..<205)])
    let set = try CalibrationSet(drawing: 7, sequenceLength: 10, from: source, seed: seed)
    #expect(set.samples == 7)
    let first = stride(from: 0, to: 70, by: 10).map { set.tokens[$0] }
    #expect(first.allSatisfy { $0 % 10 == 0 && $0 < 200 })
    #expect(zip(first, first.dropFirst()).allSatisfy { $0 < $1 })
    #expect(set.tokens(of: 3..<4) == Array(first[3]..<first[3] + 10))
  }

  @Test func `every sequence has a chance to be drawn`() throws {
    let source = TokenRows(name: "text", rows: [Array(0..<8)])
    var counts = [Int32: Int]()
    for seed in 0..<400 as Range<UInt64> {
      let set = try CalibrationSet(drawing: 2, sequenceLength: 2, from: source, seed: seed)
      for token in [set.tokens[0], set.tokens[2]] { counts[token, default: 0] += 1 }
    }
    // 800 draws of four sequences: each is expected 200 times, with a standard deviation of 10.
    #expect(counts.keys.sorted() == [0, 2, 4, 6])
    #expect(counts.values.allSatisfy { (150...250).contains($0) }, "\(counts)")
  }

  @Test func `all sequences can be drawn`() throws {
    let set = try CalibrationSet(drawing: 3, sequenceLength: 4, from: source, seed: 9)
    #expect(set.tokens == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13])
  }

  @Test func `too few tokens are refused with their number`() throws {
    let error = try #require(throws: CalibrationError.self) {
      try CalibrationSet(drawing: 4, sequenceLength: 4, from: source, seed: 0)
    }
    #expect(
      error
        == .tooFewTokens(available: 17, sequences: 3, samples: 4, sequenceLength: 4, source: "rows"))
    #expect("\(error)".contains("17 tokens"))
    #expect("\(error)".contains("--samples 3"))
    #expect(error.exitCode == 65)
  }

  @Test(arguments: [[], [[]], [[], []]] as [[[Int32]]])
  func `no tokens at all are refused`(_ rows: [[Int32]]) {
    let source = TokenRows(name: "nothing", rows: rows)
    #expect(throws: CalibrationError.empty(source: "nothing")) {
      try CalibrationSet(drawing: 1, sequenceLength: 4, from: source, seed: 0)
    }
  }

  @Test func `batches cover the samples in order, the last one shorter`() {
    let set = CalibrationSet(sequenceLength: 2, tokens: Array(0..<14))
    #expect(set.batches(of: 3) == [0..<3, 3..<6, 6..<7])
    #expect(set.batches(of: 7) == [0..<7])
    #expect(set.batches(of: 100) == [0..<7])
    #expect(set.batches(of: 3, endingAt: 4) == [0..<3, 3..<4, 4..<7])
    #expect(set.batches(of: 3, endingAt: 7) == [0..<3, 3..<6, 6..<7])
    #expect(set.tokens(of: 6..<7) == [12, 13])
  }
}
