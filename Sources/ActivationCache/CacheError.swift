import Tensors

/// What can go wrong between a matrix of hidden states and the file that keeps it.
public enum CacheError: Error, Hashable, Sendable {
  /// LMDB refused an operation; `code` is LMDB's own or an errno.
  case lmdb(operation: String, code: Int32, message: String, path: String, key: String?)
  /// A file operation failed with an errno.
  case file(operation: String, code: Int32, message: String, path: String)
  /// The file system that holds the cache is full.
  case noSpace(path: String, freeBytes: Int)
  case zstd(operation: String, message: String)
  case missing(HiddenStatesKey)
  /// A stored value is not what was written. `byte` counts from the start of the value.
  case corrupt(HiddenStatesKey, byte: Int, reason: String)
  case shapeMismatch(
    HiddenStatesKey, storedRows: Int, storedColumns: Int, wantedRows: Int, wantedColumns: Int)
  /// An activation is NaN or infinite.
  case notFinite(HiddenStatesKey, row: Int, column: Int, value: String)
  /// A finite activation lies beyond the largest value of the element type.
  case overflow(HiddenStatesKey, row: Int, column: Int, value: Float, elementType: DType)
}

extension CacheError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .lmdb(let operation, let code, let message, let path, let key):
      """
      activation cache \(path): \(operation) failed\(key.map { " for \($0)" } ?? ""): \(message) \
      (code \(code)). The cache holds nothing that cannot be computed again: delete the file, or name \
      another cache directory, and restart the job.
      """
    case .file(let operation, let code, let message, let path):
      """
      \(path): \(operation) failed: \(message) (errno \(code)). Name a cache directory that exists on a \
      local disk and that this user may write.
      """
    case .noSpace(let path, let freeBytes):
      """
      activation cache \(path): the file system is full (\(freeBytes) bytes left). Free space there, \
      name a cache directory on a larger disk, or use fewer calibration samples.
      """
    case .zstd(let operation, let message):
      "activation cache: zstd \(operation) failed: \(message). Restart the job with more memory."
    case .missing(let key):
      "activation cache: nothing is stored for \(key). Compute that stage again."
    case .corrupt(let key, let byte, let reason):
      """
      activation cache: the value of \(key) is damaged at byte \(byte): \(reason). Compute that stage \
      again; if it recurs, check the disk and the memory of this machine.
      """
    case .shapeMismatch(let key, let rows, let columns, let wantedRows, let wantedColumns):
      """
      activation cache: \(key) holds \(rows) × \(columns) elements, but \(wantedRows) × \
      \(wantedColumns) were asked for. Read it with the batch size with which it was written.
      """
    case .notFinite(let key, let row, let column, let value):
      """
      hidden states of \(key): \(value) in row \(row), column \(column). Check the checkpoint's weights, \
      and keep the hidden states as float32 if they are sound.
      """
    case .overflow(let key, let row, let column, let value, let elementType):
      """
      hidden states of \(key): \(value) in row \(row), column \(column) is beyond the range of \
      \(elementType.rawValue). Keep the hidden states as float32, or as bfloat16.
      """
    }
  }
}

extension CacheError {
  /// What is stored under this key is not what was written; to compute it again is the mend.
  public var damaged: HiddenStatesKey? {
    switch self {
    case .corrupt(let key, _, _), .missing(let key), .shapeMismatch(let key, _, _, _, _): key
    default: nil
    }
  }

  /// By sysexits(3).
  public var exitCode: Int32 {
    switch self {
    // It may be there later.
    case .noSpace: 75
    case .file: 73
    case .lmdb, .corrupt, .missing: 74
    case .notFinite, .overflow: 65
    case .zstd, .shapeMismatch: 70
    }
  }
}
