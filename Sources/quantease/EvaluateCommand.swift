import ActivationCache
import ArgumentParser
import Calibration
import Checkpoint
import ComputeOpenBLAS
import Decoder
import Evaluation
import Export
import Foundation
import Pipeline
import SystemIO

struct EvaluateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "eval",
    abstract: "Measures the perplexity of a checkpoint, dense or quantized.",
    discussion: """
      The text is tokenized whole and cut into consecutive windows; perplexity is exp of the mean loss over
      each window's length − 1 predictions. Compare only figures over the same text and window length.
      Reads dense, GPTQ and compressed-tensors checkpoints; hidden states are fp32.

      Example:
        quantease eval llama-w4 --text heldout.txt --windows 10
      """)

  @Argument(
    help: ArgumentHelp("The checkpoint's directory, or a GGUF file.", valueName: "model"),
    completion: .file())
  var model: String

  @Option(help: ArgumentHelp("A text to tokenize.", valueName: "file"), completion: .file())
  var text: String?

  @Option(
    help: ArgumentHelp("Token ids: a safetensors file whose rows are the windows.", valueName: "file"),
    completion: .file())
  var tokens: String?

  @Option(help: "Tokens of a window of a text.")
  var sequenceLength = 2_048

  @Option(help: "Windows to evaluate, at most.")
  var windows: Int?

  @Option(
    help: """
      exact: fp32 throughout; auto: a dense checkpoint in bfloat16 is multiplied in bfloat16 where the processor is fast \
      at it, as `quantize` does and as it is served.
      """)
  var precision = QuantizationSettings.Precision.exact

  @OptionGroup(title: "Machine") var machine: MachineOptions

  @Flag(help: "Print JSON: perplexity, tokens, windows, seconds.")
  var json = false

  func validate() throws {
    try machine.validate()
    guard (text == nil) != (tokens == nil) else {
      throw ValidationError("give either --text or --tokens")
    }
    guard sequenceLength > 1 else { throw ValidationError("--sequence-length must be at least 2") }
    guard windows.map({ $0 > 0 }) ?? true else { throw ValidationError("--windows must be at least 1") }
  }

  func run() throws {
    KernelSet.useBest()
    if let warning = KernelSet.warning { Console.note("quantease: warning: \(warning)") }
    let (checkpoint, weights) = try openWeights(model)
    let description = try ModelDescription(checking: checkpoint, source: weights)
    let windows = try readWindows()
    let backend = try machine.backend(isExact: precision == .exact) {
      Console.note("quantease: warning: \($0)")
    }
    let decoder = try DecoderModel(
      description, source: weights, backend: backend, sequenceLength: windows[0].count,
      operands: backend.operandType(for: checkpoint.weightType(of: description)))
    let store = try HiddenStatesStore(
      path: cachePath, elementType: .float32, threads: machine.threads)
    // Nobody goes on with it: without a name, it goes with this process, however that ends.
    try store.destroy()
    let progress = ProgressLine()
    let result = try PerplexityEvaluation(model: decoder, backend: backend, store: store)
      .run(windows, progress: progress.show(layer:of:))
    progress.close()
    if json {
      try Console.json(result)
    } else {
      try Console.line(
        String(
          format: "perplexity %.4f over %d windows, %d tokens, in %@", result.perplexity,
          result.windows, result.tokens, Console.time(result.seconds)))
    }
  }

  /// The windows, all of one length: a text's consecutive stretches, or a token file's rows.
  private func readWindows() throws -> [[Int32]] {
    let all: [[Int32]]
    let source: TokenRows
    if let tokens {
      source = try TokenRows(tokenFile: tokens)
      all = source.rows.filter { $0.count > 1 }
    } else {
      source = try TokenRows(file: text ?? "", model: model)
      all = source.windows(length: sequenceLength).map(Array.init)
    }
    guard !all.isEmpty else {
      throw CalibrationError.tooFewTokens(
        available: source.tokenCount, sequences: 0, samples: 1, sequenceLength: sequenceLength,
        source: source.name)
    }
    return Array(all.prefix(windows ?? all.count))
  }

  private var cachePath: String {
    let directory = machine.cacheDir ?? FileManager.default.temporaryDirectory.path
    return FileSystem.join(
      directory, "quantease-eval-\(ProcessInfo.processInfo.processIdentifier).mdb")
  }
}
