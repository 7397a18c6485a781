import ActivationCache
import Calibration
import Collective
import Compute
import Decoder
import Quantization
import Solvers
import SystemIO
import Tensors

/// What the quantized layers are to come close to.
public enum Target: String, Sendable, CaseIterable, Codable {
  /// The layer's own output on the inputs that the quantized model produces.
  case layer
  /// The original model's residual stream, so that a layer also makes up for those before it.
  case original
}

extension Target {
  /// Of the calibration sequences those that also run through the original model.
  func originalSamples(share: Double, of samples: Int) -> Int {
    self == .original ? Int((share * Double(samples)).rounded(.up)) : 0
  }
}

/// What has been quantized of a model already.
protocol KnownLinears {
  /// Whether nothing of a stage is left to quantize.
  func isKnown(_ stage: Stage, inLayer index: Int) -> Bool
  /// Gives those linears of a stage that are known the weights that they were quantized to. Every rank calls it for the same
  /// stages in the same order.
  /// - Parameter rank: the one whose layer it is for; nil for all
  func restore(_ stage: Stage, in layer: DecoderLayer, on rank: Int?) throws
}

extension KnownLinears {
  func restore(_ stage: Stage, in layer: DecoderLayer) throws { try restore(stage, in: layer, on: nil) }
}

/// Walks through a model stage by stage: one decoder layer resident, the calibration set's states in the
/// activation cache.
///
/// One pass over the batches serves two stages: it runs the linears of one, which are quantized by then, and
/// adds up the Gram matrix of the next. Every linear runs once; with ``Target/original`` the original linears
/// run beside them on the first samples, on hidden states of their own.
final class LayerLoop {
  let quantized: Stream
  let original: Stream?
  let calibration: CalibrationSet
  let backend: any ComputeBackend
  /// Where files without names are made.
  let scratchDirectory: String
  let batches: [Range<Int>]
  /// The processes that the batches are dealt to, and the linears' rows.
  let ranks: Ranks
  /// The rank that each sequence's batch is with.
  let sequenceOwners: [Int]
  /// Rows of a linear that one rank works on at a time.
  let panelRows: Int
  let solvesWhole: (String) -> Bool
  var streams: [Stream] { [quantized] + (original.map { [$0] } ?? []) }
  let firstTokens: FirstTokens
  let experts: ExpertSettings
  let beforeReading: () throws -> Void
  let advanced: () -> Void
  private let repeating: (_ layer: Int, _ until: Int) -> Void
  private let begun: () -> Void
  /// Whether an earlier run has begun to take the batches to the next stage, and some of them are there.
  private(set) var isTakingOver = false
  var times = PhaseTimes()

  /// Linears, and what a layer runs with in their place.
  typealias Replacements = [(linear: LayerLinear, quantized: QuantizedLinear)]

  /// Gives what a stage's linears are quantized to, given their problem; those that are not named keep their weights.
  typealias Quantize = (
    _ layer: DecoderLayer, _ stage: Stage, _ problem: LayerProblem, _ expert: ExpertShare?
  ) throws -> Replacements

  /// Takes in what another rank has made of an expert's linears.
  typealias Collect = (_ layer: DecoderLayer, _ half: Stage, _ rank: Int) throws -> Void

  /// The expert whose linears are quantized, and the tokens that reach it.
  struct ExpertShare {
    let number: Int
    let tokens: Int
  }

  /// One model's way through the layers: its hidden states, and the layer it is in.
  final class Stream {
    let model: DecoderModel
    let states: StagedStates
    /// The batches that it runs, of all the first ones.
    let batches: ArraySlice<Range<Int>>
    /// Those that this rank runs.
    let ownBatches: [Int]
    /// What the mixture at hand makes of all tokens.
    var mixtureOutput: MixtureOutput?

    init(
      model: DecoderModel, store: HiddenStatesStore, number: Int, batches: ArraySlice<Range<Int>>,
      ranks: Ranks, backend: any ComputeBackend, place: StatesPlace, storesLayerStarts: Bool
    ) {
      self.model = model
      self.batches = batches
      ownBatches = batches.indices.filter(ranks.owns)
      states = StagedStates(
        store: store, stream: number, description: model.description, backend: backend, place: place,
        storesLayerStarts: storesLayerStarts)
    }
  }

  /// The stage of a layer that every stream has reached.
  struct Position {
    /// Of the layer's stages.
    let number: Int
    let stage: Stage
    let quantized: DecoderLayer
    let original: DecoderLayer?

    /// Gives the memory of the stage's weights back.
    fileprivate func unload() {
      quantized.leave(stage)
      original?.leave(stage)
      quantized.forget(stage)
    }
  }

  /// What a stage's problem is made of.
  struct Statistics {
    let gram: GramMatrix
    /// What moves the target of a linear that adds to the residual stream.
    let correction: Matrix?
  }

  /// - Parameters:
  ///   - original: a second instance of the model, whose weights stay as they are; nil for ``Target/layer``
  ///   - originalSamples: the sequences that run through it, too, the first ones
  ///   - batchSamples: sequences that are computed at a time
  ///   - panelRows: rows of a linear that are summed up, or solved, at a time
  ///   - ranks: the processes that share the work
  ///   - states: where the states of all of them stand between two stages
  ///   - isResumable: whether another run may go on with what this one leaves in the cache
  ///   - experts: what those of mixtures are solved for
  ///   - firstTokenWeight: how often a sequence's first token counts where keys and values are made
  ///   - solvesWhole: whether a linear, by its name, is solved by one rank as a whole
  ///   - beforeReading: called before a stage's weights are read
  ///   - advanced: called for every batch of every stage
  ///   - repeating: called for every layer that an earlier run had quantized and that is run once more, with the layer
  ///     at which new work begins
  ///   - begun: called when it begins
  init(
    model: DecoderModel, original: DecoderModel?, originalSamples: Int, calibration: CalibrationSet,
    store: HiddenStatesStore, backend: any ComputeBackend, batchSamples: Int,
    panelRows: Int = MemoryPlan.panelRows, ranks: Ranks = .alone,
    states: StatesPlace = .cache, isResumable: Bool = false, experts: ExpertSettings = ExpertSettings(),
    firstTokenWeight: Float = 1, solvesWhole: @escaping (String) -> Bool = { _ in false },
    beforeReading: @escaping () throws -> Void = {}, advanced: @escaping () -> Void = {},
    repeating: @escaping (_ layer: Int, _ until: Int) -> Void = { _, _ in }, begun: @escaping () -> Void = {}
  ) {
    let batches = calibration.batches(
      of: batchSamples, endingAt: original == nil ? calibration.samples : originalSamples)
    quantized = Stream(
      model: model, store: store, number: 0, batches: batches[...], ranks: ranks, backend: backend,
      place: states,
      storesLayerStarts: isResumable)
    self.original = original.map {
      Stream(
        model: $0, store: store, number: 1, batches: batches.prefix { $0.upperBound <= originalSamples },
        ranks: ranks, backend: backend, place: states, storesLayerStarts: isResumable)
    }
    self.ranks = ranks
    sequenceOwners = batches.enumerated().flatMap { batch, samples in
      samples.map { _ in ranks.owner(of: batch) }
    }
    self.panelRows = panelRows
    self.solvesWhole = solvesWhole
    self.calibration = calibration
    self.backend = backend
    scratchDirectory = FileSystem.parent(of: store.path)
    self.batches = batches
    self.experts = experts
    firstTokens = FirstTokens(weight: firstTokenWeight, sequenceLength: calibration.sequenceLength)
    self.beforeReading = beforeReading
    self.advanced = advanced
    self.repeating = repeating
    self.begun = begun
  }

  /// Runs the loop.
  /// - Parameters:
  ///   - known: the linears that an earlier run has quantized; the loop then goes on where that one ended, with what it
  ///     left in the cache, and takes the batches that are missing there through the layers once more.
  ///   - quantize: given a problem without a ridge, gives what the layer runs with from then on in the place of a stage's
  ///     linears
  ///   - collect: called on all ranks, in the experts' order, for those that one of them has quantized
  ///   - correctHead: gets what corrects the head, on the first rank, see ``headCorrection(behind:)``; nil if it stays as it is
  ///   - quantizeHead: gets the problem of what turns the last hidden states into logits, when all layers are done; nil
  ///     if that is not to be quantized
  func run(
    knowing known: (any KnownLinears)? = nil,
    _ quantize: Quantize, collecting collect: Collect = { _, _, _ in },
    correctingHead correctHead: ((Matrix) throws -> Void)? = nil,
    head quantizeHead: ((LayerProblem) throws -> Void)? = nil
  ) throws {
    let description = quantized.model.description
    let places = (0..<description.layerCount).flatMap { layer in
      description.stages(ofLayer: layer).enumerated().map { number, stage in
        Place(layer: layer, number: number, stage: stage)
      }
    }
    func isKnown(_ place: Place) -> Bool {
      known?.isKnown(place.stage, inLayer: place.layer) ?? false
    }
    let open = places.firstIndex { !isKnown($0) } ?? places.count
    let endsBehindLayers = correctHead != nil || quantizeHead != nil
    if open == places.count, !endsBehindLayers { return }
    let goal = open < places.count ? places[open].layer : description.layerCount
    let first = try resume(before: open, places, knowing: known) { repeating($0, goal) }
    var layers = try layers(places[max(first - 1, 0)].layer)
    var here: Position?
    if first > 0 {
      let last = position(layers, places[first - 1].number)
      if last.stage.experts.isEmpty {
        try known?.restore(last.stage, in: last.quantized)
        try load(last.stage, in: last.quantized)
      } else {
        try runMixture(last, shared: nil, knowing: known, quantize, collect)
      }
      here = last
    }
    var passed: [DecoderLayer] = []
    for (index, place) in places.enumerated().dropFirst(first) {
      if place.layer != layers.quantized.index {
        // Reading a layer ahead of time, the kernel takes in what stands before it in the file, too.
        passed.popLast()?.forget()
        passed.append(layers.quantized)
        layers = try self.layers(place.layer)
      }
      if index < open, place.number == 0 || index == first {
        repeating(place.layer, goal)
      }
      if index == open { begun() }
      let position = position(layers, place.number)
      isTakingOver = index == first && first > 0
      var statistics = try enter(
        position, from: here, beginsLayer: place.number == 0, gathering: index >= open)
      if let here { leave(here) }
      guard position.stage.experts.isEmpty else {
        try runMixture(position, shared: statistics?.gram, knowing: known, quantize, collect)
        here = position
        continue
      }
      if index + 1 < places.count {
        quantized.model.readAhead(places[index + 1].stage, ofLayer: places[index + 1].layer)
      }
      // The solver reads weights of its own, in fp32.
      position.quantized.unload(position.stage)
      try known?.restore(position.stage, in: position.quantized)
      try statistics.take().map {
        try solve(
          position.stage, in: position.quantized, $0.gram.values, correction: $0.correction, nil, quantize)
      }.map { replaceWeights(of: position.quantized, by: $0) }
      try load(position.stage, in: position.quantized)
      here = position
    }
    if endsBehindLayers, let here {
      if open == places.count { begun() }
      if let correctHead, let correction = try headCorrection(behind: here) { try correctHead(correction) }
      let problem = quantizeHead == nil ? nil : try headProblem(behind: here)
      leave(here)
      try beforeReading()
      try times.measure(.solver) { if let problem { try quantizeHead?(problem) } }
    }
    for layer in passed + [layers.quantized] { layer.forget() }
  }

  /// A stage of a layer.
  struct Place {
    let layer: Int
    let number: Int
    let stage: Stage
  }

  typealias Layers = (quantized: DecoderLayer, original: DecoderLayer?)

  func layers(_ index: Int) throws -> Layers {
    try times.measure(.loading) {
      (try quantized.model.unloadedLayer(index), try original?.model.unloadedLayer(index))
    }
  }

  /// Reads the weights of a stage, for one stream.
  func load(_ stage: Stage, in layer: DecoderLayer) throws {
    try times.measure(.loading) {
      try beforeReading()
      try layer.load(stage)
    }
  }

  /// - Parameter gram: Σ, which has no other use from now on
  func solve(
    _ stage: Stage, in layer: DecoderLayer, _ gram: Matrix, correction: Matrix? = nil,
    _ share: ExpertShare?, _ quantize: Quantize
  ) throws -> Replacements {
    try beforeReading()
    return try times.measure(.solver) {
      let problem = try backend.problem(
        gram, correction: correction, of: stage.linears.names, layer: layer.index)
      return try quantize(layer, stage, problem, share)
    }
  }

  /// To be called when Σ is gone, which was there with their codes.
  func replaceWeights(
    of layer: DecoderLayer, by replacements: Replacements
  ) {
    times.measure(.loading) {
      for (linear, quantized) in replacements {
        layer.replaceWeights(of: linear, by: quantized, backend: backend)
      }
    }
  }

  /// Every batch is past a stage.
  func leave(_ position: Position) {
    position.unload()
    for stream in streams {
      stream.mixtureOutput = nil
      stream.states.releaseBuffers()
    }
  }

  func position(_ layers: Layers, _ stage: Int) -> Position {
    Position(
      number: stage, stage: layers.quantized.stages[stage], quantized: layers.quantized,
      original: layers.original)
  }

  func makeGramMatrix(inFeatures: Int, owning owns: (Int) -> Bool = { _ in true }) -> GramMatrix {
    GramMatrix(inFeatures: inFeatures, operands: quantized.model.operands, backend: backend, owning: owns)
  }
}

extension Stage {
  var inFeatures: Int { linears[0].inFeatures }

  /// What it is called in a message.
  var title: String { experts.isEmpty ? linears.names : "the experts" }
}

extension [LayerLinear] {
  /// For a message.
  var names: String { map(\.name).joined(separator: ", ") }
}

extension ComputeBackend {
  /// The problem of what reads inputs with the Gram matrix `gram`, without a ridge.
  /// - Throws: ``PipelineError/overflowingInputs(layer:of:feature:)`` for one that is no sum of finite squares
  func problem(
    _ gram: Matrix, correction: Matrix? = nil, of reader: String, layer: Int
  ) throws(PipelineError) -> LayerProblem {
    try requireFinite(gram, of: reader, layer: layer)
    return LayerProblem(gram: gram, correction: correction, backend: self)
  }

  /// - Throws: ``PipelineError/overflowingInputs(layer:of:feature:)`` for a Gram matrix that is no sum of finite squares
  func requireFinite(_ gram: Matrix, of reader: String, layer: Int) throws(PipelineError) {
    if let feature = diagonal(of: gram).firstIndex(where: { !$0.isFinite }) {
      throw .overflowingInputs(layer: layer, of: reader, feature: feature)
    }
  }
}
