import Checkpoint

/// The types of a GGUF file's tensors, as llama-quantize chooses them for a file that it is given an importance matrix for.
///
/// A pure function of the source's header. Counters advance in the order in which llama.cpp visits tensors: by layer, and
/// there by name.
/// - SeeAlso: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp
public struct GGUFMix: Sendable, Hashable {
  /// The files that there are, by llama.cpp's names.
  public enum Name: String, CaseIterable, Codable, Sendable {
    case q4_0 = "Q4_0"
    case q4_1 = "Q4_1"
    case q5_0 = "Q5_0"
    case q5_1 = "Q5_1"
    case q8_0 = "Q8_0"
    case q2_K = "Q2_K"
    case q2_K_S = "Q2_K_S"
    case q3_K_S = "Q3_K_S"
    case q3_K_M = "Q3_K_M"
    case q3_K_L = "Q3_K_L"
    case q4_K_S = "Q4_K_S"
    case q4_K_M = "Q4_K_M"
    case q5_K_S = "Q5_K_S"
    case q5_K_M = "Q5_K_M"
    case q6_K = "Q6_K"

    /// `general.file_type`
    var fileType: UInt32 {
      switch self {
      case .q4_0: 2
      case .q4_1: 3
      case .q8_0: 7
      case .q5_0: 8
      case .q5_1: 9
      case .q2_K: 10
      case .q3_K_S: 11
      case .q3_K_M: 12
      case .q3_K_L: 13
      case .q4_K_S: 14
      case .q4_K_M: 15
      case .q5_K_S: 16
      case .q5_K_M: 17
      case .q6_K: 18
      case .q2_K_S: 21
      }
    }

    /// What a tensor has that no rule is for.
    public var standardType: GGUFTensorType {
      switch self {
      case .q4_0: .q4_0
      case .q4_1: .q4_1
      case .q5_0: .q5_0
      case .q5_1: .q5_1
      case .q8_0: .q8_0
      case .q2_K, .q2_K_S: .q2_K
      case .q3_K_S, .q3_K_M, .q3_K_L: .q3_K
      case .q4_K_S, .q4_K_M: .q4_K
      case .q5_K_S, .q5_K_M: .q5_K
      case .q6_K: .q6_K
      }
    }
  }

  /// What one tensor gets.
  public struct Choice: Sendable, Equatable {
    /// As the file names it.
    public let tensor: String
    public let type: GGUFTensorType
    /// What it would get if its rows were whole blocks of that.
    public let wanted: GGUFTensorType

    public var isFallback: Bool { type != wanted }
  }

  public var name: Name
  /// Whether every tensor gets the standard type.
  public var isPure: Bool

  /// Bits a weight, where types are chosen for each tensor; ``name`` is then the file that is nearest.
  public let averageBits: Double?

  public init(_ name: Name, isPure: Bool = false) {
    self.name = name
    self.isPure = isPure
    averageBits = nil
  }

  /// What types are chosen from so that they take so many bits a weight.
  public init(averageBits: Double) {
    name =
      switch averageBits {
      case ..<3: .q2_K
      case ..<4: .q3_K_M
      case ..<5: .q4_K_M
      case ..<6: .q5_K_M
      case ..<7.5: .q6_K
      default: .q8_0
      }
    isPure = false
    self.averageBits = averageBits
  }

  /// What a file is named after.
  public var title: String { averageBits.map { "\($0)bpw" } ?? name.rawValue }

  /// The tensors that are quantized, in llama.cpp's order, with what they get.
  public func choices(for header: GGUFHeader) -> [Choice] {
    let tensors = header.tensors.sorted { ($0.layer, $0.name) < ($1.layer, $1.name) }
    var state = State(header)
    return tensors.compactMap { tensor in
      guard tensor.isQuantizable, let columns = tensor.shape.last else { return nil }
      let wanted = isPure ? name.standardType : state.type(of: tensor, in: name)
      return Choice(tensor: tensor.name, type: wanted.fitting(columns: columns), wanted: wanted)
    }
  }

  /// What the choice of a type depends on.
  private struct State {
    let architecture: String
    let layers: Int
    let experts: Int
    /// Query heads for every key head.
    let headGroup: Int
    let isTied: Bool
    /// Tensors with values of attention.
    let valueTensors: Int
    let is70B: Bool
    var valuesSeen = 0
    var downsSeen = 0

    init(_ header: GGUFHeader) {
      func integer(_ key: String, _ architecture: String) -> Int? {
        guard case .integer(let value) = header["\(architecture).\(key)"] else { return nil }
        return value
      }
      var name = ""
      if case .text(let text) = header["general.architecture"] { name = text }
      architecture = name
      layers = integer("block_count", name) ?? 0
      experts = integer("expert_count", name) ?? 0
      let heads = integer("attention.head_count", name) ?? 1
      let keyHeads = integer("attention.head_count_kv", name) ?? heads
      headGroup = keyHeads > 0 ? heads / keyHeads : 0
      isTied = !header.tensors.contains { $0.name == "output.weight" }
      valueTensors = header.tensors.count { $0.kind == .values }
      is70B = layers == 80 && (name == "qwen2" || name == "llama" && heads != keyHeads)
    }

    private func hasMoreBits(_ place: Int, of count: Int) -> Bool {
      place < count / 8 || place >= 7 * count / 8 || (place - count / 8) % 3 == 2
    }

    mutating func type(of tensor: GGUFHeader.Tensor, in name: Name) -> GGUFTensorType {
      let standard = name.standardType
      switch tensor.kind {
      case .head: return headType(tensor, standard)
      case .embedding: return isTied ? headType(tensor, standard) : standard
      case .values:
        defer { valuesSeen += 1 }
        return valueType(name)
      case .keys: return experts == 8 ? .q8_0 : standard
      case .attentionOutput: return attentionOutputType(name)
      case .down:
        defer { downsSeen += 1 }
        return downType(name, place: experts > 1 ? tensor.layer : downsSeen)
      case .other: return standard
      }
    }

    private func headType(_ tensor: GGUFHeader.Tensor, _ standard: GGUFTensorType) -> GGUFTensorType {
      let columns = tensor.shape.last ?? 0
      if architecture == "falcon" || !columns.isMultiple(of: standard.blockSize) { return .q8_0 }
      return standard == .q8_0 ? .q8_0 : .q6_K
    }

    private func valueType(_ name: Name) -> GGUFTensorType {
      if experts == 8 { return .q8_0 }
      var type = name.standardType
      switch name {
      case .q2_K: type = headGroup >= 4 ? .q4_K : .q3_K
      case .q2_K_S: if headGroup >= 4 { type = .q4_K }
      case .q3_K_M: type = valuesSeen < 2 ? .q5_K : .q4_K
      case .q3_K_L: type = .q5_K
      case .q4_K_M, .q5_K_M: if hasMoreBits(valuesSeen, of: valueTensors) { type = .q6_K }
      case .q4_K_S: if valuesSeen < 4 { type = .q5_K }
      default: break
      }
      return is70B && (type == .q3_K || type == .q4_K) ? .q5_K : type
    }

    private func attentionOutputType(_ name: Name) -> GGUFTensorType {
      if architecture == "falcon" { return name == .q3_K_L ? .q4_K : name.standardType }
      if experts == 8 {
        let lifted: Set<Name> = [.q2_K, .q3_K_S, .q3_K_M, .q4_K_S, .q4_K_M]
        return lifted.contains(name) ? .q5_K : name.standardType
      }
      switch name {
      case .q2_K: return .q3_K
      case .q3_K_M: return .q4_K
      case .q3_K_L: return .q5_K
      default: return name.standardType
      }
    }

    private func downType(_ name: Name, place: Int) -> GGUFTensorType {
      let isFalcon = architecture == "falcon"
      let (isFirst, hasMore) = (place < layers / 8, hasMoreBits(place, of: layers))
      switch name {
      case .q2_K: return .q3_K
      case .q2_K_S: return isFirst ? .q4_K : .q2_K
      case .q3_K_M: return place < layers / 16 ? .q5_K : !isFalcon || hasMore ? .q4_K : .q3_K
      case .q3_K_L: return isFalcon ? .q4_K : .q5_K
      case .q4_K_M where isFalcon: return place < layers / 16 ? .q6_K : hasMore ? .q5_K : .q4_K
      case .q4_K_M, .q5_K_M: return hasMore ? .q6_K : name.standardType
      case .q4_K_S: return isFirst && !isFalcon ? .q5_K : .q4_K
      case .q4_0: return isFirst ? .q4_1 : .q4_0
      case .q5_0: return isFirst ? .q5_1 : .q5_0
      default: return name.standardType
      }
    }
  }
}

extension GGUFTensorType {
  /// The type, or the nearest whose blocks such rows are whole ones of.
  fileprivate func fitting(columns: Int) -> GGUFTensorType {
    if columns.isMultiple(of: blockSize) { return self }
    let smaller: GGUFTensorType =
      switch self {
      case .q2_K, .q3_K: .q4_0
      case .q4_K: .q5_0
      case .q5_K: .q5_1
      case .q6_K: .q8_0
      default: self
      }
    return columns.isMultiple(of: smaller.blockSize) ? smaller : .float16
  }
}

extension GGUFHeader.Tensor {
  /// What a mix tells tensors apart by.
  fileprivate enum Kind {
    case head, embedding, values, keys, attentionOutput, down, other
  }

  fileprivate var kind: Kind {
    switch name {
    case "output.weight": .head
    case "token_embd.weight", "per_layer_token_embd.weight": .embedding
    case _ where name.contains("attn_qkv.weight"), _ where name.contains("attn_kv_b.weight"): .values
    case _ where name.contains("attn_v.weight"): .values
    case _ where name.contains("attn_k.weight"): .keys
    case _ where name.contains("attn_output.weight"): .attentionOutput
    case _ where name.contains("ffn_down"): .down
    default: .other
    }
  }

  /// The layer that it is of; −1 outside of layers.
  fileprivate var layer: Int {
    let parts = name.split(separator: ".", maxSplits: 2)
    return parts.count == 3 && parts[0] == "blk" ? Int(parts[1]) ?? -1 : -1
  }

  /// Names, or parts of them, of matrices that are never quantized.
  private static let kept = [
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight",
    "attn_rel_b.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "position_embd.weight", "token_types.weight", ".position_embd",
    "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
  ]

  fileprivate var isQuantizable: Bool {
    shape.count > 1 && name.hasSuffix("weight") && !Self.kept.contains { name.contains($0) }
  }
}
