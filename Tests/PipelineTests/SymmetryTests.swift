import Checkpoint
import Decoder
import Export
import TestSupport
import Testing

@testable import Pipeline

/// Which grids a result has where nobody says.
struct SymmetryTests {
  @Test(arguments: [
    ("llama", [OutputFormatName.compressedTensors], false), ("llama", [.gptqV2], false),
    ("llama", [.awq], false), ("llama", [.dense], false), ("llama", [.gptq], true),
    ("llama", [.compressedTensors, .gptq], true),
    ("qwen3-moe", [.compressedTensors], true), ("qwen3-moe", [.dense], false),
    ("qwen3-moe", [.compressedTensors, .dense], true),
  ])
  func `grids are symmetric by default where more of the formats are loaded then`(
    _ fixture: String, _ formats: [OutputFormatName], _ isSymmetric: Bool
  ) throws {
    let found = try grid(fixture) { $0.formats = formats }
    #expect(found == isSymmetric)
  }

  @Test func `what is asked for stays, and experts that stay as they are decide nothing`() throws {
    #expect(try !grid("qwen3-moe") { $0.symmetric = false })
    #expect(try grid("llama") { $0.symmetric = true })
    #expect(try !grid("qwen3-moe") { $0.rules = ["mlp=skip"] })
  }

  @Test func `a run and its plan choose the same`() throws {
    let bench = try ResumeBench(ResumeCase("qwen3-moe"))
    let result = try bench.uninterrupted()
    #expect(!result.rows.contains { !$0.symmetric })
    let report = try bench.report()
    #expect(report.settings.symmetric)
    #expect(report.loadsIn.contains { $0.loads })
    let plan = try RunPlan(
      model: TestFiles.model("qwen3-moe"), settings: QuantizationSettings(), symlinks: .follow)
    #expect(!plan.treatments.values.contains { !$0.gridFormat.isSymmetric })
  }

  /// A person who says nothing is not to find files in the morning that nothing reads: the run is refused, or some runtime
  /// loads what it writes.
  @Test func `by default every family's result is loaded by some runtime`() throws {
    var refused: [String] = []
    for fixture in TestFiles.models {
      do {
        let plan = try RunPlan(
          model: TestFiles.model(fixture), settings: QuantizationSettings(), symlinks: .follow)
        let grid = try #require(plan.treatments.values.first?.gridFormat)
        let runtimes = OutputFormatName.compressedTensors.format.runtimes(
          for: grid, of: plan.model.traits(of: plan.treatments))
        #expect(runtimes.contains { $0.loads }, "\(fixture)")
      } catch let error as ExportError {
        refused.append("\(fixture): \(error)")
      }
    }
    #expect(refused.count == 2 && refused.allSatisfy { $0.hasPrefix("gpt-oss") }, "\(refused)")
  }

  private func grid(_ fixture: String, _ change: (inout QuantizationSettings) -> Void) throws -> Bool {
    var settings = QuantizationSettings()
    change(&settings)
    let checkpoint = try CheckpointReader.open(TestFiles.model(fixture))
    let model = try ModelDescription(checking: checkpoint, source: checkpoint)
    return try settings.recipe().choosingSymmetry(for: model, in: checkpoint, formats: settings.formats)
      .standard.gridFormat.isSymmetric
  }
}
