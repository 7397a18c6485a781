import Compute
import Quantization
import Solvers
import Tensors
import Testing

@testable import Pipeline

/// The ridge that a linear's problem carries, by settings and rules.
struct DampingTests {
  private static func damping(
    rule: String? = nil, _ change: (inout QuantizationSettings) -> Void = { _ in }
  ) throws -> Float {
    var settings = QuantizationSettings()
    change(&settings)
    var treatment = try settings.recipe().standard
    if let rule {
      treatment = try RecipeRule(parsing: rule, solvers: ["gptq": GPTQ()]).applied(to: treatment)
    }
    let gram = Matrix(rows: 2, columns: 2, [1, 0, 0, 1])
    return treatment.damped(LayerProblem(gram: gram, backend: ReferenceBackend())).damping
  }

  @Test(arguments: [(2, 0.01), (3, 0.1), (4, 0.1), (8, 0.1)] as [(Int, Float)])
  func `it follows from the bits and outliers, unless it is given`(_ bits: Int, _ share: Float) throws {
    #expect(try Self.damping { $0.bits = bits } == share)
    #expect(try Self.damping { ($0.bits, $0.outliers) = (bits, 0.01) } == 0.1)
    #expect(try Self.damping { ($0.bits, $0.damping) = (bits, 0.05) } == 0.05)
  }

  @Test func `a rule's bits and solver have theirs`() throws {
    #expect(try Self.damping(rule: ".=bits:2") == 0.01)
    #expect(try Self.damping(rule: ".=solver:gptq") == 0.01)
    #expect(try Self.damping(rule: ".=bits:3") { $0.bits = 2 } == 0.1)
    #expect(try Self.damping(rule: ".=outliers:0.02") { $0.bits = 2 } == 0.1)
  }

  @Test func `the published algorithms keep theirs, and GPTQ takes another one`() throws {
    #expect(try Self.damping { $0.preset = .paper } == 0)
    #expect(try Self.damping { $0.solver = .rtn } == 0)
    #expect(try Self.damping { $0.solver = .gptq } == 0.01)
    #expect(try Self.damping { ($0.solver, $0.damping) = (.gptq, 0.05) } == 0.05)
  }

  @Test func `a ridge that is none, or goes with no solver, is refused`() throws {
    for share in [0, -0.1, 11, .infinity, .nan] {
      #expect(throws: SettingsError.self) { try Self.damping { $0.damping = share } }
    }
    #expect(throws: SettingsError.self) { try Self.damping { ($0.damping, $0.preset) = (0.1, .paper) } }
    #expect(throws: SettingsError.self) { try Self.damping { ($0.damping, $0.solver) = (0.1, .rtn) } }
  }
}
