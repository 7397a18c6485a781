import ActivationCache
import Calibration
import Checkpoint
import Compute
import Decoder
import Solvers
import SystemIO
import Tensors
import Tuning

/// Runs one layer of each kind, with weights by chance, on a part of a batch, its solver on some rows, and the cache on a
/// batch; the run is so much more of the same.
///
/// Cheap as it is, it sees what counting does not: kernels at these very shapes, what norms and rotations take, other
/// programs. It does not see how well the weights' own problems are conditioned, on which the number of descent passes
/// depends.
struct TimeTrial {
  let plan: RunPlan
  let memory: MemoryPlan
  let backend: any ComputeBackend
  let cacheDirectory: String

  /// Operations of a trial's forward pass; at a tenth of a TFLOP/s some seconds.
  private static let operations = 2e11
  /// The widest Gram matrix that is tried; wider ones are so much more of it.
  private static let width = 2_048
  private static let rows = (few: 128, many: 512)
  private static let repetitions = 3
  /// What local disks give, since trying them would only show what is in memory already.
  private static let bytesReadPerSecond = 1.5e9
  private static let bytesWrittenPerSecond = 0.5e9

  private var operands: OperandType { backend.operandType(for: plan.modelType) }

  /// What was found out by trying, on one machine.
  private final class Costs {
    var forward: [Int: ForwardCost] = [:]
    var solvers: [Int: SolverCost] = [:]
    var cache: (write: Double, read: Double)?
  }

  /// - Parameter counts: of the processes that share the work, a plan for each
  func run(ranks counts: [RankShare] = [RankShare(count: 1)]) throws -> [TimePlan] {
    let costs = Costs()
    return try counts.map { try run(costs, $0) }
  }

  private func run(_ costs: Costs, _ ranks: RankShare) throws -> TimePlan {
    let work = plan.work(operands)
    // Of the batches the rank with the most has so many.
    let batches = plan.batches(of: memory.batchSamples).count
    let share = ranks.largest(of: batches)
    let tokens = Double(work.samples * work.sequenceLength) * share
    let originalTokens = Double(work.originalSamples * work.sequenceLength) * share
    var seconds: [TimePlan.Phase: Double] = [:]
    let cache = try costs.cache ?? cacheCost()
    costs.cache = cache
    seconds[.cache] = cache.write * Double(plan.model.hiddenSize) * (tokens + originalTokens)
    let kinds = Dictionary(grouping: plan.model.layers.indices, by: kind)
    var triedTokens = 0
    for layers in kinds.values.sorted(by: { $0[0] < $1[0] }) {
      let stages = plan.model.stages(ofLayer: layers[0])
      let trial = try costs.forward[layers[0]] ?? forwardCost(ofLayer: layers[0])
      costs.forward[layers[0]] = trial
      triedTokens = max(triedTokens, trial.tokens)
      let count = Double(layers.count)
      seconds[.forward, default: 0] += count * trial.forward * (tokens + originalTokens)
      seconds[.gram, default: 0] += count * trial.gram * tokens
      for stage in stages {
        let weights = stage.linears.weightCount
        if work.originalSamples > 0, stage.residualScale != nil {
          // The drift and its product with the inputs, at the rate of the layer's products.
          seconds[.gram, default: 0] += count * 2 * Double(weights) * trial.secondsPerProduct * originalTokens
        }
        let written = stage.writes.reduce(0) { $0 + stage.columns(of: $1) }
        let read = stage.reads.reduce(0) { $0 + stage.columns(of: $1) }
        seconds[.cache, default: 0] +=
          count * (tokens + originalTokens) * (cache.write * Double(written) + cache.read * Double(read))
        for half in stage.halves {
          let cost = try costs.solvers[half.inFeatures] ?? solverCost(half, layer: layers[0])
          costs.solvers[half.inFeatures] = cost
          let rows = half.linears.reduce(0) { $0 + $1.outFeatures }
          // Every rank has a factor of its own, and an expert is one rank's.
          let share =
            stage.experts.isEmpty
            ? ranks.largest(ofRows: plan.rows(of: stage, layer: layers[0], ranks: ranks.count))
            : ranks.largest(of: stage.experts.count)
          let ofAll = stage.experts.isEmpty ? 1 : share
          seconds[.solver, default: 0] += count * (cost.perStage * ofAll + cost.perRow * Double(rows) * share)
        }
        let mixture = plan.mixtureProducts(stage, perToken: trial.experts)
        seconds[.forward, default: 0] +=
          count * trial.secondsPerProduct * (mixture.perToken * tokens + mixture.once)
        seconds[.gram, default: 0] +=
          count * trial.secondsPerSquare * (mixture.squaresPerToken * tokens + mixture.squaresOnce)
      }
    }
    let head = headCorrection(costs, tokens: originalTokens)
    seconds[.forward, default: 0] += head.forward
    seconds[.gram, default: 0] += head.gram
    if plan.rotation == .trial { seconds[.trial] = rotationTrial(costs, kinds.values) }
    if plan.tunesNorms(on: backend) { seconds[.tuning] = normTuning(costs, kinds.values) }
    seconds = seconds.mapValues { $0 / ranks.speed }
    seconds[.files] =
      Double(plan.inputBytes) / Self.bytesReadPerSecond + Double(plan.resultBytes)
      / Self.bytesWrittenPerSecond
    if ranks.count > 1 {
      seconds[.network] =
        Double(plan.traffic(operands, backend).received(by: ranks.count)) / ranks.bytesPerSecond
    }
    return TimePlan(
      secondsPerPhase: seconds,
      basis:
        "a trial here: \(kinds.count == 1 ? "a layer" : "\(kinds.count) kinds of layer") with weights by chance on "
        + "\(triedTokens) tokens, the solver on \(Self.rows.many) rows, by \(backend.kernels(for: operands)); disks as "
        + "local ones usually are")
  }

  /// What finding out takes whether a rotation helps: one rank's, without it and with it.
  /// - Parameter kinds: the layers of each kind
  private func rotationTrial(_ costs: Costs, _ kinds: some Sequence<[Int]>) -> Double {
    let length = plan.settings.sequenceLength
    let sizes = plan.trialSizes
    let tokens = Double(sizes.sequences * length)
    var seconds = 0.0
    for layers in kinds {
      guard let forward = costs.forward[layers[0]] else { continue }
      let solver = plan.model.stages(ofLayer: layers[0]).flatMap(\.halves).reduce(0) { sum, half in
        let rows = half.linears.reduce(0) { $0 + $1.outFeatures }
        return sum + (costs.solvers[half.inFeatures].map { $0.perStage + $0.perRow * Double(rows) } ?? 0)
      }
      let quantized = Double(sizes.layers) / Double(plan.model.layerCount)
      seconds +=
        Double(layers.count)
        * (forward.forward * tokens
          + quantized * (forward.gram * Double(sizes.solved * length) + solver))
    }
    // The logits of what is looked at, without the quantized layers and with them.
    let logits =
      2 * Double(sizes.heldOut * length) * Double(plan.model.vocabularySize * plan.model.head.width)
    return 2 * (seconds + logits * (costs.forward.values.first?.secondsPerProduct ?? 0))
  }

  /// What a step of tuning takes of a token's way through a layer: twice forward, back in fp32, and the attention's way back.
  private static let tuningPerForward = 8.0

  /// - Parameter kinds: the layers of each kind
  private func normTuning(_ costs: Costs, _ kinds: some Sequence<[Int]>) -> Double {
    let length = plan.settings.sequenceLength
    let schedule = NormTuning.Schedule()
    let steps = Double(schedule.steps * schedule.sequences(length: length) * length)
    let (learnt, judged) = schedule.used(of: plan.tuningSamples, length: length)
    let others = Double((learnt + 3 * judged) * length)
    let layers = kinds.reduce(0) { sum, layers in
      let cost = costs.forward[layers[0]]?.forward ?? 0
      return sum + Double(layers.count) * cost * (Self.tuningPerForward * steps + others)
    }
    // Logits of both models, and back from those of one.
    let logits =
      Double(plan.model.vocabularySize * plan.model.head.width)
      * (3 * steps + 4 * Double(judged * length))
    return layers + logits * (costs.forward.values.first?.secondsPerProduct ?? 0)
  }

  /// Both models' last stage, the sums of what the head reads, and their factor.
  private func headCorrection(_ costs: Costs, tokens: Double) -> (forward: Double, gram: Double) {
    guard plan.work(operands).correctsHead,
      let stage = plan.model.stages(ofLayer: plan.model.layerCount - 1).last,
      let cost = costs.forward.values.first
    else { return (0, 0) }
    let width = Double(plan.model.head.width)
    return (
      2 * tokens * Double(stage.linears.weightCount) * cost.secondsPerProduct,
      (2 * tokens * width * width + 2 * width * width * width) * cost.secondsPerProduct
    )
  }

  /// What makes a layer take the time that it takes.
  private func kind(_ index: Int) -> String {
    let linears = plan.model.linears(ofLayer: index).map { "\($0.name) \($0.outFeatures) \($0.inFeatures)" }
    return (linears + [plan.model.attentionKind(ofLayer: index)]).joined(separator: ",")
  }

  // MARK: Trials

  /// Of one token.
  private struct ForwardCost {
    let tokens: Int
    let forward: Double
    let gram: Double
    /// Of a multiplication and an addition in the layer's linears.
    let secondsPerProduct: Double
    /// Of an element of a Gram matrix.
    let secondsPerSquare: Double
    /// Experts that a token goes through.
    let experts: Int
  }

  private func forwardCost(ofLayer index: Int) throws -> ForwardCost {
    let model = plan.model.singleLayer(index)
    let products = model.linears(ofLayer: 0).weightCount
    // Whole sequences where there is time for one, as attention grows with their length.
    let possible = max(64, Int(Self.operations / (2 * Double(products))))
    let length = min(plan.settings.sequenceLength, possible)
    let samples = max(1, min(memory.batchSamples, possible / length))
    let tokens = length * samples
    let source = ChanceWeights(model)
    let decoder = try DecoderModel(
      model, source: source, backend: backend, sequenceLength: length, operands: operands)
    let layer = try decoder.layer(0)
    let start = matrix(rows: tokens, columns: model.hiddenSize, scale: 1)
    var forward: [Double] = []
    var gram: [Double] = []
    let grams = layer.stages.map { stage in
      let width = min(stage.inFeatures, 2 * Self.width)
      return GramMatrix(inFeatures: width, operands: operands, backend: backend)
    }
    for _ in 0..<Self.repetitions {
      flushCaches()
      var state = LayerState(residual: backend.copy(of: start))
      var times = (forward: 0.0, gram: 0.0)
      for (stage, square) in zip(layer.stages, grams) {
        let width = square.values.rows
        let isWhole = width == stage.inFeatures
        let narrow = isWhole ? nil : matrix(rows: tokens, columns: width, scale: 1)
        let input = layer.input(of: stage, state)
        let share = Double(stage.inFeatures) / Double(width)
        times.gram += time { square.accumulate(narrow ?? input) } * share * share
        times.forward += time { layer.run(stage, input: input, sequenceLength: length, state: &state) }
      }
      forward.append(times.forward)
      gram.append(times.gram)
    }
    let perToken = mean(forward) / Double(tokens)
    let gramPerToken = mean(gram) / Double(tokens)
    let squares = layer.stages.reduce(0) { $0 + $1.inFeatures * $1.inFeatures }
    return ForwardCost(
      tokens: tokens, forward: perToken, gram: gramPerToken,
      secondsPerProduct: perToken / Double(products), secondsPerSquare: gramPerToken / Double(squares),
      experts: layer.stages.flatMap(\.experts).count { $0.number != nil })
  }

  private struct SolverCost {
    /// What the linears of a stage share.
    let perStage: Double
    let perRow: Double
  }

  private func solverCost(_ stage: Stage, layer index: Int) throws -> SolverCost {
    let names = stage.linears.map { plan.model.layerPrefix(index) + $0.name }
    guard let treatment = names.compactMap({ plan.treatments[$0] }).first else {
      return SolverCost(perStage: 0, perRow: 0)
    }
    let width = min(stage.inFeatures, Self.width)
    func seconds(rows: Int) throws -> Double {
      let gram = correlatedGram(width)
      let weights = matrix(rows: rows, columns: width, scale: 0.02)
      return try time {
        _ = try treatment.quantizer.quantize(
          name: "trial", weights: weights,
          problem: treatment.damped(LayerProblem(gram: gram, backend: backend)),
          format: treatment.gridFormat, backend: backend, panelRows: memory.panelRows)
      }
    }
    _ = try seconds(rows: Self.rows.few)
    let (few, many) = (try seconds(rows: Self.rows.few), try seconds(rows: Self.rows.many))
    let perRow = max(0, many - few) / Double(Self.rows.many - Self.rows.few)
    let shared = max(0, few - perRow * Double(Self.rows.few))
    // A row's descent is quadratic in the width, a factor cubic.
    let share = Double(stage.inFeatures) / Double(width)
    return SolverCost(perStage: shared * share * share * share, perRow: perRow * share * share)
  }

  /// Seconds of a value, written and read.
  private func cacheCost() throws -> (write: Double, read: Double) {
    if memory.states == .device { return (0, 0) }
    let path = FileSystem.join(cacheDirectory, "plan-\(ThisProcess.identifier).activations.mdb")
    let store = try HiddenStatesStore(path: path, elementType: plan.modelType, threads: backend.threads)
    let rows = max(1, min(4_096, (1 << 22) / plan.model.hiddenSize))
    let values = matrix(rows: rows, columns: plan.model.hiddenSize, scale: 1)
    var (writes, reads): ([Double], [Double]) = ([], [])
    for batch in 0...Self.repetitions {
      let key = HiddenStatesKey(stream: 0, stage: 0, batch: batch)
      let previous = batch > 0 ? [HiddenStatesKey(stream: 0, stage: 0, batch: batch - 1)] : []
      try backend.withHostMatrix(values, for: .changing) { host in
        let written = try time {
          if memory.states == .memory {
            try store.hold(host, key: key, replacing: previous)
          } else {
            try store.write(host, key: key, replacing: previous)
          }
        }
        let read = try time { try store.read(key, into: host) }
        // From the second layer on, a value takes the place of one that has gone.
        guard batch > 0 else { return }
        writes.append(written)
        reads.append(read)
      }
    }
    let count = Double(values.count)
    return (mean(writes) / count, mean(reads) / count)
  }

  // MARK: Numbers by chance

  private func matrix(rows: Int, columns: Int, scale: Float) -> Matrix {
    let matrix = backend.makeMatrix(rows: rows, columns: columns)
    backend.withHostMatrix(matrix, for: .writing) { ChanceWeights.fill($0, scale: scale) }
    return matrix
  }

  /// As inputs are: neighbours much alike, and some columns large.
  private func correlatedGram(_ width: Int) -> Matrix {
    let gram = backend.makeMatrix(rows: width, columns: width)
    backend.withHostMatrix(gram, for: .writing) { host in
      host.withMutableSpan { span in
        func size(_ column: Int) -> Float { column % 64 == 0 ? 3 : 1 }
        for row in 0..<width {
          var correlation = size(row)
          for column in stride(from: row, through: 0, by: -1) {
            span[row * width + column] = correlation * size(column)
            span[column * width + row] = correlation * size(column)
            correlation *= 0.98
          }
        }
      }
    }
    return gram
  }

  /// What a layer reads has been in memory for a while when its turn comes.
  private func flushCaches() {
    let other = Matrix(uninitializedRows: 1, columns: 1 << 24)
    ChanceWeights.fill(other, scale: 1)
  }

  private func time(_ body: () throws -> Void) rethrows -> Double {
    let start = ContinuousClock.now
    try body()
    return (ContinuousClock.now - start).seconds
  }

  /// Of all repetitions, the first one too: a run seldom finds in the processor's caches what a repetition does.
  private func mean(_ values: [Double]) -> Double { values.reduce(0, +) / Double(values.count) }
}

/// A model's tensors by chance, of the size that a layer's outputs stay in.
private struct ChanceWeights: WeightSource {
  private let shapes: [String: [Int]]

  init(_ model: ModelDescription) {
    shapes = Dictionary(model.requiredTensors.map { ($0.name, $0.shape) }) { first, _ in first }
  }

  func shape(of tensor: String) -> [Int]? { shapes[tensor] }

  func read(_ tensor: String, rows: Range<Int>, into panel: Matrix) {
    Self.fill(panel, scale: 1 / Float(max(panel.columns, 1)).squareRoot())
  }

  static func fill(_ matrix: Matrix, scale: Float) {
    var state: UInt64 = 0x9E37_79B9_7F4A_7C15
    matrix.withMutableSpan { span in
      for index in span.indices {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        // Evenly from -√3 to √3, which varies as much as 1.
        span[index] = scale * 1.732 * (Float(state >> 40) / Float(1 << 23) - 1)
      }
    }
  }
}
