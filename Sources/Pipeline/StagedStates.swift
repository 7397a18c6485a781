import ActivationCache
import Compute
import Decoder
import Tensors

/// Where the states of all tokens stand between two stages.
public enum StatesPlace: String, Sendable, Codable, CaseIterable {
  /// In the memory of the device that computes: they need neither be encoded nor copied to the host.
  case device
  /// In the host's memory, not encoded. A device copies them there by itself.
  case memory
  /// In the activation cache's file.
  case cache
}

/// Where states may stand.
public enum StatesChoice: String, Sendable, Codable, CaseIterable {
  /// In memory where the plan has room for them.
  case auto
  /// In the activation cache's file, so that a run's memory does not grow with the calibration set.
  case cache
}

/// The states of all batches between two stages: what the layer loop keeps in the activation cache, or in memory.
///
/// A slot of a state is stored when a stage has written it and deleted when a stage has used it up, in the
/// transaction that stores what came of it.
///
/// What stands in memory goes with the process. A run that another is to go on with has in the cache, besides, what every
/// layer begins with, until all batches have reached the next one; but not what a device keeps: there a later process
/// computes it again as fast as it would be encoded.
final class StagedStates {
  enum Slot: Int, CaseIterable {
    case residual, context, intermediate, queryLatents, latents, rotaryKeys
  }

  struct Version: Hashable {
    let number: Int
    /// The values of a token.
    let columns: Int
  }

  let store: HiddenStatesStore
  private let stream: Int
  private let description: ModelDescription
  /// The version of every slot that is in the cache, by the count of writes so far.
  private(set) var versions: [Slot: Version] = [:]
  private var writes = 0
  /// Buffers that states are read into, reused from batch to batch.
  private var buffers: [Slot: Matrix] = [:]

  /// What the states' values are rounded to.
  var elementType: DType { store.elementType }

  let backend: any ComputeBackend
  private let place: StatesPlace
  /// Where a device keeps them; nil without one, and where they are in the cache.
  private let keptIn: KeptStates.Place?
  /// Whether what a layer begins with stands in the cache, too.
  private let storesLayerStarts: Bool
  /// Those that the device keeps.
  private var kept: [HiddenStatesKey: KeptStates] = [:]

  /// - Parameter storesLayerStarts: whether what a layer begins with stands in the cache, too, if the rest is in memory
  ///   and no device's matter
  init(
    store: HiddenStatesStore, stream: Int, description: ModelDescription, backend: any ComputeBackend,
    place: StatesPlace, storesLayerStarts: Bool
  ) {
    self.backend = backend
    self.place = place
    keptIn =
      switch place {
      case .device: .device
      case .memory: backend.deviceMemory == nil ? nil : .host
      case .cache: nil
      }
    self.storesLayerStarts = storesLayerStarts && place == .memory && keptIn == nil
    self.store = store
    self.stream = stream
    self.description = description
  }

  /// What there is of a batch among `slots`.
  func read(_ slots: Set<Slot>, batch: Int, tokens: Int) throws -> LayerState {
    try read(slots, versions: versions, batch: batch, tokens: tokens)
  }

  /// Whether there is all of a batch.
  func holds(batch: Int) throws -> Bool {
    try !versions.isEmpty && versions.allSatisfy { try contains(key($0.key, $0.value, batch)) }
  }

  private func contains(_ key: HiddenStatesKey) throws -> Bool {
    try keptIn == nil ? store.contains(key) : kept[key] != nil
  }

  /// Goes back to before the first state was written.
  func reset() {
    versions = [:]
    writes = 0
  }

  /// Deletes what the cache holds, of all streams.
  func clear() throws {
    kept = [:]
    try store.removeAll()
  }

  func read(
    _ slots: Set<Slot>, versions: [Slot: Version], batch: Int, tokens: Int
  ) throws -> LayerState {
    func matrix(_ slot: Slot) throws -> Matrix? {
      guard slots.contains(slot), let version = versions[slot] else { return nil }
      let buffer = buffer(slot, rows: tokens, columns: version.columns)
      if keptIn != nil {
        guard let states = kept[key(slot, version, batch)] else {
          preconditionFailure("a batch is read before it is written")
        }
        backend.restore(states, into: buffer)
        return buffer
      }
      try backend.withHostMatrix(buffer, for: .writing) {
        try store.read(key(slot, version, batch), into: $0)
      }
      return buffer
    }
    var state = LayerState(
      residual: try matrix(.residual) ?? buffer(.residual, rows: 0, columns: description.hiddenSize))
    for slot in Slot.allCases where slot != .residual { state[slot] = try matrix(slot) }
    return state
  }

  /// Gives back the buffers that batches are read into, where that costs nothing and the solver has use for their memory.
  func releaseBuffers() {
    if backend.deviceMemory != nil { buffers = [:] }
  }

  /// Begins reading a batch ahead of its use.
  func prefetch(_ slots: Set<Slot>, batch: Int) {
    if keptIn != nil { return }
    for slot in slots {
      if let version = versions[slot] { store.prefetch(key(slot, version, batch)) }
    }
  }

  /// Stores what a stage has left of every batch; see ``Transition/write(_:batch:)``.
  /// - Parameter written: the values of a token that the slots then hold
  private func transition(
    writing written: [Slot: Int], consuming consumed: Set<Slot>, beginsLayer: Bool
  ) -> Transition {
    var next = versions
    for slot in consumed { next[slot] = nil }
    for slot in Slot.allCases {
      guard let columns = written[slot] else { continue }
      writes += 1
      next[slot] = Version(number: writes, columns: columns)
    }
    return Transition(
      states: self, before: versions, after: next, written: Set(written.keys),
      isStored: storesLayerStarts && beginsLayer)
  }

  /// Stores what the embedding leaves of every batch.
  /// - Parameter beginsLayer: whether all of them begin the first layer with it; others only pass
  func embeddingTransition(beginsLayer: Bool = true) -> Transition {
    transition(writing: [.residual: description.hiddenSize], consuming: [], beginsLayer: beginsLayer)
  }

  /// The step through `stage`, to be looked at and not to be taken.
  func peek(through stage: Stage) -> Transition {
    let count = writes
    defer { writes = count }
    return transition(through: stage, beginsLayer: false)
  }

  /// Stores what running `stage` leaves of every batch.
  /// - Parameter beginsLayer: whether the next stage is a layer's first one
  func transition(through stage: Stage, beginsLayer: Bool) -> Transition {
    transition(
      writing: Dictionary(uniqueKeysWithValues: stage.writes.map { ($0, stage.columns(of: $0)) }),
      consuming: stage.consumes, beginsLayer: beginsLayer)
  }

  /// Deletes what stands further on than `step` leads, the next one.
  func removeAll(beyond step: Transition) throws {
    let writes = writes + step.written.count
    try store.removeAll(ofStream: stream, stages: (writes + 1) * Slot.allCases.count..<Int.max)
  }

  /// Takes a step that is taken already.
  func skip(_ transition: Transition) { versions = transition.after }

  /// The step from the states before a stage to those after it, batch by batch.
  struct Transition {
    fileprivate let states: StagedStates
    fileprivate let before: [Slot: Version]
    let after: [Slot: Version]
    fileprivate let written: Set<Slot>
    /// Whether what is held in memory is stored in the cache, too.
    fileprivate let isStored: Bool

    /// Stores what the stage has written of a batch and deletes what it has replaced or used up.
    func write(_ state: LayerState, batch: Int) throws {
      var replaced = before.filter { after[$0.key] != $0.value }
        .map { states.key($0.key, $0.value, batch) }
      for slot in Slot.allCases where written.contains(slot) {
        guard let version = after[slot], let matrix = state[slot] else { continue }
        try states.write(
          matrix, key: states.key(slot, version, batch), replacing: replaced, isStored: isStored)
        replaced = []
      }
    }

    /// Whether what the stage leaves of a batch is there.
    func isWritten(batch: Int) throws -> Bool {
      try after.allSatisfy { try states.contains(states.key($0.key, $0.value, batch)) }
    }

    /// What the stage has left of a batch, of `slots`.
    func readWritten(_ slots: Set<Slot>, batch: Int, tokens: Int) throws -> LayerState {
      try states.read(slots, versions: after, batch: batch, tokens: tokens)
    }

    /// To be called when every batch is written.
    func finish() throws {
      states.versions = after
      guard isStored, let first = after.map({ states.key($0.key, $0.value, 0).stage }).min() else { return }
      try states.store.removeAll(ofStream: states.stream, stages: 0..<first)
    }
  }

  private func write(
    _ matrix: Matrix, key: HiddenStatesKey, replacing replaced: [HiddenStatesKey], isStored: Bool
  ) throws {
    if let keptIn, let values = backend.keep(matrix, as: store.elementType, in: keptIn) {
      for key in replaced { kept[key] = nil }
      kept[key] = values
      return
    }
    // What is stored is rounded, and computed with from then on. What is not sound is refused with its place, that of a
    // device, too.
    try backend.withHostMatrix(matrix, for: .changing) { host in
      guard place == .memory else { return try store.write(host, key: key, replacing: replaced) }
      if isStored { try store.write(host, key: key) }
      try store.hold(host, key: key, replacing: replaced)
    }
  }

  func key(_ slot: Slot, _ version: Version, _ batch: Int) -> HiddenStatesKey {
    HiddenStatesKey(stream: stream, stage: version.number * Slot.allCases.count + slot.rawValue, batch: batch)
  }

  private func buffer(_ slot: Slot, rows: Int, columns: Int) -> Matrix {
    if let buffer = buffers[slot], buffer.count >= rows * columns {
      return buffer.prefix(rows: rows, columns: columns)
    }
    let buffer = backend.makeMatrix(rows: rows, columns: columns)
    buffers[slot] = buffer
    return buffer
  }
}
