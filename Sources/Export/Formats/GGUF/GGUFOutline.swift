import Checkpoint
import Quantization

/// What a GGUF file will hold: its types and its size, before any work.
public struct GGUFOutline: Codable, Sendable, Equatable {
  /// What is of one type.
  public struct Share: Codable, Sendable, Equatable {
    public var type: String
    public var tensors: Int
    public var weights: Int
    public var bytes: Int
  }

  /// A tensor whose rows are no whole blocks of the type that it would have.
  public struct Fallback: Codable, Sendable, Equatable {
    public var tensor: String
    public var wanted: String
    public var type: String
  }

  /// What the file is named after, and whether it is pure.
  public var file: String
  public var isPure: Bool
  /// The most bytes first.
  public var shares: [Share]
  public var fallbacks: [Fallback]
  /// Of all tensors.
  public var bytes: Int
  /// About what they would be if every row were whole blocks.
  public var bytesWithoutFallbacks: Int

  /// - Parameters:
  ///   - chosen: the types of tensors that are quantized, by the names that they have in the file
  public init(_ mix: GGUFMix, of header: GGUFHeader, chosen: [String: GGUFTensorType]) {
    file = mix.title
    isPure = mix.isPure
    let choices = Dictionary(uniqueKeysWithValues: mix.choices(for: header).map { ($0.tensor, $0) })
    var shares: [String: Share] = [:]
    fallbacks = []
    (bytes, bytesWithoutFallbacks) = (0, 0)
    for tensor in header.tensors {
      let type = chosen[tensor.name] ?? tensor.type
      let weights = tensor.shape.reduce(1, *)
      let size = weights / type.blockSize * type.blockBytes
      var share = shares[type.name] ?? Share(type: type.name, tensors: 0, weights: 0, bytes: 0)
      share.tensors += 1
      share.weights += weights
      share.bytes += size
      shares[type.name] = share
      bytes += size
      bytesWithoutFallbacks += size
      // A rule may have chosen another one, or none.
      // What was chosen by measurement stands for nothing else.
      guard mix.averageBits == nil, let choice = choices[tensor.name], choice.isFallback,
        chosen[tensor.name] == choice.type || chosen[tensor.name] == nil && choice.type == .float16
      else { continue }
      fallbacks.append(Fallback(tensor: tensor.name, wanted: choice.wanted.name, type: type.name))
      let wanted = Double(weights) / Double(choice.wanted.blockSize) * Double(choice.wanted.blockBytes)
      bytesWithoutFallbacks += Int(wanted) - size
    }
    self.shares = shares.values.sorted { ($1.bytes, $0.type) < ($0.bytes, $1.type) }
  }

  /// For people: `166 × Q5_0, 15 × Q8_0, … · 6.17 bits per weight`.
  public var description: String { Self.description(of: shares) }

  /// The same of a file as it is.
  public static func description(of header: GGUFHeader) -> String {
    description(of: GGUFOutline(GGUFMix(.q8_0), of: header, chosen: [:]).shares)
  }

  private static func description(of shares: [Share]) -> String {
    let weights = shares.reduce(0) { $0 + $1.weights }
    let bits = shares.reduce(0) { $0 + 8 * $1.bytes }
    let hundredths = Int((100 * Double(bits) / Double(max(weights, 1))).rounded())
    let fraction = String(String(100 + hundredths % 100).dropFirst())
    return shares.map { "\($0.tensors) × \($0.type)" }.joined(separator: ", ")
      + " · \(hundredths / 100).\(fraction) bits per weight"
  }

  /// What is to be told where fallbacks make the file larger by more than a tenth.
  public var warning: String? {
    let growth = Double(bytes) / Double(max(bytesWithoutFallbacks, 1)) - 1
    guard growth > 0.1, let first = fallbacks.first else { return nil }
    return
      "\(fallbacks.count) tensors are no whole blocks of their type and got a larger one, \(first.tensor) "
      + "\(first.type) for \(first.wanted): the file is \(Int((growth * 100).rounded())) % larger than \(file) is elsewhere"
  }
}
