import Tensors

/// Token sequences of one length that the layers' inputs are computed from.
public struct CalibrationSet: Sendable {
  public let sequenceLength: Int
  /// Sequences one after the other.
  public let tokens: [Int32]
  /// Other sequences of the source, as far as it had some and they were asked for: text that no layer is solved for.
  public let spare: [Int32]
  /// Of the whole source that they were drawn from: an id that no model of this tokenizer has tells that the source is
  /// another one's, drawn or not.
  public let idRange: ClosedRange<Int32>
  /// Sequences that were cut of text that others were cut of before, as it had too few. They are the last ones.
  public let overlapping: Int

  public var samples: Int { tokens.count / sequenceLength }

  /// The sequences that overlap no other one of these, which are the first ones: what is solved for some of them has not seen
  /// the text of the others. Those that are cut again overlap two of them, and the last one of a cut the text's beginning, as a
  /// ring has it.
  public var distinct: Int { max(0, samples - overlapping) }

  public init(sequenceLength: Int, tokens: [Int32], spare: [Int32] = [], overlapping: Int = 0) {
    self.init(
      sequenceLength: sequenceLength, tokens: tokens, spare: spare, idRange: (tokens + spare).range,
      overlapping: overlapping)
  }

  public init(
    sequenceLength: Int, tokens: [Int32], spare: [Int32] = [], idRange: ClosedRange<Int32>,
    overlapping: Int = 0
  ) {
    precondition(
      tokens.count % sequenceLength == 0 && spare.count % sequenceLength == 0, "sequences have one length")
    self.sequenceLength = sequenceLength
    self.tokens = tokens
    self.spare = spare
    self.idRange = idRange
    self.overlapping = overlapping
  }

  /// What a person is to know of how the sequences were drawn; nil if nothing.
  public var warning: String? {
    guard overlapping > 0 else { return nil }
    return "\(samples) sequences of \(sequenceLength) tokens are drawn of a calibration text that has "
      + "\(samples - overlapping), so that some overlap; more text would be worth more"
  }

  /// Draws sequences from a source: every stretch of `sequenceLength` tokens is drawn at most once, all with
  /// the same chance, and those drawn keep the source's order. Of a source that has fewer all are drawn, and what is missing
  /// from the same text cut at other places.
  /// - Parameter spare: so many others are drawn beside them, or as many as are left of what does not overlap
  /// - Throws: ``CalibrationError/tooFewTokens(available:sequences:samples:sequenceLength:source:)``
  public init(
    drawing samples: Int, spare: Int = 0, sequenceLength: Int, from source: TokenRows, seed: UInt64
  ) throws(CalibrationError) {
    guard source.tokenCount > 0 else { throw .empty(source: source.name) }
    let capacity = source.shiftedWindowCount(length: sequenceLength)
    guard capacity >= samples else {
      throw .tooFewTokens(
        available: source.tokenCount, sequences: capacity, samples: samples, sequenceLength: sequenceLength,
        source: source.name)
    }
    var generator = SplitMix64(seed: seed)
    var (solved, others): ([Int32], [Int32]) = ([], [])
    for shift in TokenRows.shifts(length: sequenceLength) {
      let missing = samples - solved.count / sequenceLength
      guard missing > 0 else { break }
      let windows = source.windows(length: sequenceLength, shiftedBy: shift)
      func tokens(_ drawn: ArraySlice<Int>) -> [Int32] { drawn.sorted().flatMap { Array(windows[$0]) } }
      let order = windows.indices.shuffled(using: &generator)
      solved += tokens(order.prefix(missing))
      // Of a later cut all is text that layers are solved for.
      if shift == 0 { others = tokens(order.dropFirst(missing).prefix(spare)) }
    }
    self.init(
      sequenceLength: sequenceLength, tokens: solved, spare: others, idRange: source.rows.joined().range,
      overlapping: max(0, samples - source.windowCount(length: sequenceLength)))
  }

  /// Sequence by sequence, those that layers are solved for, and the spare ones.
  public var sequences: (solved: [[Int32]], spare: [[Int32]]) {
    func parts(_ tokens: [Int32]) -> [[Int32]] {
      tokens.indices.parts(of: sequenceLength).map { Array(tokens[$0]) }
    }
    return (parts(tokens), parts(spare))
  }

  /// The tokens of some samples, one after the other.
  public func tokens(of samples: Range<Int>) -> [Int32] {
    Array(tokens[samples.lowerBound * sequenceLength..<samples.upperBound * sequenceLength])
  }

  /// Ranges of at most `size` samples that cover the set.
  /// - Parameter boundary: a number of samples that a batch ends at, if it lies within the set
  public func batches(of size: Int, endingAt boundary: Int = 0) -> [Range<Int>] {
    [0..<min(boundary, samples), min(boundary, samples)..<samples].flatMap { part in
      stride(from: part.lowerBound, to: part.upperBound, by: size).map {
        $0..<min($0 + size, part.upperBound)
      }
    }
  }
}

extension Sequence where Element == Int32 {
  /// From the least to the greatest; 0 to 0 of nothing.
  fileprivate var range: ClosedRange<Int32> {
    (self.min() ?? 0)...(self.max() ?? 0)
  }
}

/// Rows of token ids: one row for a text, the stored ones for a token file.
public struct TokenRows: Sendable {
  /// Where they come from, for messages.
  public let name: String
  public let rows: [[Int32]]

  public init(name: String, rows: [[Int32]]) {
    self.name = name
    self.rows = rows
  }

  public var tokenCount: Int { rows.reduce(0) { $0 + $1.count } }

  /// Consecutive stretches of `length` tokens that do not overlap, within each row; what is left over is dropped.
  public func windows(length: Int) -> [ArraySlice<Int32>] {
    precondition(length > 0, "a window holds at least one token")
    return rows.flatMap { row in
      stride(from: 0, through: row.count - length, by: length).map { row[$0..<$0 + length] }
    }
  }

  /// Where a text is cut that has too few windows: as ever, then in their middle, and at both quarters.
  static func shifts(length: Int) -> [Int] {
    [0] + [length / 2, length / 4, length - length / 4].filter { 0 < $0 && $0 < length }
  }

  /// The tokens of ``windows(length:)``, as a ring, cut so much later: as many windows.
  func windows(length: Int, shiftedBy shift: Int) -> [ArraySlice<Int32>] {
    let windows = windows(length: length)
    if shift == 0 { return windows }
    let tokens = Array(windows.joined())
    let ring = Array(tokens[min(shift, tokens.count)...] + tokens.prefix(shift))
    return TokenRows(name: name, rows: [ring]).windows(length: length)
  }

  /// Of ``windows(length:)``.
  func windowCount(length: Int) -> Int { rows.reduce(0) { $0 + $1.count / length } }

  /// With those of all shifts.
  func shiftedWindowCount(length: Int) -> Int {
    windowCount(length: length) * Self.shifts(length: length).count
  }
}

/// Calibration or evaluation tokens that cannot be had.
public enum CalibrationError: Error, Sendable, Equatable, CustomStringConvertible {
  case empty(source: String)
  case tooFewTokens(available: Int, sequences: Int, samples: Int, sequenceLength: Int, source: String)
  /// One of several sources whose weight does not fit what it holds.
  case unlikeShare(source: String, share: Int, samples: Int, available: Int)
  case badTokenFile(source: String, reason: String)
  case tokenizerUnavailable(interpreter: String, reason: String)
  case tokenizerFailed(status: Int32, message: String)

  public var description: String {
    switch self {
    case .empty(let source):
      "\(source): holds no tokens; give a text of the kind that the model will be used on"
    case .tooFewTokens(let available, let sequences, let samples, let length, let source):
      "\(source): holds \(available) tokens, at most \(sequences) sequences of \(length), and \(samples) were asked for; "
        + (sequences > 0
          ? "give more text, or ask for --samples \(sequences) or a shorter --sequence-length"
          : "give more text, or ask for --sequence-length \(available) or less")
    case .unlikeShare(let source, let share, let samples, let available):
      "\(source): its share of \(samples) sequences, by the weights, is \(share), and it holds \(available); "
        + (share == 0
          ? "give it a greater weight, or leave it out"
          : "give more text, or it a smaller weight, or ask for fewer samples")
    case .badTokenFile(let source, let reason):
      "\(source): \(reason); a token file is safetensors with input_ids [samples, sequenceLength], I32 or I64"
    case .tokenizerUnavailable(let interpreter, let reason):
      "cannot start the tokenizer helper with \(interpreter): \(reason); install Python 3 and "
        + "'pip install tokenizers', in a virtual environment say, and set QUANTEASE_PYTHON to its interpreter, or pass "
        + "token ids"
    case .tokenizerFailed(_, let message): "tokenizer: \(message)"
    }
  }

  /// By sysexits(3).
  public var exitCode: Int32 {
    switch self {
    case .empty, .tooFewTokens, .unlikeShare, .badTokenFile: 65
    case .tokenizerUnavailable: 69
    case .tokenizerFailed(let status, _): (64...78).contains(status) ? status : 70
    }
  }
}
