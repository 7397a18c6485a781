import Checkpoint
import SystemIO
import TestSupport
import Testing

@testable import Export

/// The types of tensors, against llama-quantize's own.
struct GGUFMixTests {
  /// One model: what `tools/make-mix-fixtures.py` recorded of it.
  struct Case: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let keys: [(name: String, value: Int)]
    let architecture: String
    let tensors: [(name: String, shape: [Int])]
    /// In the order of the tensors, by the file's name.
    let types: [String: [String]]

    init(_ json: JSONValue) throws {
      testDescription = try #require(json["name"]?.string)
      let architecture = try #require(json["architecture"]?.string)
      self.architecture = architecture
      keys = ["block_count", "attention.head_count", "attention.head_count_kv", "expert_count"].map { key in
        ("\(architecture).\(key)", json[key.replacing("attention.", with: "")]?.int ?? 0)
      }
      tensors = try #require(json["tensors"]?.array).map { tensor in
        let parts = try #require(tensor.array)
        return (try #require(parts[0].string), parts.dropFirst().compactMap(\.int))
      }
      types = try #require(json["files"]?.object).mapValues { types in
        types.string?.split(separator: " ").map(String.init) ?? []
      }
    }

    /// The header of such a file, whose data is a hole.
    func header(in directory: TemporaryDirectory) throws -> GGUFHeader {
      var file = GGUFBytes(tensors: tensors.count, keys: keys.count + 1)
      file.append("general.architecture")
      file.append(UInt32(8))
      file.append(architecture)
      for key in keys {
        file.append(key.name)
        file.append(UInt32(4))
        file.append(UInt32(key.value))
      }
      var end = 0
      for tensor in tensors {
        let isMatrix = tensor.shape.count > 1
        file.append(tensor: tensor.name, shape: tensor.shape, type: isMatrix ? 1 : 0, offset: end)
        end += (tensor.shape.reduce(1, *) * (isMatrix ? 2 : 4) + 31) / 32 * 32
      }
      let path = try directory.write(file.bytes, to: "model.gguf")
      try OutputFile(resuming: path).write([0], at: (file.bytes.count + 31) / 32 * 32 + end)
      return try GGUFHeader(of: MappedFile(path: path))
    }
  }

  static let cases: [Case] = {
    let text = try? JSONValue(contentsOf: TestFiles.gguf("mixes.json"))
    return (text?.array ?? []).compactMap { try? Case($0) }
  }()

  @Test func `the record is there`() { #expect(Self.cases.count == 7) }

  @Test(arguments: cases, GGUFMix.Name.allCases)
  func `every tensor gets the type that llama-quantize gives it`(_ model: Case, _ name: GGUFMix.Name) throws {
    let header = try model.header(in: TemporaryDirectory())
    let choices = Dictionary(
      uniqueKeysWithValues: GGUFMix(name).choices(for: header).map { ($0.tensor, $0) })
    let expected = try #require(model.types[name.rawValue])
    #expect(expected.count == model.tensors.count)
    for (tensor, type) in zip(model.tensors, expected) {
      let found = choices[tensor.name]?.type.name ?? (tensor.shape.count > 1 ? "F16" : "F32")
      #expect(found == type, "\(tensor.name)")
      if let choice = choices[tensor.name] {
        #expect(choice.isFallback == (choice.wanted.name != type), "\(tensor.name)")
      }
    }
  }

  @Test func `a pure file has one type, but where that does not fit`() throws {
    let model = try #require(Self.cases.first { $0.testDescription.hasPrefix("all heads") })
    let header = try model.header(in: TemporaryDirectory())
    for choice in GGUFMix(.q4_K_M, isPure: true).choices(for: header) {
      #expect(choice.wanted == .q4_K)
      #expect(choice.type == (choice.tensor.contains("ffn_down") ? .q5_0 : .q4_K))
    }
  }
}
