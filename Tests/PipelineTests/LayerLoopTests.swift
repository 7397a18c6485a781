import ActivationCache
import Calibration
import Checkpoint
import ComputeOpenBLAS
import Glibc
import Quantization
import Solvers
import Synchronization
import Tensors
import TestSupport
import Testing

@testable import Decoder
@testable import Pipeline

/// The layer loop against its definition: a stage's statistics are made of the inputs that the model has there
/// when everything before the stage is quantized.
struct LayerLoopTests {
  /// One for every arrangement of stages.
  static let fixtures = [
    "llama", "opt-pre", "opt-post-350m", "bloom", "falcon-7b", "falcon-40b", "falcon-rw", "gemma3", "gemma4",
    "qwen3-5", "granite", "phi3", "cohere2", "qwen2-moe", "qwen3-moe", "glm4-moe", "qwen3-5-moe",
    "qwen3-next", "deepseek-v3", "deepseek-v3-direct", "deepseek-v3-dense",
    "gemma4-moe", "gpt-oss", "llama4", "phimoe", "granite-moe",
  ]

  @Test func `the weights of the next stage are read ahead while one is quantized`() throws {
    let checkpoint = try CheckpointReader(directory: TestFiles.model("llama"))
    let description = try ModelDescription(checking: checkpoint, source: checkpoint)
    let source = WatchedSource(checkpoint)
    let directory = try TemporaryDirectory()
    let backend = OpenBLASBackend(threads: 1)
    let loop = LayerLoop(
      model: try DecoderModel(description, source: source, backend: backend, sequenceLength: 8),
      original: nil, originalSamples: 0,
      calibration: CalibrationSet(sequenceLength: 8, tokens: (0..<32).map { Int32($0) }),
      store: try HiddenStatesStore(path: directory.file("cache.mdb"), elementType: .float32, threads: 1),
      backend: backend, batchSamples: 2)
    let stages = (0..<description.layerCount).flatMap { layer in
      description.stages(ofLayer: layer).map { stage in
        stage.linears.map { "\(description.layerPrefix(layer))\($0.name).weight" }
      }
    }
    var number = 0
    try loop.run { _, _, _, _ in
      number += 1
      if number < stages.count { #expect(source.announces(stages[number])) }
      return []
    }
    #expect(number == stages.count)
  }

  @Test(arguments: fixtures, [1, 3, 4])
  func `gram matrices are those of the quantized model so far`(_ fixture: String, _ batchSamples: Int) throws
  {
    try expectGrams(of: LoopRun(fixture, batchSamples: batchSamples))
  }

  /// Layers without experts, whose tokens are not told apart.
  @Test(arguments: ["llama", "falcon-7b", "opt-pre", "qwen3-5", "deepseek-v3-dense"])
  func `a sequence's first token counts as often as its weight says where keys and values are made`(
    _ fixture: String
  ) throws {
    let weighted = try LoopRun(fixture, batchSamples: 2, originalSamples: 3, firstTokenWeight: 9)
    try expectGrams(of: weighted)
    try expectCorrections(of: weighted, samples: 3)
    let plain = try LoopRun(fixture, batchSamples: 2, originalSamples: 3)
    #expect(weighted.corrections.count == plain.corrections.count && !plain.corrections.isEmpty)
  }

  private func expectGrams(of run: LoopRun) throws {
    for here in try run.inputs(quantized: true, samples: 4) {
      if here.makesKeys { run.weigh(here.inputs, by: run.firstTokenWeight.squareRoot()) }
      let gram = Matrix(rows: here.inputs.columns, columns: here.inputs.columns)
      run.backend.accumulateGram(here.inputs, into: gram)
      run.backend.symmetrize(gram)
      expectClose(try #require(run.grams[here.module]), gram, here.module)
    }
  }

  @Test(arguments: fixtures, [1, 3, 4])
  func `what adds to the residual stream aims at the original model's, by the samples that both run`(
    _ fixture: String, _ samples: Int
  ) throws {
    try expectCorrections(of: LoopRun(fixture, batchSamples: 2, originalSamples: samples), samples: samples)
  }

  private func expectCorrections(of run: LoopRun, samples: Int) throws {
    let original = try run.inputs(quantized: false, samples: samples)
    for (index, here) in try run.inputs(quantized: true, samples: samples).enumerated() {
      let there = original[index]
      let description = run.description.layers[0]
      // What a norm changes before it is added cannot be aimed at.
      let isOutput =
        description.mlpOutputNorm == nil
        && ["o_proj", "out_proj", "dense", "down_proj", "fc2", "dense_4h_to_h"]
          .contains { here.module.hasSuffix(".\($0)") }
      guard let correction = run.corrections[here.module] else {
        #expect(!isOutput, "\(here.module)")
        continue
      }
      #expect(isOutput, "\(here.module)")
      // E Xᵀ, E being what the residual stream is off by once the linear has run
      let off = there.residual
      run.backend.subtract(here.residual, from: off)
      run.backend.scale(off, by: 1 / description.residualScale)
      run.backend.subtract(here.inputs, from: there.inputs)
      run.backend.multiply(there.inputs, there.weights, transposingB: true, scale: 1, into: off, keeping: 1)
      try expectRegression(correction, of: off, on: here.inputs, ridge: 1, here.module, run)
    }
  }

  /// That E Xᵀ = C · (X Xᵀ + λI), λ being a share of the mean diagonal.
  private func expectRegression(
    _ correction: Matrix, of off: Matrix, on inputs: Matrix, ridge share: Float, _ module: String,
    _ run: LoopRun
  ) throws {
    let sum = Matrix(rows: off.columns, columns: inputs.columns)
    run.backend.accumulateCrossProduct(off, inputs, into: sum)
    let gram = Matrix(rows: sum.columns, columns: sum.columns)
    run.backend.accumulateGram(inputs, into: gram)
    run.backend.symmetrize(gram)
    let ridge = share * (0..<gram.rows).reduce(0) { $0 + gram[$1, $1] } / Float(gram.rows)
    for column in 0..<gram.rows { gram[column, column] += ridge }
    let product = Matrix(rows: sum.rows, columns: sum.columns)
    run.backend.multiply(correction, gram, transposingB: false, scale: 1, into: product, keeping: 0)
    expectClose(product, sum, module, tolerance: 2e-3)
  }

  @Test(arguments: fixtures, [1, 3, 4])
  func `the head's correction is the regression of what its inputs lack, by the samples that both run`(
    _ fixture: String, _ samples: Int
  ) throws {
    let run = try LoopRun(fixture, batchSamples: 2, originalSamples: samples)
    let here = try run.headInputs(quantized: true, samples: samples)
    let off = try run.headInputs(quantized: false, samples: samples)
    run.backend.subtract(here, from: off)
    // More of it the fewer tokens there are for a column.
    let ridge = 0.1 * max(1, 7 * Float(here.columns) / Float(here.rows))
    try expectRegression(try #require(run.headCorrection), of: off, on: here, ridge: ridge, "the head", run)
  }

  @Test(arguments: fixtures)
  func `every linear is solved once, in the order of the stages`(_ fixture: String) throws {
    let run = try LoopRun(fixture, batchSamples: 4)
    let expected = (0..<run.description.layerCount).flatMap { index in
      run.description.linears(ofLayer: index).map { run.description.layerPrefix(index) + $0.name }
    }
    #expect(run.modules == expected)
  }

  @Test func `the cache holds nothing but the states between two stages`() throws {
    let run = try LoopRun("llama", batchSamples: 2)
    // After the last stage but one: the residual stream and the intermediate activations, in fp32.
    let perToken = run.description.hiddenSize + run.description.intermediateSize
    #expect(run.statistics.currentRawBytes == run.calibration.tokens.count * perToken * 4)
  }

  private func expectClose(
    _ values: Matrix, _ expected: Matrix, _ module: String, tolerance: Float = 1e-4,
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    let largest = expected.elements.map(abs).max() ?? 0
    let difference = zip(values.elements, expected.elements).map { abs($0 - $1) }.max() ?? .infinity
    #expect(
      values.count == expected.count && difference <= tolerance * largest,
      "\(module): \(difference) of \(largest)", sourceLocation: sourceLocation)
  }
}

/// A checkpoint that remembers what it was told will be read.
private final class WatchedSource: WeightSource {
  private let base: any WeightSource
  private let announced = Mutex<Set<String>>([])

  init(_ base: any WeightSource) { self.base = base }

  func shape(of tensor: String) -> [Int]? { base.shape(of: tensor) }

  func read(_ tensor: String, rows: Range<Int>, into panel: Matrix) throws {
    try base.read(tensor, rows: rows, into: panel)
  }

  func willNeed(_ tensor: String) { announced.withLock { _ = $0.insert(tensor) } }

  /// Whether they have been announced, or will be in a moment.
  func announces(_ tensors: [String]) -> Bool {
    for _ in 0..<1_000 {
      if announced.withLock({ $0.isSuperset(of: tensors) }) { return true }
      usleep(10_000)
    }
    return false
  }
}

/// A loop over a fixture that rounds every linear to nearest and remembers what it was given.
final class LoopRun {
  let description: ModelDescription
  let calibration: CalibrationSet
  let backend = OpenBLASBackend(threads: 2)
  let statistics: CacheStatistics
  private(set) var modules: [String] = []
  private(set) var grams: [String: Matrix] = [:]
  private(set) var corrections: [String: Matrix] = [:]
  private(set) var headCorrection: Matrix?
  private var quantized: [String: Matrix] = [:]
  private let checkpoint: CheckpointReader

  let firstTokenWeight: Float

  init(
    _ fixture: String, batchSamples: Int, originalSamples: Int? = nil,
    experts: ExpertSettings = ExpertSettings(), firstTokenWeight: Float = 1
  ) throws {
    self.firstTokenWeight = firstTokenWeight
    let checkpoint = try CheckpointReader(directory: TestFiles.model(fixture))
    self.checkpoint = checkpoint
    description = try ModelDescription(checking: checkpoint, source: checkpoint)
    var generator = SeededGenerator(seed: 6)
    calibration = CalibrationSet(
      sequenceLength: 12, tokens: (0..<48).map { _ in Int32.random(in: 0..<64, using: &generator) })
    let directory = try TemporaryDirectory()
    let store = try HiddenStatesStore(
      path: directory.file("cache.mdb"), elementType: .float32, threads: 2)
    let model = { [description, backend] in
      try DecoderModel(description, source: checkpoint, backend: backend, sequenceLength: 12)
    }
    let loop = LayerLoop(
      model: try model(), original: originalSamples == nil ? nil : try model(),
      originalSamples: originalSamples ?? 0, calibration: calibration,
      store: store, backend: backend, batchSamples: batchSamples, experts: experts,
      firstTokenWeight: firstTokenWeight)
    // Four bits: enough of an error for a stage to notice whether those before it are quantized.
    let format = GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: false)
    var modules: [String] = []
    var grams: [String: Matrix] = [:]
    var corrections: [String: Matrix] = [:]
    var quantized: [String: Matrix] = [:]
    let backend = backend
    func quantize(
      _ layer: DecoderLayer, _ stage: Stage, _ problem: LayerProblem, _: LayerLoop.ExpertShare?
    ) throws -> LayerLoop.Replacements {
      try stage.linears.map { linear in
        let module = layer.moduleName(of: linear)
        modules.append(module)
        grams[module] = problem.gram.copy()
        corrections[module] = problem.correction
        let solution = try RoundToNearest().quantize(
          name: module, weights: layer.storedWeights(of: linear),
          problem: LayerProblem(gram: problem.gram.copy(), backend: backend),
          format: format,
          backend: backend)
        quantized[module] = solution.linear.dequantized()
        return (linear, solution.linear)
      }
    }
    var headCorrection: Matrix?
    try loop.run(quantize, correctingHead: originalSamples == nil ? nil : { headCorrection = $0 })
    self.headCorrection = headCorrection
    statistics = store.statistics
    (self.modules, self.grams, self.corrections, self.quantized) = (modules, grams, corrections, quantized)
  }

  /// What a linear reads, what the residual stream then is, and the linear's own weights.
  struct Reading {
    let module: String
    /// Whether it is one of those that keys and values are made by, or that read what those do.
    let makesKeys: Bool
    let inputs: Matrix
    let residual: Matrix
    let weights: Matrix
  }

  /// Calls `body` for every mixture, with what its experts read of all samples when all before them is quantized.
  func forEachMixture(_ body: (DecoderLayer, Stage, Matrix) throws -> Void) throws {
    let model = try DecoderModel(
      description, source: checkpoint, backend: backend, sequenceLength: calibration.sequenceLength)
    var state = LayerState(residual: try model.embed(calibration.tokens).copy())
    for index in 0..<description.layerCount {
      let layer = try model.layer(index)
      for linear in description.linears(ofLayer: index) {
        guard let weights = quantized[layer.moduleName(of: linear)] else { continue }
        layer.replaceWeights(of: linear) { store in store(weights) }
      }
      for stage in layer.stages {
        let input = layer.input(of: stage, state)
        if !stage.experts.isEmpty { try body(layer, stage, layer.mixtureInput(of: stage, state).copy()) }
        layer.run(stage, input: input, sequenceLength: calibration.sequenceLength, state: &state)
      }
    }
  }

  /// Multiplies what a sequence's first token brings.
  func weigh(_ states: Matrix, by factor: Float) {
    for row in stride(from: 0, to: states.rows, by: calibration.sequenceLength) {
      backend.scale(states.rows(row..<row + 1), by: factor)
    }
  }

  /// What every linear reads of the first samples, with all of them quantized or none: the input of a stage depends
  /// on stages before it alone.
  func inputs(quantized isQuantized: Bool, samples: Int) throws -> [Reading] {
    try walk(quantized: isQuantized, samples: samples).readings
  }

  /// What the head reads of the first samples.
  func headInputs(quantized isQuantized: Bool, samples: Int) throws -> Matrix {
    let (model, _, residual) = try walk(quantized: isQuantized, samples: samples)
    return try model.headInput()(residual).copy()
  }

  private func walk(
    quantized isQuantized: Bool, samples: Int
  ) throws -> (model: DecoderModel, readings: [Reading], residual: Matrix) {
    let model = try DecoderModel(
      description, source: checkpoint, backend: backend, sequenceLength: calibration.sequenceLength)
    var state = LayerState(residual: try model.embed(calibration.tokens(of: 0..<samples)).copy())
    var inputs: [Reading] = []
    for index in 0..<description.layerCount {
      let layer = try model.layer(index)
      if isQuantized {
        for linear in description.linears(ofLayer: index) {
          guard let weights = quantized[layer.moduleName(of: linear)] else { continue }
          layer.replaceWeights(of: linear) { store in store(weights) }
        }
      }
      for stage in layer.stages {
        let input = layer.input(of: stage, state)
        // Experts read some of the tokens each: see MixtureTests.
        inputs += try (stage.experts.isEmpty ? stage.linears : []).map {
          Reading(
            module: layer.moduleName(of: $0),
            makesKeys: stage.parts.contains { [.attention, .latents, .latentAttention].contains($0) },
            inputs: input.copy(), residual: state.residual.copy(),
            weights: try layer.storedWeights(of: $0))
        }
        layer.run(stage, input: input, sequenceLength: calibration.sequenceLength, state: &state)
      }
    }
    return (model, inputs, state.residual)
  }
}
