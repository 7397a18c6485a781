import ActivationCache
import Pipeline
import SystemIO

extension JobFailure {
  /// What an error of the engine asks for.
  public init(_ error: any Error) {
    let code = sysexit(of: error) ?? (error as? ConfigurationError)?.exitCode ?? 70
    switch error {
    case let failure as JobFailure: self = failure
    case let error as FileError where error.errno == .noSpace || error.errno == .diskQuotaExceeded:
      self.init(.noSpace, "\(error)", code: code, path: error.path)
    case CacheError.noSpace(let path, _): self.init(.noSpace, "\(error)", code: code, path: path)
    case let error as FileError where error.errno == .ioError: self.init(.broken, "\(error)", code: code)
    case let error as FileError where error.isOfTheMachine: self.init(.blocked, "\(error)", code: code)
    case CacheError.file, CacheError.zstd: self.init(.blocked, "\(error)", code: code)
    case CacheError.lmdb, CacheError.corrupt, CacheError.missing: self.init(.broken, "\(error)", code: code)
    case FileLockError.file(let error): self = JobFailure(error)
    case FileLockError.held: self.init(.blocked, "\(error)", code: code)
    case let error as StateError: self.init(.blocked, "\(error)", code: 74)
    case PipelineError.damagedJournal: self.init(.broken, "\(error)", code: code)
    case PipelineError.notEnoughMemory: self.init(.blocked, "\(error)", code: code)
    // EX_UNAVAILABLE: a program is missing here, or what it needs.
    case _ where code == 69: self.init(.blocked, "\(error)", code: code)
    default: self.init(.job, "\(error)", code: code)
    }
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
