import Compute
import Decoder
import Tensors

// The slots of a batch's states that stages read and write, and what they take.

extension LayerState {
  subscript(slot: StagedStates.Slot) -> Matrix? {
    get {
      switch slot {
      case .residual: residual
      case .context: context
      case .intermediate: intermediate
      case .queryLatents: queryLatents
      case .latents: latents
      case .rotaryKeys: rotaryKeys
      }
    }
    set {
      switch slot {
      case .residual: if let newValue { residual = newValue }
      case .context: context = newValue
      case .intermediate: intermediate = newValue
      case .queryLatents: queryLatents = newValue
      case .latents: latents = newValue
      case .rotaryKeys: rotaryKeys = newValue
      }
    }
  }
}

extension Stage {
  /// The slot that holds the stage's input, before any norm.
  var inputSlot: StagedStates.Slot {
    switch input {
    case .residual: .residual
    case .queryLatents: .queryLatents
    case .latents: .latents
    case .context: .context
    case .intermediate: .intermediate
    }
  }

  /// The slots that running the stage reads.
  var reads: Set<StagedStates.Slot> {
    // It leaves nothing, and so need not run.
    if parts == [.queryExpansion] { return [] }
    var slots: Set = [inputSlot]
    // What comes next may look at the residual stream.
    if parts == [.latentAttention] { slots.formUnion([.queryLatents, .rotaryKeys, .residual]) }
    if writes.contains(.residual) { slots.insert(.residual) }
    return slots
  }

  /// The slots that running the stage writes.
  var writes: Set<StagedStates.Slot> {
    Set(
      parts.flatMap { part -> [StagedStates.Slot] in
        switch part {
        case .attention, .latentAttention: [.context]
        case .latents: [.queryLatents, .latents, .rotaryKeys]
        case .queryExpansion: []
        case .expansion: [.intermediate]
        case .attentionOutput, .contraction, .mixture: [.residual]
        }
      })
  }

  /// The values of a token in a slot.
  func columns(of slot: StagedStates.Slot) -> Int {
    switch slot {
    case .residual: hiddenSize
    case .context: contextFeatures
    case .intermediate: intermediateSize
    case .queryLatents: latents?.queries ?? 0
    case .latents: latents?.shared ?? 0
    case .rotaryKeys: latents?.rotary ?? 0
    }
  }

  /// The slots that are used up once the stage has run.
  var consumes: Set<StagedStates.Slot> {
    switch parts {
    case [.queryExpansion]: []
    case [.latentAttention]: [.queryLatents, .latents, .rotaryKeys]
    default: inputSlot == .residual ? [] : [inputSlot]
    }
  }
}

extension ModelDescription {
  /// The values of a token that stand between two stages: what is written by one and not used up by any before.
  /// - Parameter stages: of all layers, one after the other
  func stateColumns(before stages: [Stage]) -> [Int] {
    // The halves of experts are run beside the stages.
    if hasMixtures {
      return stages.map { _ in hiddenSize + contextFeatures + latentFeatures + intermediateSize }
    }
    var columns: [StagedStates.Slot: Int] = [.residual: hiddenSize]
    return stages.map { stage in
      let before = columns.values.reduce(0, +)
      for slot in stage.consumes { columns[slot] = nil }
      for slot in stage.writes { columns[slot] = stage.columns(of: slot) }
      return before
    }
  }

  /// The most of them.
  var widestStates: Int {
    stateColumns(before: (0..<layerCount).flatMap { stages(ofLayer: $0) }).max() ?? hiddenSize
  }
}
