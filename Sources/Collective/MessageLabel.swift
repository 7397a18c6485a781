/// What a message is, so that a rank that receives another than it expects does not take it for that.
public struct MessageLabel: Sendable, Hashable, CustomStringConvertible {
  public enum Kind: UInt32, Sendable, CaseIterable {
    // What the couriers tell one another.
    case alive, ended, failed
    // What the ranks are, and what the first one knows.
    case opening, decision, tokens
    /// What a batch brings to a stage.
    case input
    /// What a batch of the original model lacks there.
    case drift
    /// A part of a Gram matrix.
    case gram
    /// What a correction is for some rows of a linear.
    case correction
    /// Rows of a linear between a solver's steps.
    case rows
    /// A linear that is done.
    case linear
    /// What an expert makes of its tokens.
    case output
    /// What each rank has of something.
    case holdings
    /// A batch's states.
    case states
    case report
  }

  public let kind: Kind
  public let layer: Int
  public let stage: Int
  /// Of the batch, the part, the expert.
  public let number: Int

  public init(_ kind: Kind, layer: Int = -1, stage: Int = -1, number: Int = -1) {
    self.kind = kind
    self.layer = layer
    self.stage = stage
    self.number = number
  }

  public var description: String {
    let number = number < 0 ? "" : " \(number)"
    let place = layer < 0 ? "" : " of layer \(layer)" + (stage < 0 ? "" : ", stage \(stage)")
    return "\(kind)\(number)\(place)"
  }
}

/// What goes ahead of a message's bytes.
struct MessageHeader: Equatable {
  static let byteCount = 48
  private static let magic: UInt64 = 0x514E_4152_5153_4745

  let label: MessageLabel
  let byteCount: Int

  init(_ label: MessageLabel, byteCount: Int) {
    self.label = label
    self.byteCount = byteCount
  }

  var words: [UInt64] {
    [Self.magic, UInt64(label.kind.rawValue)]
      + [label.layer, label.stage, label.number, byteCount].map { UInt64(bitPattern: Int64($0)) }
  }

  /// - Returns: nil for words that are no header
  init?(words: [UInt64]) {
    guard words.count == Self.byteCount / 8, words[0] == Self.magic, let number = UInt32(exactly: words[1]),
      let kind = MessageLabel.Kind(rawValue: number)
    else { return nil }
    let numbers = words[2...].map { Int(Int64(bitPattern: $0)) }
    guard numbers[3] >= 0 else { return nil }
    label = MessageLabel(kind, layer: numbers[0], stage: numbers[1], number: numbers[2])
    byteCount = numbers[3]
  }
}
