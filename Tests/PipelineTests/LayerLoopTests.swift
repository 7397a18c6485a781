import Calibration
import Checkpoint
import Compute
import ComputeOpenBLAS
import Quantization
import Solvers
import SystemIO
import Synchronization
import Tensors
import TestSupport
import Testing

@testable import Decoder
@testable import Pipeline

/// The layer loop against its definition: a stage's Gram matrix is made of the inputs that the model has
/// there when everything before it is quantized.
struct LayerLoopTests {
  /// One of every arrangement of stages.
  static let fixtures = ["llama", "opt-pre", "opt-post-350m", "bloom", "falcon-7b", "falcon-40b", "falcon-rw"]

  @Test(arguments: fixtures)
  func `gram matrices are those of the quantized model so far`(_ fixture: String) throws {
    let spy = GramSpy()
    let run = try TestRun(fixture, solver: spy, batchBudget: .max)
    let backend = OpenBLASBackend(threads: 2)

    // The dense output holds every linear quantized. What enters a stage depends on stages before it only.
    let output = try CheckpointReader(directory: run.output)
    let model = try DecoderModel(
      run.description, source: output, backend: backend, sequenceLength: run.calibration.sequenceLength)
    let states = try model.embed(run.calibration.tokens).copy()
    for index in 0..<run.description.layerCount {
      let layer = try model.layer(index)
      var state = LayerState(residual: states)
      for stage in layer.stages {
        let input = layer.input(of: stage, state)
        let expected = GramMatrix(inFeatures: stage.linears[0].inFeatures)
        expected.accumulate(input, backend: backend)
        expected.finish(backend: backend)
        for linear in stage.linears {
          let found = try #require(spy.gram(of: layer.moduleName(of: linear)))
          expectClose(found, expected.values.elements, layer.moduleName(of: linear))
        }
        layer.run(
          stage, input: input, sequenceLength: run.calibration.sequenceLength, state: &state)
      }
    }
  }

  @Test(arguments: ["llama", "falcon-40b"])
  func `batches of one sequence give the same as all at once`(_ fixture: String) throws {
    let together = GramSpy()
    let oneByOne = GramSpy()
    let all = try TestRun(fixture, solver: together, batchBudget: .max)
    let single = try TestRun(fixture, solver: oneByOne, batchBudget: nil)
    #expect(all.plan.batchSamples == all.calibration.samples)
    #expect(single.plan.batchSamples == 1)
    #expect(together.names == oneByOne.names)
    // The first stage alone: its inputs are the same, later ones differ by what rounding made of a last bit.
    for linear in all.description.stages[0].linears {
      let name = all.description.layerPrefix(0) + linear.name
      expectClose(try #require(oneByOne.gram(of: name)), try #require(together.gram(of: name)), name)
    }
  }

  @Test func `every linear is solved once, in the order of the stages`() throws {
    let spy = GramSpy()
    let run = try TestRun("falcon-40b", solver: spy, batchBudget: .max)
    let expected = (0..<run.description.layerCount).flatMap { index in
      run.description.layerLinears.map { run.description.layerPrefix(index) + $0.name }
    }
    #expect(spy.names == expected)
    #expect(run.report.linears.map(\.name) == expected)
  }

  @Test func `an activation that is not finite ends the run with the layer and module`() throws {
    // Weights that overflow are no finite activations: Σ holds what no solver can take.
    let error = try #require(throws: (any Error).self) {
      try TestRun("llama", solver: OverflowingSolver(), batchBudget: .max)
    }
    #expect("\(error)".contains("layer"), "\(error)")
  }

  private func expectClose(
    _ values: [Float], _ expected: [Float], _ name: String,
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    let largest = expected.map(abs).max() ?? 0
    let difference = zip(values, expected).map { abs($0 - $1) }.max() ?? .infinity
    #expect(
      values.count == expected.count && difference <= 1e-4 * largest, "\(name): \(difference) of \(largest)",
      sourceLocation: sourceLocation)
  }
}

/// Rounds to nearest and remembers every linear's Gram matrix.
final class GramSpy: LayerSolver {
  let name = "spy"
  private let grams = Mutex<[[Float]]>([])
  private let order = Mutex<[String]>([])

  func solve(
    _ weights: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix, backend: any ComputeBackend
  ) throws {
    grams.withLock { $0.append(problem.gram.elements) }
    try RoundToNearest().solve(weights, problem: problem, grid: grid, into: codes, backend: backend)
  }

  /// Gives the matrices the names of the linears, in the order in which both came.
  func label(_ names: [String]) { order.withLock { $0 = names } }

  var names: [String] { order.withLock { $0 } }

  func gram(of name: String) -> [Float]? {
    names.firstIndex(of: name).map { index in grams.withLock { $0[index] } }
  }
}
