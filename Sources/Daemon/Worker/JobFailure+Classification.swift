import ActivationCache
import Calibration
import Collective
import Compute
import Foundation
import Pipeline
import SystemIO

extension JobFailure: CustomStringConvertible {
  public var description: String { message }
}

extension JobFailure {
  /// What an error of the engine asks for.
  public init(_ error: any Error) {
    let text = Self.inJobWords("\(error)")
    let code = sysexit(of: error) ?? (error as? ConfigurationError)?.exitCode ?? 70
    switch error {
    case let failure as JobFailure: self = failure
    case let error as FileError where error.isLackOfSpace:
      self.init(
        .noSpace, text, code: code, shortage: Shortage(path: error.path, neededBytes: error.neededBytes))
    case CacheError.noSpace(let path, _):
      self.init(.noSpace, text, code: code, shortage: Shortage(path: path))
    case let error as FileError where error.errno == .ioError: self.init(.broken, text, code: code)
    case let error as FileError where error.isOfTheMachine: self.init(.blocked, text, code: code)
    case CacheError.file, CacheError.zstd: self.init(.blocked, text, code: code)
    case CacheError.lmdb, CacheError.corrupt, CacheError.missing: self.init(.broken, text, code: code)
    case FileLockError.file(let error): self = JobFailure(error)
    case FileLockError.held: self.init(.blocked, text, code: code)
    case is StateError: self.init(.blocked, text, code: 74)
    case PipelineError.damagedJournal: self.init(.broken, text, code: code)
    case PipelineError.notEnoughMemory: self.init(.blocked, text, code: code)
    case is any DeviceError: self.init(.blocked, text, code: code)
    // A host's disks, not the job's.
    case ResumableJobError.networkedCache: self.init(.blocked, text, code: code)
    // Another rank's failure is as good as its status (see `statusAmongRanks`); what keeps ranks apart is the hosts' matter.
    case RankError.failed(_, _, EX_DATAERR): self.init(.job, text, code: code)
    case RankError.failed(_, _, EX_TEMPFAIL): self.init(.blocked, text, code: code)
    case is RankError: self.init(code == 78 ? .blocked : .broken, text, code: code)
    // EX_UNAVAILABLE: a program is missing here, or what it needs.
    case _ where code == 69: self.init(.blocked, text, code: code)
    default: self.init(.job, text, code: code)
    }
  }
}

extension JobFailure {
  /// What a rank tells the others, whose failure is of the same kind. A rank that has died has an exit code of what passes, and
  /// is a breakdown nevertheless, however many ranks notice it before the first one does.
  public var statusAmongRanks: Int32 {
    switch kind {
    case .job: EX_DATAERR
    case .blocked, .noSpace: EX_TEMPFAIL
    case .broken: EX_SOFTWARE
    }
  }

  /// An error's text as it helps in a job, which has settings in place of a command's options.
  static func inJobWords(_ text: String) -> String {
    let keys = Set(SettingTable.job.map(\.key))
    let words = text.replacing(/--([a-z-]+)(?: ([0-9]+|layer|off))?/) { match in
      let key = String(match.1)
      guard keys.contains(key) else { return String(match.0) }
      return match.2.map { "'\(key): \($0)' in \(JobFile.name)" } ?? "'\(key)'"
    }
    return words.replacing("take --device cpu", with: "set 'device: cpu' in the daemon's configuration")
      .replacing("or --device cpu", with: "or set 'device: cpu' in the daemon's configuration").replacing(
        "set \(Tokenizer.variable) to", with: "set 'python' in the daemon's configuration to")
  }
}

extension FileError {
  /// Whether a right, a limit or a mount stands in the way, and no fault of the job.
  fileprivate var isOfTheMachine: Bool {
    switch errno {
    case .permissionDenied, .notPermitted, .readOnlyFileSystem, .tooManyOpenFiles, .tooManyOpenFilesInSystem,
      .noMemory:
      true
    default: operation == .create || operation == .start
    }
  }
}
