import ActivationCache
import ArgumentParser
import Calibration
import Checkpoint
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
      The text is tokenized whole and cut into consecutive windows; perplexity is exp of the mean loss over \
      each window's length − 1 predictions. Compare only figures over the same text and window length. \
      Reads every checkpoint that `quantize` writes, and dense ones; hidden states are fp32.

      With --against both models predict the same tokens. The Kullback-Leibler divergence, in nats, says how far the \
      distributions are apart, 0 being the same; the share of tokens for which both have the same likeliest next one says \
      how often greedy decoding would go on alike. Both need far less text than a perplexity to tell two models apart.

      With --task it answers questions: a .jsonl file in the fields of LAMBADA (text: the last word is asked for), HellaSwag, ARC, \
      PIQA, WinoGrande, BoolQ, or simply query, choices (texts) and gold (from 0), a question a line. An answer's likelihood \
      decides, as with the usual harnesses without examples in front, and with the tokenizer's own first token.

      Examples:
        quantease eval llama-w4 --text heldout.txt --windows 10
        quantease eval llama-w4 --against llama --text heldout.txt --windows 10
        quantease eval llama-w4 --against llama --task lambada.jsonl --windows 500
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

  @Option(
    help: ArgumentHelp("Questions to answer (.jsonl, also .zst).", valueName: "file"), completion: .file())
  var task: String?

  @Option(
    help: ArgumentHelp(
      "Tokens of a window. Default: 2048 of a text, and a token file's rows as they are.", valueName: "tokens"
    ))
  var sequenceLength: Int?

  @Option(help: "Windows to evaluate, at most; of a task, questions.")
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

  @Flag(
    help:
      "Print JSON: perplexity, tokens, windows, seconds; against. Of a task: questions, model, reference, lost, gained."
  )
  var json = false

  func validate() throws {
    try machine.validate()
    guard [text, tokens, task].compactMap(\.self).count == 1 else {
      throw ValidationError("give one of --text, --tokens and --task")
    }
    guard sequenceLength.map({ $0 > 1 }) ?? true else {
      throw ValidationError("--sequence-length must be at least 2")
    }
    guard task == nil || sequenceLength == nil else {
      throw ValidationError("--sequence-length would be ignored: a question is as long as it is")
    }
    guard windows.map({ $0 > 0 }) ?? true else { throw ValidationError("--windows must be at least 1") }
  }

  func run() throws {
    Console.useBestKernels()
    // Before the work, which may be long.
    let place = try Report.Place(of: model)
    var written = report ? try Report(at: place) : nil
    if let task {
      let answers = try readAnswers(task)
      let length = answers.map(\.ids.count).max() ?? 0
      let figures = try evaluate(windows: answers.count, of: length) {
        try $0.figures(of: answers, progress: $1)
      }
      written?.add(
        Report.TaskEvaluation(
          task: FileSystem.name(of: task), reference: against.map(FileSystem.name(of:)), figures: figures))
      if json { try Console.json(figures) } else { try show(figures) }
    } else {
      let windows = try readWindows()
      let figures = try evaluate(windows: windows.count, of: windows[0].count) {
        try $0.perplexity(of: windows, progress: $1)
      }
      written?.add(
        Report.Evaluation(
          text: FileSystem.name(of: text ?? tokens ?? ""), reference: against.map(FileSystem.name(of:)),
          figures: figures))
      if json { try Console.json(figures) } else { try show(figures) }
    }
    guard let written else { return }
    try written.write(to: place)
    try ChecksumManifest.update([place.fileName, place.pageName], in: place.directory)
  }

  /// Opens the models, and has them measured.
  private func evaluate<Figures>(
    windows: Int, of length: Int,
    by measure: (OutOfCoreEvaluation, (_ done: Int, _ total: Int) -> Void) throws -> Figures
  ) throws -> Figures {
    let backend = try machine.backend(isExact: precision == .exact) {
      Console.note("quantease: warning: \($0)")
    }
    func decoder(_ path: String, isExact: Bool) throws -> DecoderModel {
      let (checkpoint, weights) = try openWeights(path)
      let description = try ModelDescription(checking: checkpoint, source: weights)
      return try DecoderModel(
        description, source: weights, backend: backend, sequenceLength: length,
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
    let stateBytes = models.reduce(0) { $0 + $1.description.hiddenSize } * windows * length * 4
    let evaluation = try OutOfCoreEvaluation(
      model: models[0], reference: models.dropFirst().first, backend: backend, store: store,
      holdsStates: machine.states == .auto && stateBytes < ProcessMemory.availableBytes() / 4)
    let figures = try measure(evaluation, progress.show(layer:of:))
    progress.close()
    return figures
  }

  private func show(_ result: Perplexity) throws {
    try Console.line(
      String(
        format: "perplexity %.4f over %d windows, %d tokens, in %@", result.perplexity,
        result.windows, result.tokens, Console.time(result.seconds)))
    if let against = result.against { try show(against) }
  }

  private func show(_ figures: TaskFigures) throws {
    func line(_ score: TaskFigures.Score) -> String {
      let right = String(format: "%.2f %% ± %.2f", score.accuracy * 100, score.accuracyError * 100)
      return right
        + (score.normalizedAccuracy.map { String(format: ", by the character %.2f %%", $0 * 100) } ?? "")
        + (score.perplexity.map { String(format: ", perplexity of the word %.3f", $0) } ?? "")
    }
    let what = figures.asksForWord ? "last words" : "questions"
    try Console.line(
      "right      \(line(figures.model)), of \(figures.questions) \(what), in \(Console.time(figures.seconds))"
    )
    guard let reference = figures.reference, let lost = figures.lost, let gained = figures.gained else {
      return
    }
    try Console.line("against    \(against ?? ""): \(line(reference))")
    try Console.line("changed    \(lost) lost, which it had right, and \(gained) gained")
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

  private func readAnswers(_ task: String) throws -> [TaskAnswer] {
    let tokenizer = Tokenizer()
    let all = try tokenizer.answers(to: task, model: TokenRows.tokenizerPlace(of: model))
    let answers = all.filter { $0.question < windows ?? .max }
    if answers.isEmpty { throw CalibrationError.empty(source: task) }
    return answers
  }

  /// The windows: consecutive stretches of one length, or a token file's rows.
  private func readWindows() throws -> [[Int32]] {
    let source = try tokens.map { try TokenRows(tokenFile: $0) } ?? TokenRows(file: text ?? "", model: model)
    let length = sequenceLength ?? (tokens == nil ? 2_048 : nil)
    let all = length.map { source.windows(length: $0).map(Array.init) } ?? source.rows.filter { $0.count > 1 }
    guard !all.isEmpty else {
      throw CalibrationError.tooFewTokens(
        available: source.tokenCount, sequences: 0, samples: 1, sequenceLength: length ?? 2,
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
