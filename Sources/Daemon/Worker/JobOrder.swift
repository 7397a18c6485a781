import Calibration
import Checkpoint
import Devices
import FoundationEssentials
import Pipeline
import SystemIO

/// What a worker is to do: written by the daemon, read by the worker it starts.
public struct JobOrder: Codable, Sendable, Equatable {
  /// The job's identifier.
  public var id: String
  /// The name of its drop, and of its result; in an order of an earlier version, nil.
  public var name: String?
  /// What jobs have come to before.
  public var results: [Result]?
  /// The directory of the claimed checkpoint.
  public var model: String
  /// Its files as they were claimed; in an order of an earlier version, nil.
  public var source: SourceFiles?
  /// Where the job's files are while it is worked on; see ``JobFiles``.
  public var directory: String
  public var cacheDirectory: String
  /// The text or token files, absolute.
  public var calibration: CalibrationSources
  public var settings: QuantizationSettings
  public var threads: Int
  /// What computes, as ``DeviceChoice`` reads it; in an order of an earlier version, nil: the processor.
  public var device: String?
  /// Where states between two stages may stand; in an order of an earlier version, nil.
  public var states: StatesChoice?
  /// What is available when the job begins, if nil.
  public var memoryBytes: Int?
  /// The Python interpreter that has the package `tokenizers`.
  public var python: String
  /// The path of llama.cpp's converter, which the same interpreter runs; nil where there is none.
  public var ggufConverter: String?
  /// Whether a worker may meet another one of the same job, on a host that nobody hears of any more; nil: never.
  public var isShared: Bool?
  /// The number of the last attempt whose directory is gone; nil where none is.
  public var lastAttempt: Int?
  /// Processes that share the job, which srun starts; nil for one.
  public var ranks: Int?
  /// Whether two workers broke down that had made no progress: it may be the activation cache that breaks them.
  public var forgetsCache: Bool?

  public init(
    id: String, name: String? = nil, results: [Result] = [], model: String, source: SourceFiles? = nil,
    directory: String, cacheDirectory: String,
    calibration: CalibrationSources,
    settings: QuantizationSettings, threads: Int, device: String? = nil,
    states: StatesChoice = .auto, memoryBytes: Int?, python: String, ggufConverter: String? = nil
  ) {
    self.ggufConverter = ggufConverter
    self.id = id
    self.name = name
    self.results = results
    self.model = model
    self.source = source
    self.directory = directory
    self.cacheDirectory = cacheDirectory
    self.calibration = calibration
    self.settings = settings
    self.threads = threads
    self.device = device
    self.states = states
    self.memoryBytes = memoryBytes
    self.python = python
  }

  /// The converter that the model goes through first; nil where it is quantized as it is, or there is none.
  var converter: String? {
    settings.isGGUF && !CheckpointReader.isGGUF(model) ? ggufConverter : nil
  }

  /// What the report calls the model: a claimed checkpoint's directory has the job's name.
  public var modelName: String { name ?? FileSystem.name(of: model) }

  /// A published checkpoint.
  public struct Result: Codable, Sendable, Equatable {
    public var job: String
    /// See ``JobIdentity``.
    public var identity: String
    /// Its path.
    public var output: String
  }

  /// What computes. `auto` is the processor where a scheduler gives GPUs to those that ask for some: the one that is to be
  /// seen may be another's.
  public var deviceChoice: DeviceChoice {
    let device = device.flatMap(DeviceChoice.init) ?? .processor
    return device == .auto && isShared == true ? .processor : device
  }

  public func write(to path: String) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    try AtomicFile.write(Array(try encoder.encode(self)), to: path)
  }

  public init(path: String) throws {
    // A hundred thousand files' stamps are the most that there are.
    let bytes = try FileSystem.contents(of: path, limit: 1 << 26, symlinks: .refuse)
    self = try JSONDecoder().decode(JobOrder.self, from: Data(bytes))
  }
}

/// The files of a job that is worked on.
public struct JobFiles: Sendable {
  public let directory: String
  /// What is a worker's own: the job's directory, or that of one attempt.
  public let own: String

  /// - Parameter attempt: the worker's, if there may be others; nil if there are none
  public init(_ directory: String, attempt: JobAttempt? = nil) {
    self.directory = directory
    own = attempt?.directory ?? directory
  }

  public var order: String { FileSystem.join(directory, "order.json") }
  /// The checkpoint's files as they were claimed.
  public var source: String { FileSystem.join(directory, "source.json") }
  /// The calibration tokens as drawn, so that a job that is gone on with has the very same.
  public var tokens: String { FileSystem.join(directory, "tokens.ids") }
  /// What the job's digest is made of: name, size and digest of the checkpoint's files.
  public var contents: String { FileSystem.join(directory, "contents") }
  /// The GGUF file that a checkpoint became first, where it is to become one.
  public func converted(_ name: String) -> String { FileSystem.join(convertedDirectory, "\(name).gguf") }
  var convertedDirectory: String { FileSystem.join(own, "converted") }
  /// The job's digest, once it is known. One by another version of the algorithm is that of another job.
  public var identity: String {
    FileSystem.join(directory, "identity.\(JobIdentity.algorithmVersion)")
  }
  var log: JobLog { JobLog(directory: directory) }
  public var journal: String { FileSystem.join(own, "journal") }
  /// Held by the worker; where there may be others, nobody's.
  public var lock: String { FileSystem.join(directory, "lock") }
  /// The finished checkpoint: it is there only when all of it is, verified and on the disk.
  public var result: String { FileSystem.join(directory, "result") }
  /// Where a worker makes it.
  var staged: String { FileSystem.join(own, "checkpoint") }
}
