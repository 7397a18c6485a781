/// The keys of a file that begin with its architecture.
struct GGUFKeys {
  let header: GGUFHeader
  let architecture: String
  /// What the angles of rotary positions are divided by, where the file has that.
  let rotaryDivisors: [Float]?
  /// The lists of flags among all keys.
  let flags: [String: [Bool]]

  func error(_ reason: GGUFError.Reason) -> GGUFError { GGUFError(file: header.file, reason: reason) }

  func number(_ key: String) throws(GGUFError) -> JSONValue? {
    switch header["\(architecture).\(key)"] {
    case nil: return nil
    case .integer(let value): return .integer(value)
    case .number(let value): return .number(value)
    default: throw error(.badKey("\(architecture).\(key)"))
    }
  }

  func has(_ key: String) -> Bool { header["\(architecture).\(key)"] != nil }

  func isList(_ key: String) -> Bool {
    if case .array = header["\(architecture).\(key)"] { true } else { false }
  }

  func required(_ key: String) throws(GGUFError) -> JSONValue {
    guard let value = try number(key) else { throw error(.missingKey("\(architecture).\(key)")) }
    return value
  }

  /// A positive whole number.
  func count(_ key: String) throws(GGUFError) -> Int {
    guard let value = try required(key).int, value > 0 else { throw error(.badKey("\(architecture).\(key)")) }
    return value
  }

  /// The layers of the model; those that predict further tokens stand behind them.
  func layers() throws(GGUFError) -> Int {
    let further = try number("nextn_predict_layers")?.int ?? 0
    let count = try count("block_count")
    // Every layer has tensors.
    guard count <= header.tensors.count, (0..<count).contains(further) else {
      throw error(.badKey("\(architecture).block_count"))
    }
    return count - further
  }

  func flag(_ key: String) throws(GGUFError) -> Bool? {
    switch header["\(architecture).\(key)"] {
    case nil: return nil
    case .flag(let value): return value
    default: throw error(.badKey("\(architecture).\(key)"))
    }
  }

  func hasTensor(_ name: String) -> Bool { shape(name) != nil }

  func shape(_ name: String) -> [Int]? { header.tensors.first { $0.name == name }?.shape }

  /// Of a head; 0 where it is not said.
  var headDimension: Double {
    func value(_ key: String) -> Double? { (try? number(key))??.double }
    if let own = value("attention.key_length") { return own }
    guard let width = value("embedding_length"), let heads = value("attention.head_count"), heads > 0 else {
      return 0
    }
    return width / heads
  }

  /// The factor of q·k that heads have by themselves.
  var headScale: Double { headDimension > 0 ? 1 / headDimension.squareRoot() : 1 }

  /// The square of what Gemma divides q·k by, which no key says: the width of a head, but for the largest model, whose
  /// heads are wider than their share of the hidden state.
  func gemmaScalar(largestLayers: Int) -> Double {
    let layers = ((try? number("block_count")) ?? nil)?.int
    let width = ((try? number("embedding_length")) ?? nil)?.double ?? 0
    let heads = ((try? number("attention.head_count")) ?? nil)?.double ?? 0
    return layers == largestLayers && heads > 0 ? width / heads : headDimension
  }
}
