import SystemIO
import Tensors
import TestSupport
import Testing

@testable import Checkpoint

/// Weights in 8-bit floats, against what torch makes of them.
@Suite struct ScaledWeightsTests {
  @Test func `every 8-bit float has its value`() {
    #expect(float8E4M3Values[0] == 0 && float8E4M3Values[0x80].sign == .minus)
    #expect(float8E4M3Values[1] == 0x1p-9 && float8E4M3Values[8] == 0x1p-6)
    #expect(float8E4M3Values[0x38] == 1 && float8E4M3Values[0xB8] == -1 && float8E4M3Values[0x3C] == 1.5)
    #expect(float8E4M3Values[0x7E] == 448 && float8E4M3Values[0x7F].isNaN && float8E4M3Values[0xFF].isNaN)
  }

  @Test(arguments: ["blocks", "blocks-bf16", "tensor", "channel"], [nil, 1, 7])
  func `a checkpoint in 8-bit floats is read as the weights that it stands for`(_ layout: String, step: Int?)
    throws
  {
    let scaled = try CheckpointReader(directory: TestFiles.fp8(layout))
    let dense = try CheckpointReader(directory: TestFiles.fp8("\(layout)/dense"))
    #expect(Set(scaled.tensorNames) == Set(dense.tensorNames))
    for name in dense.tensorNames {
      let (info, expected) = (try #require(scaled.tensors[name]), try #require(dense.tensors[name]))
      #expect(info.shape == expected.shape && info.dtype == expected.dtype)
      #expect(info.byteCount == expected.byteCount)
      let (rows, columns) = expected.matrixDimensions
      let weights = try dense.matrix(name, shape: expected.shape)
      for start in stride(from: 0, to: rows, by: step ?? max(rows, 1)) {
        let range = start..<min(start + (step ?? rows), rows)
        let panel = Matrix(rows: range.count, columns: columns)
        try scaled.read(name, rows: range, into: panel)
        #expect(panel.elements == weights.rows(range).elements, "\(name) \(range)")
      }
    }
  }

  @Test func `scales that are missing, or too many, are named`() throws {
    let weight = entry("a.weight", "F8_E4M3", shape: [4, 6], offsets: (0, 24))
    func open(_ entries: [String], bytes: Int, _ settings: String) throws {
      let directory = try TemporaryDirectory()
      try directory.write(#"{"quantization_config":{"quant_method":"fp8",\#(settings)}}"#, to: "config.json")
      try directory.write(
        safetensors("{\(entries.joined(separator: ","))}", data: [UInt8](repeating: 56, count: bytes)),
        to: "model.safetensors")
      _ = try CheckpointReader(directory: directory.path)
    }
    #expect(throws: CheckpointError.missingScale(tensor: "a.weight")) {
      try open([weight], bytes: 24, #""weight_block_size":[2,2]"#)
    }
    let scale = entry("a.weight_scale_inv", "F32", shape: [2, 2], offsets: (24, 40))
    try open([weight, scale], bytes: 40, #""weight_block_size":[2,3]"#)
    for (block, expected) in [("[2,2]", [2, 3]), ("[4,3]", [1, 2]), ("[4611686018427387904,1]", [1, 6])] {
      #expect(
        throws: CheckpointError.wrongShape(
          tensor: "a.weight_scale_inv", found: [2, 2], expected: expected)
      ) { try open([weight, scale], bytes: 40, #""weight_block_size":\#(block)"#) }
    }
    for block in ["null", "[0,1]", "[-1,2]", "[2]", #""wide""#] {
      #expect(throws: CheckpointError.self) {
        try open([weight, scale], bytes: 40, #""weight_block_size":\#(block)"#)
      }
    }
  }

  @Test func `scales may be powers of two`() throws {
    let directory = try TemporaryDirectory()
    try directory.write(
      #"{"quantization_config":{"quant_method":"fp8","weight_block_size":[1,2]}}"#, to: "config.json")
    let entries = [
      entry("a.weight", "F8_E4M3", shape: [2, 4], offsets: (0, 8)),
      entry("a.weight_scale_inv", "F8_E8M0", shape: [2, 2], offsets: (8, 12)),
    ]
    func open(_ scales: [UInt8]) throws -> CheckpointReader {
      try FileSystem.removeTree(directory.file("model.safetensors"))
      try directory.write(
        safetensors("{\(entries.joined(separator: ","))}", data: [UInt8](repeating: 60, count: 8) + scales),
        to: "model.safetensors")
      return try CheckpointReader(directory: directory.path)
    }
    try directory.write([0], to: "model.safetensors")
    let weights = try open([127, 130, 120, 0]).matrix("a.weight", shape: [2, 4])
    let expected: [Float] = [1.5, 1.5, 12, 12, 0x1.8p-7, 0x1.8p-7, 0x1.8p-127, 0x1.8p-127]
    #expect(weights.elements == expected)
    #expect(throws: CheckpointError.self) { try open([127, 255, 0, 0]).matrix("a.weight", shape: [2, 4]) }
  }

  @Test func `a weight that is not a number is named by its place`() throws {
    let directory = try TemporaryDirectory()
    try directory.write(#"{"quantization_config":{"quant_method":"fp8"}}"#, to: "config.json")
    let entries = [
      entry("a.weight", "F8_E4M3", shape: [2, 2], offsets: (0, 4)),
      entry("a.weight_scale", "F32", shape: [], offsets: (4, 8)),
    ]
    try directory.write(
      safetensors("{\(entries.joined(separator: ","))}", data: [56, 56, 127, 56, 0, 0, 128, 63]),
      to: "model.safetensors")
    let reader = try CheckpointReader(directory: directory.path)
    let error = try #require(throws: CheckpointError.self) { try reader.matrix("a.weight", shape: [2, 2]) }
    guard case .nonFinite("a.weight", _, 2, _) = error else {
      Issue.record("\(error)")
      return
    }
  }
}
