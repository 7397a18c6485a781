import Checkpoint
import ComputeOpenBLAS
import Decoder
import Export
import Tensors

/// The logits that a checkpoint gives of whole sequences, `[tokens, vocabularySize]`.
func logits(ofModel path: String, _ tokens: [Int32], sequenceLength: Int) throws -> Matrix {
  let opened = try openWeights(path)
  let description = try ModelDescription(checking: opened.reader, source: opened.weights)
  let model = try DecoderModel(
    description, source: opened.weights, backend: OpenBLASBackend(threads: 2), sequenceLength: sequenceLength)
  let states = try model.embed(tokens)
  for index in 0..<description.layerCount {
    try model.layer(index).run(states, sequenceLength: sequenceLength)
  }
  return try model.head().logits(states)
}

extension ResumeBench {
  /// The logits that a checkpoint gives of what the runs are calibrated on.
  func predictions(of path: String) throws -> [Float] {
    try logits(ofModel: path, calibration.tokens, sequenceLength: calibration.sequenceLength).elements
  }

  /// The squared differences between those of a checkpoint and others.
  func error(of path: String, from expected: [Float]) throws -> Float {
    zip(try predictions(of: path), expected).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }
  }
}

/// The bytes of every tensor of a checkpoint.
func tensorBytes(of path: String) throws -> [String: [UInt8]] {
  let reader = try CheckpointReader.open(path)
  return try reader.tensors.mapValues { tensor in
    try reader.withBytes(of: tensor.name, 0..<tensor.byteRange.count) { span in
      (0..<span.byteCount).map { unsafe span.unsafeLoad(fromByteOffset: $0, as: UInt8.self) }
    }
  }
}
