import Checkpoint
import ComputeOpenBLAS
import Quantization
import Solvers
import Tensors
import TestSupport
import Testing

/// Weights and Gram matrices of linears of a real model.
let layersFile = TestFiles.reference("layers.safetensors")

/// Relative errors on four linears of a real model, against those of other implementations on the same
/// weights and Gram matrices.
@Suite(
  .serialized, .enabled(if: layersFile != nil, "needs reference/layers.safetensors; see QUANTEASE_SHARED"))
struct ReferenceLayerTests {
  /// Errors in percent. At 4, 3 and 2 bits: rounding to nearest and the paper's own code, 25 passes; at 3
  /// bits: GPTQ with its damping of 1 %, and the best that an independent prototype reached.
  struct Layer: Sendable, CustomTestStringConvertible {
    let name: String
    let rounding: [Double]
    let paper: [Double]
    let gptq: Double
    let best: Double

    var testDescription: String { name }
  }

  static let layers = [
    Layer(
      name: "layers.15.self_attn.q_proj", rounding: [1.1339, 5.0599, 21.4123],
      paper: [0.1693, 0.7601, 3.7136],
      gptq: 0.821, best: 0.379),
    Layer(
      name: "layers.15.mlp.gate_proj", rounding: [1.0621, 4.8179, 24.4771], paper: [0.3190, 1.4439, 7.3686],
      gptq: 1.567, best: 0.792),
    Layer(
      name: "layers.15.mlp.down_proj", rounding: [2.4620, 11.1035, 46.0835],
      paper: [1.0062, 4.4745, 20.0937],
      gptq: 5.105, best: 1.935),
    Layer(
      name: "layers.29.self_attn.o_proj", rounding: [1.8209, 7.2055, 34.8620],
      paper: [0.3417, 1.5641, 7.9711],
      gptq: 1.101, best: 0.616),
  ]
  private static let bits: [BitWidth] = [.four, .three, .two]

  @Test(arguments: layers)
  func `rounding to nearest has the known errors`(_ layer: Layer) throws {
    let problem = try TestProblem(layer.name)
    for (bits, expected) in zip(Self.bits, layer.rounding) {
      let error = try percent(.rounding, problem, bits)
      #expect(abs(error / expected - 1) < 0.01, "\(bits): \(error), expected \(expected)")
    }
  }

  @Test(arguments: layers)
  func `the paper's schedule is as good as the paper's code`(_ layer: Layer) throws {
    let problem = try TestProblem(layer.name)
    for (bits, expected) in zip(Self.bits, layer.paper) {
      let error = try percent(.paper, problem, bits)
      #expect(error <= 1.02 * expected, "\(bits): \(error), expected \(expected)")
    }
  }

  @Test(arguments: layers)
  func `GPTQ has the known errors`(_ layer: Layer) throws {
    let error = try percent(.gptq, TestProblem(layer.name), .three)
    #expect(abs(error / layer.gptq - 1) < 0.01, "\(error), expected \(layer.gptq)")
  }

  @Test(arguments: layers)
  func `the standard settings are as good as the best that is known`(_ layer: Layer) throws {
    let error = try percent(.standard, TestProblem(layer.name), .three)
    // The table has three decimals.
    #expect(error <= layer.best + 0.0005, "\(error), expected \(layer.best)")
  }

  /// The bounds lie above the largest ratio that any of the four linears has.
  @Test(arguments: [(BitWidth.two, 0.87), (.three, 0.88), (.four, 0.91)], [GroupSize.channel, .columns(64)])
  func `a signed scale lowers the error of a symmetric grid`(
    _ width: (bits: BitWidth, bound: Double), _ group: GroupSize
  ) throws {
    // Of a whole row's many weights, some lie far out on either side.
    let bound = group == .channel ? 0.965 : width.bound
    for layer in Self.layers {
      let problem = try TestProblem(layer.name)
      let errors = try [true, false].map { isSigned in
        try percent(
          .standard, problem,
          GridFormat(bitWidth: width.bits, groupSize: group, isSymmetric: true, hasSignedScales: isSigned))
      }
      #expect(errors[0] < bound * errors[1], "\(layer.name): \(errors)")
    }
  }

  private func percent(_ method: Method, _ problem: TestProblem, _ bits: BitWidth) throws -> Double {
    try percent(method, problem, GridFormat(bitWidth: bits, groupSize: .channel, isSymmetric: false))
  }

  private func percent(_ method: Method, _ problem: TestProblem, _ format: GridFormat) throws -> Double {
    let solution = try method.solve(problem, format)
    #expect(solution.isValid)
    return 100 * solution.relativeError
  }
}

extension TestProblem {
  /// A linear of `layersFile`.
  init(_ name: String) throws {
    let file = try CheckpointReader(file: try #require(layersFile))
    func matrix(_ name: String) throws -> Matrix {
      try file.matrix(name, shape: try #require(file.shape(of: name)))
    }
    self.init(weights: try matrix("\(name).weight"), gram: try matrix("\(name).gram"))
  }
}
