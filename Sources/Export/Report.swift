import Checkpoint
import FoundationEssentials
import SystemIO

/// What a run did and what it cost: `quantease_report.json`, beside the checkpoint.
public struct Report: Codable, Sendable, Equatable {
  public static let fileName = "quantease_report.json"

  public struct Model: Codable, Sendable, Equatable {
    public var name: String
    public var architecture: String

    public init(name: String, architecture: String) {
      self.name = name
      self.architecture = architecture
    }
  }

  public struct Calibration: Codable, Sendable, Equatable {
    public var samples: Int
    /// Tokens per sample.
    public var sequenceLength: Int
    public var seed: UInt64
    /// The name of the file that the tokens come from.
    public var source: String
    /// Samples that are cut of text that others are cut of, as it has too few; nil where there are none.
    public var overlapping: Int?

    public init(samples: Int, sequenceLength: Int, seed: UInt64, source: String, overlapping: Int = 0) {
      self.samples = samples
      self.sequenceLength = sequenceLength
      self.seed = seed
      self.source = source
      self.overlapping = overlapping > 0 ? overlapping : nil
    }
  }

  public struct Settings: Codable, Sendable, Equatable {
    public var bits: Int
    /// −1 is one group per row.
    public var groupSize: Int
    public var symmetric: Bool
    public var solver: String
    /// What the linears were to come close to.
    public var target: String
    /// The calibration samples that ran through the original model as well; nil where the target has no need of it.
    public var targetSamples: Int?
    public var formats: [OutputFormatName]
    public var calibration: Calibration
    /// What computed; nil in reports of earlier versions.
    public var kernels: String?
    /// The types of a GGUF file; nil for another format.
    public var gguf: GGUFOutline?
    /// nil where nobody asked for one.
    public var rotation: Rotation?
    /// nil where bits are as the settings say.
    public var allocation: Allocation?

    /// For people: `4 bits`, or what linears have on average.
    public var width: String {
      allocation.map { "\(fixed($0.reachedBits, 2)) bits a weight on average" } ?? "\(bits) bits"
    }

    public init(
      bits: Int, groupSize: Int, symmetric: Bool, solver: String, target: String, targetSamples: Int?,
      formats: [OutputFormatName], calibration: Calibration
    ) {
      self.bits = bits
      self.groupSize = groupSize
      self.symmetric = symmetric
      self.solver = solver
      self.target = target
      self.targetSamples = targetSamples
      self.formats = formats
      self.calibration = calibration
    }
  }

  /// What was rotated before the model was quantized, and why.
  public struct Rotation: Codable, Sendable, Equatable, CustomStringConvertible {
    /// `off` or `residual`
    public var chosen: String
    /// What a trial came to without the rotation and with it: the Kullback-Leibler divergence of a model of which a few layers
    /// are quantized, in nats a token; nil where none was made.
    public var divergence: Double?
    public var rotatedDivergence: Double?
    /// What the trial took, before the run began.
    public var seconds: Double?
    /// Why none was made.
    public var note: String?

    public init(
      chosen: String, divergence: Double? = nil, rotatedDivergence: Double? = nil, seconds: Double? = nil,
      note: String? = nil
    ) {
      self.seconds = seconds
      self.chosen = chosen
      self.divergence = divergence
      self.rotatedDivergence = rotatedDivergence
      self.note = note
    }

    public var description: String {
      let why =
        if let divergence, let rotatedDivergence {
          "in a trial, divergence \(fixed(rotatedDivergence, 4)) with it and \(fixed(divergence, 4)) without"
        } else {
          note
        }
      return chosen + (why.map { ": \($0)" } ?? "")
    }
  }

  /// The bits that linears got by what they need, and what was measured for it.
  public struct Allocation: Codable, Sendable, Equatable, CustomStringConvertible {
    /// The grid of linears that have to have the same one.
    public struct Choice: Codable, Sendable, Equatable {
      /// The first of them.
      public var module: String
      public var bits: Int
      /// Of a GGUF file.
      public var type: String?

      public init(module: String, bits: Int, type: String?) {
        self.module = module
        self.bits = bits
        self.type = type
      }
    }

    /// Bits a weight: what was asked for, and what all linears take.
    public var averageBits: Double
    public var reachedBits: Double
    /// The Kullback-Leibler divergence from the source that is expected of it, in nats a token: a sum of what single linears
    /// come to, which tells choices apart, and is not what an evaluation will find.
    public var divergence: Double
    /// The same before any choice, with the grids that are nearest to what the settings say.
    public var standardBits: Double
    public var standardDivergence: Double
    public var choices: [Choice]
    /// What it took, before the run began.
    public var seconds: Double

    public init(
      averageBits: Double, reachedBits: Double, divergence: Double, standardBits: Double,
      standardDivergence: Double, choices: [Choice], seconds: Double
    ) {
      self.averageBits = averageBits
      self.reachedBits = reachedBits
      self.divergence = divergence
      self.standardBits = standardBits
      self.standardDivergence = standardDivergence
      self.choices = choices
      self.seconds = seconds
    }

    public var description: String {
      "\(fixed(reachedBits, 3)) bits a weight, chosen for each linear; expected divergence \(fixed(divergence, 4)), and "
        + "\(fixed(standardDivergence, 4)) before any choice, at \(fixed(standardBits, 3)) bits"
    }
  }

  public struct Linear: Codable, Sendable, Equatable {
    public var name: String
    /// out, in
    public var shape: [Int]
    public var bits: Int
    public var groupSize: Int
    public var symmetric: Bool
    public var solver: String
    /// ‖(W − Ŵ)X‖² / ‖WX‖² over the calibration set; with the target `original` W is what comes closest to it.
    public var relativeError: Double
    public var seconds: Double
    /// The decoder layer, from 0.
    public var layer: Int
    /// Scales, zero points and outliers included.
    public var bitsPerWeight: Double
    /// In a GGUF file.
    public var type: String?
    /// What looked wrong and did not stop the run, where anything did.
    public var warnings: [String]?
    /// The expert of a mixture that it is of, from 0; nil for other linears, and for what every token goes through.
    public var expert: Int?
    /// The calibration tokens that reached the expert.
    public var tokens: Int?

    public init(
      name: String, shape: [Int], bits: Int, groupSize: Int, symmetric: Bool, solver: String,
      relativeError: Double, seconds: Double, layer: Int, bitsPerWeight: Double
    ) {
      self.name = name
      self.shape = shape
      self.bits = bits
      self.groupSize = groupSize
      self.symmetric = symmetric
      self.solver = solver
      self.relativeError = relativeError
      self.seconds = seconds
      self.layer = layer
      self.bitsPerWeight = bitsPerWeight
    }
  }

  /// Memory that the process allocated, mapped files aside.
  public struct Memory: Codable, Sendable, Equatable {
    public var planned: Int
    public var peak: Int

    public init(planned: Int, peak: Int) {
      self.planned = planned
      self.peak = peak
    }
  }

  public struct Totals: Codable, Sendable, Equatable {
    public var secondsPerPhase: [String: Double] = [:]
    /// The whole run, from start to end.
    public var seconds: Double = 0
    /// Calibration tokens.
    public var tokens: Int = 0
    public var linears: Int = 0
    public var parametersQuantized: Int = 0
    public var meanRelativeError: Double = 0
    /// Over the quantized parameters.
    public var bitsPerWeight: Double = 0
    public var peakMemoryBytes: Int = 0
    /// The peak while Gram matrices were summed up and while linears were quantized, and what was planned for each; nil in
    /// reports of earlier versions.
    public var memoryBytesPerPhase: [String: Memory]?
    /// The same of a GPU's memory; nil where the processor computed.
    public var deviceMemoryBytesPerPhase: [String: Memory]?
    /// Where states stood between two stages: in the memory of the device or of the host, or in the activation cache; nil in
    /// reports of earlier versions.
    public var states: String?
    public var cacheBytesRaw: Int = 0
    public var cacheBytesCompressed: Int = 0
    /// Values read from the activation cache, and those that were being decoded before they were asked for; nil in
    /// reports of earlier versions.
    public var cacheReads: Int?
    public var cacheReadsPrefetched: Int?
    public var inputBytes: Int = 0
    public var outputBytes: Int = 0

    public init() {}

    /// Counts and means over `linears`; the rest is left at zero.
    public init(of linears: [Linear]) {
      self.linears = linears.count
      var bits = 0.0
      for linear in linears {
        let parameters = linear.shape.reduce(1, *)
        parametersQuantized += parameters
        bits += linear.bitsPerWeight * Double(parameters)
        meanRelativeError += linear.relativeError / Double(linears.count)
      }
      if parametersQuantized > 0 { bitsPerWeight = bits / Double(parametersQuantized) }
    }
  }

  public var model: Model
  public var settings: Settings
  public var linears: [Linear]
  public var totals: Totals
  public var loadsIn: [RuntimeSupport]
  /// The daemon's job whose result this is, and what that job is, whatever its name; nil where there was no daemon.
  public var job: String?
  public var identity: String?
  /// The job that made the checkpoint, where it was not this one: that had come to the same before.
  public var madeBy: String?
  /// The source's files that stand in the output as they are, and those that do not; hidden ones aside.
  public var filesCopied: [String]?
  public var filesLeftOut: [String]?

  /// Matrices in blocks that no inputs are known of, as embeddings: rounded to the grid of the least squared error. nil
  /// where there are none.
  public var rounded: [String]?

  /// The matrix that turns the last hidden states into logits, where it was quantized for them; nil where it was not.
  public var head: Linear?
  /// The head's matrix, where it is another than the source's: corrected for what the layers have lost.
  public var correctedHead: String?
  /// What came of tuning the norms; nil where nobody asked for it.
  public var tuning: Tuning?

  /// How norms were brought to predictions closer to the original's, when all else was quantized.
  public struct Tuning: Codable, Sendable, Equatable, CustomStringConvertible {
    /// The tensors that are others than they were; 0 where nothing better was found.
    public var tensors: Int
    /// Mean Kullback-Leibler divergence from the original, in nats a token of the calibration text, without the tuning and
    /// with it.
    public var before: Double?
    public var after: Double?
    /// Whether layers were solved for that text, which then tells little of other text.
    public var isJudgeSolved: Bool?
    public var seconds: Double?
    /// Why they stayed as they were.
    public var note: String?

    public init(tensors: Int, before: Double, after: Double, isJudgeSolved: Bool, seconds: Double) {
      (self.tensors, self.before, self.after) = (tensors, before, after)
      (self.isJudgeSolved, self.seconds) = (isJudgeSolved, seconds)
      if tensors == 0 { note = "no better weights were found" }
    }

    public init(note: String) {
      tensors = 0
      self.note = note
    }

    public var description: String {
      guard let before, let after, tensors > 0 else { return "as they were: \(note ?? "")" }
      let text =
        isJudgeSolved == true
        ? "text that layers were solved for, which tells little of other text"
        : "sequences that nothing was learnt of"
      return "\(tensors) tuned: divergence \(fixed(after, 4)), \(fixed(before, 4)) without, on \(text)"
    }
  }

  /// What came of evaluations of the result, the latest last; nil where there was none.
  public var evaluations: [Evaluation]?

  /// What came of questions that the result answered, the latest last; nil where there were none.
  public var tasks: [TaskEvaluation]?

  /// How the result answers questions.
  public struct TaskEvaluation: Codable, Sendable, Equatable {
    /// The name of the file that they come from.
    public var task: String
    /// The name of the model that it was compared with; nil where there was none.
    public var reference: String?
    public var figures: TaskFigures

    public init(task: String, reference: String?, figures: TaskFigures) {
      (self.task, self.reference, self.figures) = (task, reference, figures)
    }
  }

  /// Adds an evaluation, in the place of one that is the same but for its figures.
  public mutating func add(_ evaluation: TaskEvaluation) {
    let others = (tasks ?? []).filter {
      $0.task != evaluation.task || $0.reference != evaluation.reference
        || $0.figures.questions != evaluation.figures.questions
    }
    tasks = others + [evaluation]
  }

  /// What the result says to a text.
  public struct Evaluation: Codable, Sendable, Equatable {
    /// The name of the file that the tokens come from.
    public var text: String
    /// The name of the model that it was compared with; nil where there was none.
    public var reference: String?
    public var figures: Perplexity

    public init(text: String, reference: String?, figures: Perplexity) {
      self.text = text
      self.reference = reference
      self.figures = figures
    }
  }

  /// Adds an evaluation, in the place of one that is the same but for its figures.
  public mutating func add(_ evaluation: Evaluation) {
    let others = (evaluations ?? []).filter {
      $0.text != evaluation.text || $0.reference != evaluation.reference
        || $0.figures.tokens != evaluation.figures.tokens || $0.figures.windows != evaluation.figures.windows
    }
    evaluations = others + [evaluation]
  }

  /// What looked wrong and did not stop the run.
  public var warnings: [String] {
    (settings.gguf?.warning.map { [$0] } ?? [])
      + (linears + (head.map { [$0] } ?? [])).flatMap { $0.warnings ?? [] }
  }

  public init(
    model: Model, settings: Settings, linears: [Linear], totals: Totals, loadsIn: [RuntimeSupport]
  ) {
    self.model = model
    self.settings = settings
    self.linears = linears
    self.totals = totals
    self.loadsIn = loadsIn
  }

  /// The report as JSON, keys in snake_case and in order.
  public func json() throws -> [UInt8] {
    try JSONEncoder.ofReports.lines(self)
  }

  /// Reads what ``json()`` gives.
  public init(json: [UInt8]) throws {
    self = try JSONDecoder.ofReports.decode(Report.self, from: Data(json))
  }

  /// Where a report and its page stand: in the directory of a result, or beside a result that is one file.
  public struct Place: Sendable {
    public let directory: String
    public let fileName: String
    public let pageName: String

    public init(directory: String) {
      (self.directory, fileName, pageName) = (directory, Report.fileName, ReportPage.fileName)
    }

    /// - Parameter file: such as `model.gguf`, beside which `model.quantease_report.json` stands
    public init(beside file: String) {
      directory = FileSystem.parent(of: file)
      let stem = GGUFFiles.stem(of: FileSystem.name(of: file))
      (fileName, pageName) = ("\(stem).\(Report.fileName)", "\(stem).\(ReportPage.fileName)")
    }

    /// Of a result, by its directory or its file; a file in a directory of its own has the report that is there.
    public init(of result: String) throws(FileError) {
      guard GGUFFiles.isGGUF(result) else {
        self.init(directory: result)
        return
      }
      self.init(beside: result)
      if try FileSystem.exists(path) { return }
      let models = GGUFFiles.models(ofDirectory: try FileSystem.names(in: directory))
      if models == [FileSystem.name(of: result)] { self.init(directory: directory) }
    }

    public var path: String { FileSystem.join(directory, fileName) }
    public var page: String { FileSystem.join(directory, pageName) }
  }

  /// Writes the report and its page.
  public func write(to place: Place) throws {
    try AtomicFile.rewrite(try json(), to: place.path)
    try AtomicFile.rewrite(Array(ReportPage(report: self).html.utf8), to: place.page)
  }

  /// Reads the report that stands at a place.
  public init(at place: Place) throws {
    try self.init(json: FileSystem.contents(of: place.path, limit: 1 << 28))
  }
}
