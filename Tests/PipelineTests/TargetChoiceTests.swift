import Testing

@testable import Pipeline

struct TargetChoiceTests {
  @Test func `the published algorithms have no other target than the layer's own output, unless told`() {
    var settings = QuantizationSettings()
    #expect(settings.resolvedTarget == .original)
    settings.preset = .paper
    #expect(settings.resolvedTarget == .layer)
    settings.target = .original
    #expect(settings.resolvedTarget == .original)
    settings = QuantizationSettings()
    for solver in [QuantizationSettings.SolverName.gptq, .rtn] {
      settings.solver = solver
      #expect(settings.resolvedTarget == .layer)
    }
    settings = QuantizationSettings()
    settings.target = .layer
    #expect(settings.resolvedTarget == .layer)
  }

  @Test func `the published algorithms are not rotated, unless told`() {
    var settings = QuantizationSettings()
    #expect(settings.resolvedRotation == .auto)
    for change: (inout QuantizationSettings) -> Void in [
      { $0.preset = .paper }, { $0.solver = .gptq }, { $0.solver = .rtn },
    ] {
      settings = QuantizationSettings()
      change(&settings)
      #expect(settings.resolvedRotation == .off)
      settings.rotate = .residual
      #expect(settings.resolvedRotation == .residual)
    }
  }

  @Test(arguments: [(2, 1), (3, 1), (4, 0.25), (5, 0.125), (8, 0.125)])
  func `the share follows from the bits, unless it is given`(_ bits: Int, _ share: Double) {
    var settings = QuantizationSettings()
    settings.bits = bits
    #expect(settings.resolvedTargetShare == share)
    settings.targetShare = 0.5
    #expect(settings.resolvedTargetShare == 0.5)
  }

  @Test func `the first token counts more from 3 bits on, but not where algorithms are as published`() {
    var settings = QuantizationSettings()
    #expect(settings.resolvedFirstTokenWeight == 16)
    for change: (inout QuantizationSettings) -> Void in [
      { $0.bits = 2 }, { $0.averageBits = 2.5 }, { $0.preset = .paper }, { $0.solver = .gptq },
    ] {
      settings = QuantizationSettings()
      change(&settings)
      #expect(settings.resolvedFirstTokenWeight == 1)
      settings.firstTokenWeight = 9
      #expect(settings.resolvedFirstTokenWeight == 9)
    }
  }

  @Test(arguments: [0, -0.5, 1.5])
  func `a share that is none is refused`(_ share: Double) {
    var settings = QuantizationSettings()
    settings.targetShare = share
    #expect(throws: SettingsError.self) { try settings.validate() }
  }
}
