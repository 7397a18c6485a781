import Checkpoint
import Quantization
import SystemIO
import Tensors
import Testing

@testable import Export

struct FormatTests {
  /// Exports one 32 × 32 linear whose zero points are all `zeroPoint` and gives its packed zero points.
  private func storedZeroPoints(_ zeroPoint: Int, bits: BitWidth, _ name: OutputFormatName) throws -> [UInt32]
  {
    let scratch = try ScratchDirectory()
    let source = try makeCheckpoint(
      in: scratch.subdirectory("source"),
      [StoredTensor("a.weight", floats: [Float](repeating: 1, count: 1024), as: .float16, shape: [32, 32])])
    let format = gridFormat(bits, .channel, symmetric: false, for: [name], dtype: .float16)
    let linear = randomLinear("a", outFeatures: 32, inFeatures: 32, format: format)
    linear.grid.shifts.fill(Float(zeroPoint))
    let output = try scratch.subdirectory("output")
    let export = try CheckpointExport(
      source: source,
      linears: [
        LinearDescription(name: "a", outFeatures: 32, inFeatures: 32, gridFormat: format, hasBias: false)
      ], formats: [name], directory: output)
    try export.write(linear)
    try export.finish()
    let reader = try CheckpointReader(directory: output)
    return try reader.words("a.qzeros", rows: 0..<1, columns: 0..<bits.rawValue)
  }

  @Test(arguments: [
    ("re:(.*\\.)?model\\.layers\\.0\\.up_proj$", "model.layers.0.up_proj"),
    ("re:(.*\\.)?a-b\\.c$", "a-b.c"),
    ("re:(.*\\.)?a.c$", nil), ("re:(.*\\.)?a\\d$", nil), ("re:(.*\\.)?a\\", nil), ("re:a\\.c$", nil),
    ("Linear", nil),
  ])
  func `a target for one module is known by its name`(_ target: String, _ name: String?) {
    #expect(ModulePattern.name(of: target) == name)
  }

  @Test func `targets rank as each of them does`() {
    let targets = ["Linear", "a.b", ModulePattern.matching("c.d"), "re:.*\\.e", "re:(.*\\.)?f.$"]
    for name in ["a.b", "x.a.b", "c.d", "x.c.d", "xc.d", "c.de", "x.e", "e", "x.fg", "fg", "other"] {
      let ranks = targets.compactMap { ModulePattern.rank(of: $0, for: name) }
      #expect(ModuleTargets(targets).rank(of: name) == ranks.min(), "\(name)")
      #expect(
        ModuleTargets(Array(targets.dropFirst())).rank(of: name)
          == targets.dropFirst().compactMap { ModulePattern.rank(of: $0, for: name) }.min(), "\(name)")
    }
  }

  @Test(arguments: GPTQFormat.bitWidths)
  func `version 1 stores the smallest zero point as all zeros and the largest one below it`(
    bits: BitWidth
  ) throws {
    #expect(try storedZeroPoints(1, bits: bits, .gptq).allSatisfy { $0 == 0 })
    let largest = try storedZeroPoints(bits.maximumCode, bits: bits, .gptq)
    // Every lane holds 2^b − 2: all bits but the lowest of each lane.
    var unpacked = [UInt8](repeating: 0, count: 32)
    var output = unpacked.mutableSpan
    unpack(largest.span, bits: bits.rawValue, count: 32, into: &output)
    #expect(unpacked.allSatisfy { $0 == bits.maximumCode - 1 })
  }

  @Test(arguments: GPTQFormat.bitWidths)
  func `version 2 stores a zero point as it is`(bits: BitWidth) throws {
    let stored = try storedZeroPoints(bits.maximumCode, bits: bits, .gptqV2)
    #expect(stored.allSatisfy { $0 == UInt32.max })
  }

  @Test func `a word of AWQ has eight rows in its readers' order, and groups their zero points and scales`()
    throws
  {
    let scratch = try ScratchDirectory()
    let source = try makeCheckpoint(
      in: scratch.subdirectory("source"),
      [StoredTensor("a.weight", floats: [Float](repeating: 1, count: 2048), as: .float16, shape: [32, 64])])
    let format = gridFormat(.four, .columns(32), symmetric: false, for: [.awq], dtype: .float16)
    let grid = Grid(format: format, outFeatures: 32, inFeatures: 64)
    grid.scales.fill(0.5)
    for row in 0..<32 { (grid.shifts[row, 0], grid.shifts[row, 1]) = (8, Float(1 + row % 15)) }
    // Row r and column c hold r + c.
    let codes = (0..<2048).map { UInt8(($0 / 64 + $0 % 64) % 16) }
    let output = try scratch.subdirectory("output")
    let export = try CheckpointExport(
      source: source,
      linears: [
        LinearDescription(name: "a", outFeatures: 32, inFeatures: 64, gridFormat: format, hasBias: false)
      ], formats: [.awq], directory: output)
    try export.write(QuantizedLinear(name: "a", codes: codes, grid: grid))
    try export.copyUnquantized()
    try export.finish()
    let reader = try CheckpointReader(directory: output)
    #expect(reader.shape(of: "a.qweight") == [64, 4])
    let words = try reader.words("a.qweight", rows: 0..<2, columns: 0..<2)
    #expect(words == [0x7531_6420, 0xFDB9_ECA8, 0x8642_7531, 0x0ECA_FDB9])
    #expect(try reader.words("a.qzeros", rows: 0..<2, columns: 0..<1) == [0x8888_8888, 0x8642_7531])
    #expect(reader.configuration["quantization_config"]?["version"] == "gemm")
  }

  @Test func `a zero point that does not fit its lane stops the program`() async {
    await #expect(processExitsWith: .failure) {
      let format = GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: false)
      let grid = Grid(format: format, outFeatures: 32, inFeatures: 32)
      _ = zeroPointCodes(of: grid, group: 0, offset: 1)
    }
  }

  @Test func `a scale that was not rounded to its type stops the program`() async {
    await #expect(processExitsWith: .failure) {
      _ = encodeScales(Matrix(rows: 1, columns: 1, [0.1]), as: .float16)
    }
  }

  @Test func `GPTQ refuses extents that are no multiples of 32 and names the linear`() {
    let format = GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: true)
    let linear = LinearDescription(
      name: "odd", outFeatures: 40, inFeatures: 64, gridFormat: format, hasBias: false)
    let expected = ExportError.featuresNotMultipleOf32(
      linear: "odd", outFeatures: 40, inFeatures: 64, format: .gptqV2)
    #expect(throws: expected) { try GPTQFormat(version: .two).check([linear]) }
    #expect(expected.description.contains("odd") && expected.description.contains("compressed-tensors"))
    #expect(throws: Never.self) { try CompressedTensorsFormat().check([linear]) }
  }

  @Test func `GPTQ refuses linears of different grids`() {
    var linears = descriptions(GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: true))
    linears[2].gridFormat?.bitWidth = .eight
    #expect(
      throws: ExportError.mixedGrids(linear: linears[0].name, other: linears[2].name, format: .gptq)
    ) { try GPTQFormat(version: .one).check(linears) }
  }

  @Test func `compressed-tensors refuses a group size that leaves a shorter group`() {
    let format = GridFormat(bitWidth: .four, groupSize: .columns(64), isSymmetric: true)
    #expect(
      throws: ExportError.groupSizeDoesNotDivide(
        linear: modelLinears[0].name, groupSize: 64, inFeatures: 96, format: .compressedTensors)
    ) { try CompressedTensorsFormat().check(descriptions(format)) }
  }

  @Test(arguments: [OutputFormatName.gptq, .gptqV2])
  func `a shorter last group of GPTQ loads in transformers, not in vLLM`(_ name: OutputFormatName) throws {
    let scratch = try ScratchDirectory()
    let source = try makeModel(in: scratch.subdirectory("source"))
    func loads(groupsOf columns: Int) throws -> [String: Bool] {
      let format = gridFormat(.four, .columns(columns), symmetric: true, for: [name])
      let export = try CheckpointExport(
        source: source, linears: descriptions(format), formats: [name],
        directory: scratch.subdirectory("groups-of-\(columns)"))
      return Dictionary(uniqueKeysWithValues: export.runtimes.map { ($0.runtime, $0.loads) })
    }
    #expect(try loads(groupsOf: 32) == ["vLLM": true, "transformers": true])
    // Of 96 and 160 columns.
    #expect(try loads(groupsOf: 64) == ["vLLM": false, "transformers": true])
    // No whole group at all.
    #expect(try loads(groupsOf: 256) == ["vLLM": false, "transformers": true])
  }

  @Test func `the compressed-tensors configuration has the keys of the format`() throws {
    let format = GridFormat(bitWidth: .three, groupSize: .columns(32), isSymmetric: false)
    let configuration = try #require(
      CompressedTensorsFormat().quantizationConfiguration(of: descriptions(format), besides: []))
    let expected: JSONValue = [
      "quant_method": "compressed-tensors", "format": "pack-quantized",
      "quantization_status": "compressed", "version": "0.18.0", "ignore": ["lm_head"],
      "config_groups": [
        "group_0": [
          "targets": ["Linear"], "input_activations": nil, "output_activations": nil,
          "weights": [
            "num_bits": 3, "type": "int", "symmetric": false, "strategy": "group", "group_size": 32,
            "dynamic": false,
          ],
        ]
      ],
    ]
    #expect(configuration == expected)
  }

  @Test func `mixed grids get groups with targets, and linears without a grid are ignored`() throws {
    var linears = descriptions(GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: true))
    linears[1].gridFormat = nil
    linears[2].gridFormat?.bitWidth = .eight
    let configuration = try #require(
      CompressedTensorsFormat().quantizationConfiguration(of: linears, besides: []))
    let groups = try #require(configuration["config_groups"]?.object)
    #expect(groups.count == 2)
    #expect(groups["group_1"]?["weights"]?["num_bits"] == 8)
    let target = try #require(groups["group_1"]?["targets"]?.array?.first?.string)
    #expect(ModulePattern.rank(of: target, for: linears[2].name) == 1)
    #expect(ModulePattern.name(of: target) == linears[2].name)
    #expect(ModulePattern.rank(of: target, for: "prefix.\(linears[2].name)") == 1)
    #expect(ModulePattern.rank(of: target, for: linears[0].name) == nil)
    #expect(ModulePattern.rank(of: target, for: "\(linears[2].name)x") == nil)
    let ignored = try #require(configuration["ignore"]?.array).map { $0.string ?? "" }
    #expect(ignored.first == "lm_head")
    #expect(ignored.count == 2 && ModulePattern.rank(of: ignored[1], for: linears[1].name) == 1)
  }

  @Test func `towers beside the text model are left alone, wherever a program moves them`() throws {
    let linears = descriptions(GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: true))
    let packed = CompressedTensorsFormat().quantizationConfiguration(of: linears, besides: ["vision_tower"])
    let gptq = GPTQFormat(version: .two).quantizationConfiguration(of: linears, besides: ["vision_tower"])
    let target = try #require(packed?["ignore"]?.array?.last?.string)
    for name in ["vision_tower.a.fc1", "model.vision_tower.a.fc1"] {
      #expect(ModulePattern.rank(of: target, for: name) == 1)
    }
    for name in ["a.my_vision_tower.fc1", "vision_tower", linears[0].name] {
      #expect(ModulePattern.rank(of: target, for: name) == nil)
    }
    // A minus before what takes a module out.
    #expect(gptq?["dynamic"] == .object(["-:\(target.dropFirst(3))": .object([:])]))
  }

  @Test(arguments: [(GPTQFormat.Version.one, "gptq"), (.two, "gptq_v2")])
  func `the GPTQ configuration has the keys of the format`(
    version: GPTQFormat.Version, notation: String
  ) throws {
    let format = GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: true)
    let configuration = try #require(
      GPTQFormat(version: version).quantizationConfiguration(of: descriptions(format), besides: []))
    #expect(configuration["quant_method"] == "gptq")
    #expect(configuration["checkpoint_format"] == .string(notation))
    #expect(configuration["bits"] == 4 && configuration["group_size"] == -1)
    #expect(configuration["sym"] == true && configuration["desc_act"] == false)
    #expect(configuration["lm_head"] == false && configuration["pack_dtype"] == "int32")
    #expect(
      GPTQFormat(version: version).files(configuration: configuration)
        == ["quantize_config.json": configuration])
  }

  @Test func `of several grids in one checkpoint transformers takes symmetric ones`() {
    func support(symmetric: Bool) -> RuntimeSupport? {
      let format = GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: symmetric)
      return CompressedTensorsFormat().runtimes(for: format, of: .severalGrids).first {
        $0.runtime == "transformers"
      }
    }
    #expect(support(symmetric: false)?.loads == false)
    #expect(support(symmetric: true)?.loads == true)
    #expect(support(symmetric: true)?.note.contains("not with dequantize=True") == true)
  }

  @Test func `the table of runtimes knows what they refuse`() {
    func loads(_ name: OutputFormatName, _ bits: BitWidth, symmetric: Bool, _ runtime: String) -> Bool? {
      let format = GridFormat(bitWidth: bits, groupSize: .channel, isSymmetric: symmetric)
      return name.format.runtimes(for: format, of: []).first { $0.runtime == runtime }?.loads
    }
    #expect(loads(.compressedTensors, .four, symmetric: true, "vLLM") == true)
    #expect(loads(.compressedTensors, .three, symmetric: false, "vLLM") == false)
    #expect(loads(.compressedTensors, .three, symmetric: false, "transformers") == true)
    #expect(loads(.gptq, .four, symmetric: true, "vLLM") == true)
    #expect(loads(.gptq, .three, symmetric: true, "vLLM") == false)
    #expect(loads(.gptq, .four, symmetric: false, "transformers") == false)
    #expect(loads(.gptqV2, .four, symmetric: false, "transformers") == true)
    #expect(loads(.dense, .two, symmetric: false, "vLLM") == true)
  }
}
