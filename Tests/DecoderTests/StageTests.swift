import Checkpoint
import TestSupport
import Testing

@testable import Decoder

struct StageTests {
  @Test(arguments: TestFiles.models)
  func `the stages cover every linear of a layer exactly once`(_ name: String) throws {
    let fixture = try Fixture(name)
    let description = fixture.description
    for index in 0..<description.layerCount {
      let prefix = description.layerPrefix(index)
      let names = description.linears(ofLayer: index).map { prefix + $0.name + ".weight" }
      #expect(Set(names).count == names.count)
      let matrices = fixture.checkpoint.tensors.values.filter {
        $0.name.hasPrefix(prefix) && $0.shape.count == 2 && $0.name.hasSuffix(".weight")
          && !$0.name.contains("_norm.")
      }
      let kept = description.keptLinears(ofLayer: index).map { prefix + $0.name + ".weight" }
      #expect(Set(names + kept) == Set(matrices.map(\.name)))
      for linear in description.linears(ofLayer: index) {
        let shape = fixture.checkpoint.shape(of: prefix + linear.name + ".weight")
        #expect(shape == [linear.outFeatures, linear.inFeatures])
        let bias = fixture.checkpoint.shape(of: prefix + linear.name + ".bias")
        #expect(bias == (linear.hasBias ? [linear.outFeatures] : nil))
      }
    }
  }

  @Test(arguments: TestFiles.models)
  func `linears of one stage read the same input`(_ name: String) throws {
    let description = try Fixture(name).description
    let stages = (0..<description.layerCount).flatMap { description.stages(ofLayer: $0) }
    let parts = stages.flatMap { stage in
      stage.experts.isEmpty ? [stage] : stage.experts.flatMap { [$0.expansion, $0.contraction] }
    }
    for stage in parts {
      #expect(Set(stage.linears.map(\.inFeatures)).count == 1)
    }
  }

  @Test(arguments: [
    // One after the other.
    ("llama", [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]),
    ("opt-post-350m", [["q_proj", "k_proj", "v_proj"], ["out_proj"], ["fc1"], ["fc2"]]),
    ("falcon-rw", [["query_key_value"], ["dense"], ["dense_h_to_4h"], ["dense_4h_to_h"]]),
    // Attention and MLP side by side, behind one norm and behind two.
    ("falcon-7b", [["query_key_value", "dense_h_to_4h"], ["dense"], ["dense_4h_to_h"]]),
    ("falcon-11b", [["query_key_value", "dense_h_to_4h"], ["dense"], ["dense_4h_to_h"]]),
    ("falcon-40b", [["query_key_value"], ["dense_h_to_4h"], ["dense"], ["dense_4h_to_h"]]),
  ])
  func `the stages follow the arrangement of the layer`(_ name: String, _ expected: [[String]]) throws {
    let stages = try Fixture(name).description.stages(ofLayer: 0).map { stage in
      stage.linears.map { String($0.name.split(separator: ".").last ?? "") }
    }
    #expect(stages == expected)
  }
}
