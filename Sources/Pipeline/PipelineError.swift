/// A run that cannot begin or go on.
public enum PipelineError: Error, Sendable, Equatable, CustomStringConvertible {
  case notEnoughMemory(needed: Int, available: Int, phase: MemoryPlan.Phase, mend: String)
  case alreadyQuantized(method: String)
  case wrongShape(tensor: String, found: [Int], expected: [Int])
  case missingTensor(String)
  case unsupportedType(tensor: String, file: String, type: String)
  /// Under `strict`: weights that nobody trained.
  case zeroWeights(tensor: String, rows: Range<Int>)
  case outputExists(String)
  case badActivations(layer: Int, after: String, value: String, token: Int, feature: Int)
  case interrupted
  /// A record that was whole when it was written is not any more.
  case damagedJournal(path: String, linear: String)
  case overflowingInputs(layer: Int, of: String, feature: Int)
  /// What a choice of bits goes by.
  case unmeasurableDivergence

  public var description: String {
    switch self {
    case .notEnoughMemory(let needed, let available, let phase, let mend):
      "the job needs \(needed.memorySize) of memory while it is \(phase.rawValue), and \(available.memorySize) are "
        + "available, \((needed - available).memorySize) too few; \(mend)"
    case .alreadyQuantized(let method):
      "the checkpoint is already quantized (\(method)); give the original, full-precision checkpoint, or, where there is "
        + "none, --allow-requantize (allow-requantize: true for the daemon)"
    case .wrongShape(let tensor, let found, let expected):
      "\(tensor): shape \(found) does not fit config.json, which asks for \(expected); "
        + "config.json and weights are of different models"
    case .missingTensor(let tensor):
      "\(tensor): config.json asks for this tensor and the checkpoint does not hold it; "
        + "download the checkpoint again or check config.json"
    case .unsupportedType(let tensor, let file, let type):
      "\(tensor) in \(file) is stored as \(type); weights are read as F32, F16 or BF16: convert the checkpoint, in "
        + "transformers with from_pretrained(..., dtype=torch.bfloat16) and save_pretrained"
    case .zeroWeights(let tensor, let rows):
      "\(Self.zeroNote(tensor, rows)); without 'strict' this is a warning"
    case .outputExists(let path):
      "\(path): exists already; remove it or name another --output"
    case .badActivations(let layer, let place, let value, let token, let feature):
      "layer \(layer): the activations after \(place) hold \(value) at token \(token) of the batch, feature "
        + "\(feature); the model overflows here, check that it runs in transformers on the same text"
    case .interrupted: "interrupted; nothing was written"
    case .damagedJournal(let path, let linear):
      "\(path): the record of \(linear) is not what was written; check the disk and the memory"
    case .overflowingInputs(let layer, let module, let feature):
      "layer \(layer): the squares of the inputs of \(module) overflow fp32 at feature \(feature); "
        + "the model overflows here, check that it runs in transformers on the same text"
    case .unmeasurableDivergence:
      "what the model predicts of the calibration text are no finite numbers, so that nothing tells which linears need "
        + "more bits; check that it runs in transformers on the same text, or give bits in place of average-bits"
    }
  }

  static func zeroNote(_ tensor: String, _ rows: Range<Int>) -> String {
    "\(tensor): rows \(rows.lowerBound) to \(rows.upperBound - 1) hold nothing but zeros, as files have that a download "
      + "did not complete; compare the shard with its original"
  }

  /// By sysexits(3).
  public var exitCode: Int32 {
    switch self {
    case .notEnoughMemory: 75
    case .alreadyQuantized, .wrongShape, .missingTensor, .unsupportedType, .zeroWeights, .badActivations,
      .overflowingInputs, .unmeasurableDivergence:
      65
    case .outputExists: 73
    case .interrupted: 75
    case .damagedJournal: 74
    }
  }
}

extension PipelineError {
  /// Whether a smaller plan, or another device, would do.
  public var isLackOfMemory: Bool {
    if case .notEnoughMemory = self { true } else { false }
  }
}
