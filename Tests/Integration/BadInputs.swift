import Checkpoint
import Foundation
import TestSupport

private let downProjection = "model.layers.1.mlp.down_proj.weight"

extension BadInput {
  /// Checkpoints that are damaged, incomplete or contradict themselves.
  static let checkpoints: [BadInput] = [
    BadInput(
      "a missing shard", of: "llama-bf16-sharded", status: 66, "model-00002-of-00003.safetensors", "download"
    ) { bench in
      try FileManager.default.removeItem(atPath: bench.model + "/model-00002-of-00003.safetensors")
    },
    BadInput(
      "a linear of 64-bit floats", status: 65, downProjection, "stored as F64", "F32, F16 or BF16"
    ) { bench in
      try bench.damage { file in
        // At the end, where a longer tensor has room.
        let values = file.data[file.offsets(of: downProjection)].count / 4
        let end = file.data.count
        file.data += [UInt8](repeating: 0, count: 8 * values)
        file.place(downProjection, at: end..<end + 8 * values)
        file.header[downProjection] = .object(
          (file.header[downProjection]?.object ?? [:]).merging(["dtype": "F64"]) { $1 })
        file.closeGaps()
      }
    },
    BadInput("a linear of 8-bit integers", status: 65, downProjection, "stored as I8", "convert") { bench in
      try bench.damage { file in
        let offsets = file.offsets(of: downProjection)
        file.header[downProjection] = .object(
          (file.header[downProjection]?.object ?? [:]).merging(["dtype": "I8"]) { $1 })
        file.place(downProjection, at: offsets.lowerBound..<offsets.lowerBound + offsets.count / 4)
        file.closeGaps()
      }
    },
    BadInput("no head, and none that is tied", status: 65, "lm_head.weight", "tie_word_embeddings") { bench in
      try bench.damage { file in
        file.header["lm_head.weight"] = nil
        file.closeGaps()
      }
    },
    BadInput("more experts than memory holds names of", of: "mixtral", status: 65, "experts.", "config.json")
    {
      bench in
      try edit(bench.model + "/config.json", ["num_hidden_layers": 4_096, "num_local_experts": 4_096])
    },
    BadInput("two rotary scalings", status: 65, "rope_parameters and rope_scaling", "two spellings") {
      bench in
      try edit(
        bench.model + "/config.json",
        [
          "rope_parameters": ["rope_type": "default", "rope_theta": 10_000],
          "rope_scaling": ["rope_type": "linear", "factor": 4],
        ])
    },
    BadInput("a linear that is zero, under --strict", status: 65, downProjection, "nothing but zeros") {
      bench in
      bench.options += ["--strict"]
      try bench.damage { file in
        for byte in file.offsets(of: downProjection) { file.data[byte] = 0 }
      }
    },
    BadInput("a truncated file", status: 65, "model.safetensors", "100 bytes are missing", "download") {
      bench in
      try bench.damage { $0.data.removeLast(100) }
    },
    BadInput("a header that is cut short", status: 65, "model.safetensors", "header", "incomplete") { bench in
      try Data(littleEndian([UInt64(5_000)]) + Array(#"{"a":"#.utf8))
        .write(to: URL(fileURLWithPath: bench.model + "/model.safetensors"))
    },
    BadInput("a header of more than 100 MB", status: 65, "100000001", "the limit is 100000000") { bench in
      try Data(littleEndian([UInt64(100_000_001)]) + [UInt8](repeating: 0x20, count: 1_000))
        .write(to: URL(fileURLWithPath: bench.model + "/model.safetensors"))
    },
    BadInput("a header that is not JSON", status: 65, "model.safetensors", "not JSON", "download") { bench in
      try Data(tensorFile(header: "{\"lm_head.weight\": }", data: []))
        .write(to: URL(fileURLWithPath: bench.model + "/model.safetensors"))
    },
    BadInput("tensors that overlap", status: 65, "model.safetensors", "overlap", "save it again") { bench in
      try bench.damage { file in
        let second = file.names[1]
        let offsets = file.offsets(of: second)
        file.place(second, at: offsets.lowerBound - 4..<offsets.upperBound - 4)
      }
    },
    BadInput("a tensor beyond the end of the file", status: 65, "ends at byte", "incomplete") { bench in
      try bench.damage { file in
        let last = file.names[file.names.count - 1]
        let offsets = file.offsets(of: last)
        let columns = file.header[last]?["shape"]?.array?.last?.int ?? 1
        let rows = offsets.count / 4 / columns
        file.place(
          last, at: offsets.lowerBound..<offsets.upperBound + 400 * columns,
          shape: rows == 1 ? [columns + 100 * columns] : [rows + 100, columns])
      }
    },
    BadInput(
      "a tensor in two shards", of: "llama-bf16-sharded", status: 65, "model.embed_tokens.weight",
      "model-00001-of-00003.safetensors and", "download"
    ) { bench in
      let first = try TensorFile(bench.model + "/model-00001-of-00003.safetensors")
      let twin = "model.embed_tokens.weight"
      try bench.damage("model-00003-of-00003.safetensors") { file in
        let end = file.data.count
        file.data += first.data[first.offsets(of: twin)]
        file.header[twin] = first.header[twin]
        file.place(twin, at: end..<file.data.count)
      }
    },
    BadInput(
      "a weight_map that leads out of the directory", of: "llama-bf16-sharded", status: 65,
      "model.safetensors.index.json", "lm_head.weight", "../secret.safetensors", "beside the index"
    ) { bench in
      let index = bench.model + "/model.safetensors.index.json"
      var map = try JSONValue(contentsOf: index)["weight_map"]?.object ?? [:]
      map["lm_head.weight"] = "../secret.safetensors"
      try edit(index, ["weight_map": .object(map)])
    },
    BadInput("an index that lies", of: "llama-bf16-sharded", status: 65, "model.norm.weight", "missing") {
      bench in
      let index = bench.model + "/model.safetensors.index.json"
      var map = try JSONValue(contentsOf: index)["weight_map"]?.object ?? [:]
      map["model.norm.weight"] = "model-00001-of-00003.safetensors"
      try edit(index, ["weight_map": .object(map)])
    },
    BadInput("no weights", status: 66, "model.safetensors", "download") { bench in
      try FileManager.default.removeItem(atPath: bench.model + "/model.safetensors")
    },
    BadInput("what is no pickle of torch", status: 65, "pytorch_model.bin", "torch.save") { bench in
      try FileManager.default.moveItem(
        atPath: bench.model + "/model.safetensors", toPath: bench.model + "/pytorch_model.bin")
    },
    BadInput("a pickle that would do something", status: 65, "posix.system", "which is not done") { bench in
      try FileManager.default.removeItem(atPath: bench.model + "/model.safetensors")
      // The beginning of a legacy file, two empty pickles, and one that calls.
      let beginning: [UInt8] = [
        0x80, 2, 0x8A, 10, 0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19, 0x2E, 0x4E, 0x2E,
        0x4E, 0x2E,
      ]
      try Data(beginning + Array("cposix\nsystem\nX\u{4}\0\0\0true".utf8) + [0x85, 0x52, 0x2E]).write(
        to: URL(fileURLWithPath: bench.model + "/pytorch_model.bin"))
    },
    BadInput("a pickle by another name", status: 65, "model.ckpt", "safe_serialization") { bench in
      try FileManager.default.moveItem(
        atPath: bench.model + "/model.safetensors", toPath: bench.model + "/model.ckpt")
    },
    BadInput("no config.json", status: 66, "config.json is missing", "add") { bench in
      try FileManager.default.removeItem(atPath: bench.model + "/config.json")
    },
    BadInput("a config.json that is not JSON", status: 65, "config.json", "download") { bench in
      try "{'model_type': 'llama'}".write(
        toFile: bench.model + "/config.json", atomically: true, encoding: .utf8)
    },
    BadInput(
      "an unknown architecture", status: 65, "config.json", "\"mamba\"", "bloom", "falcon", "llama",
      "mistral", "opt",
      "qwen2", "qwen3"
    ) { bench in
      try bench.editConfiguration(["model_type": "mamba"])
    },
    BadInput("a rope scaling that is not supported", status: 65, "xpos", "linear, llama3, yarn, longrope") {
      bench in
      try bench.editConfiguration(["rope_scaling": ["rope_type": "xpos", "factor": 2]])
    },
    BadInput(
      "shapes that do not fit config.json", status: 65, "model.layers.0.mlp.gate_proj.weight", "[96, 32]",
      "[128, 32]",
      "config.json"
    ) { bench in
      try bench.editConfiguration(["intermediate_size": 128])
    },
    BadInput("a token beyond the embeddings", status: 65, "64") { bench in
      try bench.editConfiguration(["vocab_size": 65])
      bench.calibration = try bench.directory.write(
        tokens: [[Int64](repeating: 64, count: 320)], to: "outside.safetensors")
    },
    BadInput("a vocabulary that does not fit config.json", status: 65, "[64, 32]", "[65, 32]", "config.json")
    { bench in
      try bench.editConfiguration(["vocab_size": 65])
    },
    BadInput("an adapter", status: 65, "adapter (LoRA)", "merge_and_unload") { bench in
      bench.calibration = try bench.directory.write("text", to: "text.txt")
      try FileManager.default.moveItem(
        atPath: bench.model + "/model.safetensors", toPath: bench.model + "/adapter_model.safetensors")
      try FileManager.default.moveItem(
        atPath: bench.model + "/config.json", toPath: bench.model + "/adapter_config.json")
    },
    BadInput("the same and no tokenizer", status: 65, "pytorch_model.bin", "torch.save") { bench in
      bench.calibration = try bench.directory.write("text", to: "text.txt")
      try FileManager.default.moveItem(
        atPath: bench.model + "/model.safetensors", toPath: bench.model + "/pytorch_model.bin")
    },
    BadInput("more layers in config.json than weights", status: 65, "model.layers.2.self_attn.q_proj.weight")
    { bench in
      try bench.editConfiguration(["num_hidden_layers": 3])
    },
    BadInput("NaN in the weights of a linear", status: 65, downProjection, "nan at index 70", "download") {
      bench in
      try bench.damage { $0.set(downProjection, at: 70, to: .nan) }
    },
    BadInput("infinity in a norm", status: 65, "model.layers.0.input_layernorm.weight", "inf at index 3") {
      bench in
      try bench.damage { $0.set("model.layers.0.input_layernorm.weight", at: 3, to: .infinity) }
    },
    BadInput("NaN in weights that are copied along", status: 65, "lm_head.weight", "nan at index 70") {
      bench in
      try bench.damage { $0.set("lm_head.weight", at: 70, to: .nan) }
    },
    BadInput("weights that are no floats", status: 65, downProjection, "I32") { bench in
      try bench.damage { file in
        var entry = file.header[downProjection]?.object ?? [:]
        entry["dtype"] = "I32"
        file.header[downProjection] = .object(entry)
      }
    },
    BadInput("activations that overflow", of: "llama-bias", status: 65, "layer 0", "inf", "feature 3") {
      bench in
      // The product of gate and up is beyond fp32, though neither is.
      for module in ["gate_proj", "up_proj"] {
        try bench.damage { $0.set("model.layers.0.mlp.\(module).bias", at: 3, to: 1e20) }
      }
    },
    BadInput("weights beyond the range of sums", status: 65, "model.layers.0.mlp.up_proj", "overflow") {
      bench in
      try bench.damage { file in
        for index in 0..<96 { file.set("model.layers.0.mlp.up_proj.weight", at: 32 * index, to: 3e38) }
      }
    },
  ]

  /// Calibration files.
  static let tokens: [BadInput] = [
    BadInput("no calibration tokens", status: 65, "empty.safetensors", "no tokens", "give a text") { bench in
      bench.calibration = try bench.directory.write(tokens: [], to: "empty.safetensors")
    },
    BadInput("too few calibration tokens", status: 65, "384 tokens", "48 sequences of 32", "--samples 48") {
      bench in
      bench.options = ["--samples", "49"]
    },
    BadInput("a missing calibration file", status: 66, "nowhere.safetensors", "check the path") { bench in
      bench.calibration = bench.directory.file("nowhere.safetensors")
    },
    BadInput("a token file without input_ids", status: 65, "model.safetensors", "input_ids") { bench in
      bench.calibration = bench.model + "/model.safetensors"
    },
    BadInput("a token file of endless empty rows", status: 65, "rows.safetensors", "no tokens") { bench in
      bench.calibration = try bench.directory.write(
        tensorFile(
          header: #"{"input_ids":{"dtype":"I32","shape":[144115188075855872,0],"data_offsets":[0,0]}}"#,
          data: []),
        to: "rows.safetensors")
    },
    BadInput("a token outside the vocabulary in a row that is not drawn", status: 65, "token id 64") {
      bench in
      bench.calibration = try bench.directory.write(
        tokens: (0..<200).map { row in [Int64](repeating: row == 0 ? 64 : 1, count: 32) },
        to: "outside.safetensors")
    },
    BadInput("a token outside the vocabulary", status: 65, "token id 64", "vocabulary of 64", "tokenizer") {
      bench in
      bench.calibration = try bench.directory.write(
        tokens: [[Int64](repeating: 64, count: 320)], to: "outside.safetensors")
    },
    BadInput("sequences beyond the model's positions", status: 65, "129", "--sequence-length 128") { bench in
      bench.calibration = try bench.directory.write(
        randomTokens: 8, of: 129, vocabulary: 64, seed: 1, to: "long.safetensors")
      bench.options = ["--sequence-length", "129"]
    },
    BadInput("a tokenizer without its interpreter", status: 69, "/nowhere/python3", "QUANTEASE_PYTHON") {
      bench in
      bench.calibration = try bench.directory.write("text", to: "text.txt")
      bench.environment = ["QUANTEASE_PYTHON": "/nowhere/python3"]
    },
  ]

  /// Requests that cannot be met, and command lines.
  static let requests: [BadInput] = [
    BadInput("a linear that the format cannot hold", of: "qwen2", status: 65, "gptq", "32", "model.layers.0")
    { bench in
      bench.options = ["--format", "gptq"]
    },
    BadInput("groups that do not divide a linear", status: 65, "group", "20", "model.layers.0") { bench in
      bench.options = ["--group-size", "20"]
    },
    BadInput("too little memory", status: 75, "memory", "too few", "more with --memory") { bench in
      bench.options = ["--memory", "0.0001"]
    },
    BadInput("a number of bits that there is not", status: 64, "--bits 7", "2 to 6, or 8") { bench in
      bench.options = ["--bits", "7"]
    },
    BadInput("a preset that the solver does not have", status: 64, "--preset paper would be ignored") {
      bench in
      bench.options = ["--solver", "gptq", "--preset", "paper"]
    },
    BadInput("a share of no target", status: 64, "--target-share would be ignored") { bench in
      bench.options = ["--target", "layer", "--target-share", "0.5"]
    },
    BadInput("signs of scales that have none", status: 64, "--unsigned-scales would be ignored") { bench in
      bench.options = ["--asymmetric", "--unsigned-scales"]
    },
    BadInput("a rule for no linear", status: 64, "matches no linear", "self_attn.q_proj") { bench in
      bench.options = ["--rule", "qproj=bits:3"]
    },
    BadInput("an unknown format", status: 64, "exl2", "compressed-tensors") { bench in
      bench.options = ["--format", "exl2"]
    },
    BadInput("the same format twice", status: 64, "--format") { bench in
      bench.options = ["--format", "dense", "--format", "dense"]
    },
    BadInput("a group size of nothing", status: 64, "--group-size 0") { bench in
      bench.options = ["--group-size", "0"]
    },
  ]
}
