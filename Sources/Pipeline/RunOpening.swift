import ActivationCache
import Calibration
import Checkpoint
import Collective
import Compute
import Export
import FoundationEssentials
import SystemIO
import Tensors

/// What the first rank knows of a job's earlier runs, and all ranks go by.
struct RunOpening: Codable {
  /// What the job was begun with; nil for a new one, or one that is not kept.
  var head: ResumeJournal.Head?
  /// The linears that are done, in order.
  var rows: [Report.Linear]
  /// What tells the job from all others, whose states may be in a rank's cache.
  private var job: String

  /// - Parameter kernels: what computes
  init(_ journal: ResumeJournal?, of place: ResumePlace?, by kernels: String) {
    head = journal?.head
    rows = journal?.rows ?? []
    let words = Array("\(place?.identity ?? "") \(kernels)".utf8)
    job = String(arrayChecksum(words), radix: 36)
  }

  /// Where a rank that is not the first one has its cache. In the name are the machine's start, since nobody waited for what
  /// was written before, and the job, as another one's states would pass for its own.
  /// - Parameter stem: what the names of the job's caches begin with
  func cache(_ stem: String, of rank: Int) -> String {
    "\(stem).\(MachineStart.mark)-\(job).rank\(rank).activations.mdb"
  }

  /// The first rank's, on every rank.
  func shared(by ranks: Ranks) throws -> RunOpening {
    try ranks.share(MessageLabel(.opening)) { self }
  }
}

extension Ranks {
  /// What the first rank makes, on every rank.
  func share<Value: Codable>(_ label: MessageLabel, _ make: () throws -> Value) throws -> Value {
    if isAlone { return try make() }
    let json = try share(label) { Array(try JSONEncoder().encode(try make())) }
    return try JSONDecoder().decode(Value.self, from: Data(json))
  }

  /// The calibration set that the first rank makes, on every rank: the others need neither the text nor a tokenizer.
  /// - Returns: nil where there is nothing to do
  public func share(_ set: CalibrationSet?) throws -> CalibrationSet? {
    struct Message: Codable {
      let sequenceLength: Int
      let ids: [Int32]
      let tokens: [Int32]
    }
    let message = try share(MessageLabel(.tokens)) {
      set.map {
        Message(
          sequenceLength: $0.sequenceLength, ids: [$0.idRange.lowerBound, $0.idRange.upperBound],
          tokens: $0.tokens)
      }
    }
    return message.map {
      CalibrationSet(sequenceLength: $0.sequenceLength, tokens: $0.tokens, idRange: $0.ids[0]...$0.ids[1])
    }
  }

  /// Has all ranks know what the first one has published.
  func share(_ report: Report) throws {
    if isAlone { return }
    postToAll(Array(try report.json()), MessageLabel(.report))
  }
}

extension CheckpointReader {
  /// A checksum of the configuration, of all tensors' names, shapes and types, and of the weights' files, of large ones
  /// samples, for ranks that each have a copy: of two models, or of one that was not copied to its end, it differs.
  func fingerprint(of path: String, symlinks: SymlinkPolicy) throws -> String {
    let sample = 1 << 12
    var sum = arrayChecksum(Array(configuration.compactText.utf8))
    for name in tensorNames.sorted() {
      guard let tensor = tensors[name] else { continue }
      let head = "\(name) \(tensor.shape) \(tensor.dtype)"
      sum = arrayChecksum(Array(head.utf8), seed: sum)
    }
    let (directory, names) = try Self.files(of: path, symlinks: symlinks)
    let endings = [".safetensors", ".gguf", ".bin", ".pt", ".pth"]
    for name in names.sorted() where endings.contains(where: name.hasSuffix) {
      let file = try MappedFile(path: FileSystem.join(directory, name), symlinks: symlinks)
      let count = file.byteCount
      let starts = count <= 256 * sample ? [0] : (0..<256).map { $0 * (count - sample) / 255 }
      for start in starts {
        let end = count <= 256 * sample ? count : start + sample
        sum = file.withBytes(start..<end) { checksum(of: $0, seed: sum) }
      }
    }
    let digits = String(sum, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
  }
}
