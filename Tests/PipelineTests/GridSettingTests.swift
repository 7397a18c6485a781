import Export
import TestSupport
import Testing

@testable import Pipeline

/// What a person says of grids is read, or refused: a result of 4 bits where 3 were asked for is a wrong one that nobody sees.
struct GridSettingTests {
  private typealias Setting = QuantizationSettings.ConditionalSetting

  private static let grid: [Setting] = [.bits, .groupSize, .symmetry]
  private static let file: [Setting] = [.ggufType, .ggufPure]

  private func ignored(_ change: (inout QuantizationSettings) -> Void) -> [Setting] {
    var settings = QuantizationSettings()
    change(&settings)
    return (Self.grid + Self.file).filter { settings.reasonToIgnore($0) != nil }
  }

  @Test func `a GGUF file reads its types, and other formats read bits, groups and symmetry`() {
    #expect(ignored { $0.formats = [.gguf] } == Self.grid)
    for format in OutputFormatName.allCases where format != .gguf {
      #expect(ignored { $0.formats = [format] } == Self.file, "\(format)")
    }
    #expect(ignored { $0.formats = [.dense, .gptq] } == Self.file)
  }

  @Test func `an average stands in the place of bits, and of a file's type`() {
    #expect(ignored { $0.averageBits = 4.5 } == [.bits] + Self.file)
    #expect(ignored { ($0.averageBits, $0.formats) = (4.5, [.gguf]) } == Self.grid + [.ggufType])
    var settings = QuantizationSettings()
    settings.averageBits = 4.5
    #expect(settings.reasonToIgnore(.bits)?.contains("average-bits") == true)
  }

  @Test func `it is said what to ask for in its place`() {
    var settings = QuantizationSettings()
    #expect(settings.reasonToIgnore(.ggufType)?.contains("bits, group-size") == true)
    settings.formats = [.gguf]
    #expect(settings.reasonToIgnore(.bits)?.contains("gguf-type") == true)
  }

  /// A daemon's stand beside jobs of all formats.
  @Test func `defaults that a format does not read are no error`() throws {
    var settings = QuantizationSettings()
    (settings.bits, settings.groupSize, settings.symmetric, settings.formats) = (3, 64, true, [.gguf])
    let plan = try RunPlan(model: TestFiles.gguf("llama-wide.gguf"), settings: settings, symlinks: .follow)
    #expect(plan.outline?.file == "Q4_K_M")
    (settings.formats, settings.ggufType) = ([.compressedTensors], .q2_K)
    try settings.validate()
  }

  /// A rule is for linears of this one model, and what it says of them is either a type or refused.
  @Test(arguments: ["bits:3", "bits:4", "asymmetric", "group-size:64"])
  func `a rule that comes to no type of a GGUF file is refused`(_ setting: String) {
    var settings = QuantizationSettings()
    (settings.formats, settings.rules) = ([.gguf], ["down_proj=\(setting)"])
    #expect(throws: ExportError.self) {
      try RunPlan(model: TestFiles.gguf("llama-wide.gguf"), settings: settings, symlinks: .follow)
    }
  }
}
