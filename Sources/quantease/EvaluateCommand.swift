import ActivationCache
import ArgumentParser
import Calibration
import Checkpoint
import ComputeOpenBLAS
import Daemon
import Decoder
import Evaluation
import Export
import Foundation
import Pipeline
import SystemIO

struct EvaluateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "eval",
    abstract: "Measures the perplexity of a checkpoint, and how far it is from another.",
    discussion: """
      The text is tokenized whole and cut into consecutive windows; perplexity is exp of the mean loss over
      each window's length − 1 predictions. Compare only figures over the same text and window length.
      Reads every checkpoint that `quantize` writes, and dense ones; hidden states are fp32.

      With --against both models predict the same tokens. The Kullback-Leibler divergence, in nats, says how far the
      distributions are apart, 0 being the same; the share of tokens for which both have the same likeliest next one says
      how often greedy decoding would go on alike. Both need far less text than a perplexity to tell two models apart.

      Examples:
        quantease eval llama-w4 --text heldout.txt --windows 10
        quantease eval llama-w4 --against llama --text heldout.txt --windows 10
      """)

  @Argument(
    help: ArgumentHelp("The checkpoint's directory, or a GGUF file.", valueName: "model"),
    completion: .file())
  var model: String

  @Option(
    help: ArgumentHelp(
      "Also compare the predictions with this model's, the one that the checkpoint was made of; in fp32.",
      valueName: "model"), completion: .file())
  var against: String?

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

  @Flag(help: "Add the figures to the report that stands in the checkpoint's directory, and to its page.")
  var report = false

  @Flag(help: "Print JSON: perplexity, tokens, windows, seconds; against.")
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
    // Before the work, which may be long.
    let place = try Report.Place(of: model)
    var written = report ? try Report(at: place) : nil
    if let warning = KernelSet.warning { Console.note("quantease: warning: \(warning)") }
    let windows = try readWindows()
    let backend = try machine.backend(isExact: precision == .exact) {
      Console.note("quantease: warning: \($0)")
    }
    func decoder(_ path: String, isExact: Bool) throws -> DecoderModel {
      let (checkpoint, weights) = try openWeights(path)
      let description = try ModelDescription(checking: checkpoint, source: weights)
      return try DecoderModel(
        description, source: weights, backend: backend, sequenceLength: windows[0].count,
        operands: isExact ? .float32 : backend.operandType(for: checkpoint.weightType(of: description)))
    }
    let models =
      [try decoder(model, isExact: precision == .exact)]
      + (try against.map { [try decoder($0, isExact: true)] } ?? [])
    let store = try HiddenStatesStore(
      path: cachePath, elementType: .float32, threads: machine.threads)
    // Nobody goes on with it: without a name, it goes with this process, however that ends.
    try store.destroy()
    let progress = ProgressLine()
    // Of fp32, and as they are while a batch is replaced.
    let stateBytes =
      models.reduce(0) { $0 + $1.description.hiddenSize } * windows.count * windows[0].count * 4
    let result = try PerplexityEvaluation(
      model: models[0], reference: models.dropFirst().first, backend: backend, store: store,
      holdsStates: machine.states == .auto && stateBytes < ProcessMemory.availableBytes() / 4
    ).run(windows, progress: progress.show(layer:of:))
    progress.close()
    if written != nil {
      written?.add(
        Report.Evaluation(
          text: FileSystem.name(of: text ?? tokens ?? ""), reference: against.map(FileSystem.name(of:)),
          figures: result))
      try written?.write(to: place)
      try ChecksumManifest.update([place.fileName, place.pageName], in: place.directory)
    }
    if json {
      try Console.json(result)
    } else {
      try Console.line(
        String(
          format: "perplexity %.4f over %d windows, %d tokens, in %@", result.perplexity,
          result.windows, result.tokens, Console.time(result.seconds)))
      if let against = result.against { try show(against) }
    }
  }

  private func show(_ against: Divergence) throws {
    try Console.line(
      String(
        format: """
          against    %@, perplexity %.4f: ratio %.4f ± %.4f
          divergence %.5f nats a token, median %.5f, 99 %% below %.4f, at most %.3f
          same token %.2f %% of the predictions have the same likeliest one
          """, self.against ?? "", against.referencePerplexity, against.perplexityRatio,
        against.perplexityRatioError,
        against.mean, against.median, against.percentile99, against.maximum, against.sameChoice * 100))
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
