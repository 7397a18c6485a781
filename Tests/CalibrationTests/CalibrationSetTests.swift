import Foundation
import Testing

@testable import Calibration

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

  /// All of it as it is cut first, and then of the cut in the middle.
  @Test func `a text that has too few sequences is cut at other places, too`() throws {
    let text = TokenRows(name: "text", rows: [Array(0..<43)])
    let set = try CalibrationSet(drawing: 9, spare: 4, sequenceLength: 8, from: text, seed: 2)
    let firsts = (0..<9).map { Int(set.tokens(of: $0..<$0 + 1)[0]) }
    #expect(
      firsts.prefix(5) == [0, 8, 16, 24, 32] && Set(firsts.suffix(4)).isSubset(of: [4, 12, 20, 28, 36]))
    #expect(
      (0..<9).allSatisfy { index in
        set.tokens(of: index..<index + 1) == (firsts[index]..<firsts[index] + 8).map { Int32($0 % 40) }
      })
    #expect(set.overlapping == 4 && set.spare.isEmpty)
    #expect(
      set.warning?.contains("9 sequences of 8 tokens are drawn of a calibration text that has 5") == true,
      "\(set.warning ?? "")")
    let all = try CalibrationSet(drawing: 20, sequenceLength: 8, from: text, seed: 2)
    let starts = (0..<20).map { Int(all.tokens(of: $0..<$0 + 1)[0]) }
    #expect(Set(starts).count == 20 && starts.suffix(10) == [2, 10, 18, 26, 34, 6, 14, 22, 30, 38])
    let enough = try CalibrationSet(drawing: 4, spare: 4, sequenceLength: 8, from: text, seed: 2)
    #expect(enough.overlapping == 0 && enough.warning == nil && enough.spare.count == 8)
  }

  /// The last one of a cut has the beginning of the text behind its end.
  @Test(arguments: [4, 5, 6, 9, 20])
  func `sequences that overlap no other ones are the first ones`(_ samples: Int) throws {
    let text = TokenRows(name: "text", rows: [Array(0..<43)])
    let set = try CalibrationSet(drawing: samples, sequenceLength: 8, from: text, seed: 2)
    #expect(set.distinct == min(samples, 5))
    #expect(Set(set.tokens(of: 0..<set.distinct)).count == 8 * set.distinct)
    for sample in set.distinct..<samples {
      #expect(!Set(set.tokens(of: sample..<sample + 1)).isDisjoint(with: set.tokens(of: 0..<set.distinct)))
    }
  }

  @Test func `so they are of several sources, one of which has too few`() throws {
    let sources = try #require(CalibrationSources(["long.txt", "short.txt"]))
    let rows = [0..<40, 1_000..<1_012].map { (ids: Range<Int32>) in
      TokenRows(name: "\(ids.lowerBound)", rows: [Array(ids)])
    }
    let set = try CalibrationSet(drawing: 12, sequenceLength: 4, from: sources, rows: rows, seed: 5)
    #expect(set.overlapping == 3 && set.distinct == 9)
    #expect(Set(set.tokens(of: 0..<9)).count == 4 * 9)
    let isOfLong = (0..<12).map { set.tokens(of: $0..<$0 + 1)[0] < 1_000 }
    // In proportion for as long as the short one has some that do not.
    #expect(isOfLong.prefix(6) == [true, false, true, false, true, false])
    #expect(isOfLong.suffix(6) == [true, true, true, false, false, false])
  }

  @Test func `rows are one text where it is cut at other places`() throws {
    let set = try CalibrationSet(drawing: 6, sequenceLength: 4, from: source, seed: 9)
    #expect(set.tokens.prefix(12) == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13])
    #expect(set.tokens.suffix(12) == [2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 0, 1])
    #expect(set.overlapping == 3)
  }

  @Test func `too few tokens are refused with their number`() throws {
    let error = try #require(throws: CalibrationError.self) {
      try CalibrationSet(drawing: 13, sequenceLength: 4, from: source, seed: 0)
    }
    #expect(
      error
        == .tooFewTokens(available: 17, sequences: 12, samples: 13, sequenceLength: 4, source: "rows"))
    #expect("\(error)".contains("17 tokens"))
    #expect("\(error)".contains("--samples 12"))
    #expect(error.exitCode == 65)
    // Rows that are all shorter are not made one text.
    #expect(throws: CalibrationError.self) {
      try CalibrationSet(drawing: 1, sequenceLength: 12, from: source, seed: 0)
    }
  }

  @Test(arguments: [[], [[]], [[], []]] as [[[Int32]]])
  func `no tokens at all are refused`(_ rows: [[Int32]]) {
    let source = TokenRows(name: "nothing", rows: rows)
    #expect(throws: CalibrationError.empty(source: "nothing")) {
      try CalibrationSet(drawing: 1, sequenceLength: 4, from: source, seed: 0)
    }
  }

  // MARK: Several sources

  @Test func `each source gives its share, and so does every beginning of the set`() throws {
    let sources = try #require(CalibrationSources(["a.txt:3", "b.txt"]))
    let rows = [0, 1_000].map { first in
      TokenRows(name: "\(first)", rows: [Array(first..<first + 100)])
    }
    let set = try CalibrationSet(drawing: 16, sequenceLength: 4, from: sources, rows: rows, seed: 5)
    let isFromFirst = (0..<16).map { set.tokens(of: $0..<$0 + 1)[0] < 1_000 }
    #expect(isFromFirst.count(where: \.self) == 12)
    for length in 1...16 {
      let count = isFromFirst.prefix(length).count(where: \.self)
      #expect(abs(Double(count) - 0.75 * Double(length)) <= 1, "\(length)")
    }
    #expect(set.idRange == 0...1_099)
    // Each draws as it would alone.
    let alone = try CalibrationSet(drawing: 12, sequenceLength: 4, from: rows[0], seed: 5)
    #expect((0..<16).filter { isFromFirst[$0] }.flatMap { set.tokens(of: $0..<$0 + 1) } == alone.tokens)
  }

  @Test(arguments: [
    (["a"], 7, [7]), (["a", "b"], 7, [4, 3]), (["a", "b", "c"], 128, [43, 43, 42]),
    (["a:1", "b:1000"], 16, [0, 16]),
    (["a:0.5", "b:0.25", "c:0.25"], 8, [4, 2, 2]),
  ])
  func `shares are whole and come to all samples`(_ texts: [String], _ samples: Int, _ shares: [Int]) throws {
    #expect(try #require(CalibrationSources(texts)).shares(of: samples) == shares)
  }

  @Test func `a source that has less than its share is named`() throws {
    let sources = try #require(CalibrationSources(["a.txt", "b.txt"]))
    let rows = [100, 7].map { TokenRows(name: "file-\($0)", rows: [Array(0..<Int32($0))]) }
    let error = try #require(throws: CalibrationError.self) {
      try CalibrationSet(drawing: 10, sequenceLength: 4, from: sources, rows: rows, seed: 0)
    }
    #expect(error == .unlikeShare(source: "file-7", share: 5, samples: 10, available: 4))
    let light = try #require(CalibrationSources(["a.txt:100", "b.txt"]))
    let none = try #require(throws: CalibrationError.self) {
      try CalibrationSet(drawing: 4, sequenceLength: 4, from: light, rows: rows, seed: 0)
    }
    #expect(
      none == .unlikeShare(source: "file-7", share: 0, samples: 4, available: 4)
        && "\(none)".contains("leave it out"))
  }

  @Test func `a source is written as it is read`() throws {
    for text in ["prose.txt", "/a/b.jsonl:2", "c:0.25", "od:d:1"] {
      #expect(CalibrationSources.File(text)?.description == (text == "od:d:1" ? "od:d" : text))
    }
    // A name that ends like a weight.
    let odd = CalibrationSources.File(path: "x:7")
    #expect(odd.description == "x:7:1" && CalibrationSources.File(odd.description) == odd)
    let mix = try #require(CalibrationSources(["a", "b:2"]))
    for sources: CalibrationSources in [mix, "a", CalibrationSources([])] {
      let bytes = try JSONEncoder().encode(sources)
      #expect(try JSONDecoder().decode(CalibrationSources.self, from: bytes) == sources)
    }
    // As orders have it that were written before there were several.
    #expect(try JSONDecoder().decode(CalibrationSources.self, from: Data(#""/a.txt""#.utf8)) == "/a.txt")
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

  /// Those that layers are solved for stay the same.
  @Test func `spare sequences are others of the same source`() throws {
    let rows = TokenRows(name: "text", rows: [(0..<1_000).map { Int32($0) }])
    let plain = try CalibrationSet(drawing: 6, sequenceLength: 50, from: rows, seed: 3)
    let set = try CalibrationSet(drawing: 6, spare: 5, sequenceLength: 50, from: rows, seed: 3)
    #expect(set.tokens == plain.tokens && plain.spare.isEmpty)
    #expect(set.spare.count == 5 * 50 && Set(set.spare).isDisjoint(with: set.tokens))
    #expect(set.sequences.spare.map(\.count) == Array(repeating: 50, count: 5))
    let most = try CalibrationSet(drawing: 6, spare: 100, sequenceLength: 50, from: rows, seed: 3)
    #expect(Set(most.tokens + most.spare).count == 1_000)
    let sources = try #require(CalibrationSources(["one:3", "two"]))
    let both = try CalibrationSet(
      drawing: 8, spare: 4, sequenceLength: 50, from: sources, rows: [rows, rows], seed: 3)
    #expect(both.spare.count == 4 * 50)
  }
}
