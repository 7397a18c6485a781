import Checkpoint
import SystemIO

/// How long a safetensors file is when it is complete, as its header says.
///
/// The file may be growing, shrinking or hostile: it is read and never mapped, and what is kept is one
/// number. Whether the header keeps the rules of the format is for the job to find out.
enum ShardLength: Equatable {
  case complete(byteCount: Int)
  /// The header itself is not there, or none.
  case unknown(reason: String)

  private static let maximumHeaderByteCount = 100_000_000

  init(readingFrom path: String) {
    do {
      let file = try InputFile(path: path, symlinks: .refuse)
      guard let field = try Self.read(8, from: file) else {
        self = .unknown(reason: "the header is not complete")
        return
      }
      let length = field.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      guard length <= Self.maximumHeaderByteCount else {
        let isPointer = SafetensorsHeader.pointerBeginning.utf8.starts(with: field)
        self = .unknown(
          reason: isPointer
            ? "it is a git-lfs pointer to the weights: fetch them with git lfs pull, and upload them again"
            : "it does not begin like a safetensors file")
        return
      }
      guard let header = try Self.read(Int(length), from: file) else {
        self = .unknown(reason: "the header is not complete")
        return
      }
      let dataByteCount = Self.dataByteCount(header)
      let sum = dataByteCount.map { (8 + header.count).addingReportingOverflow($0) }
      if let sum, !sum.overflow {
        self = .complete(byteCount: sum.partialValue)
      } else {
        self = .unknown(reason: "its header is not that of a safetensors file")
      }
    } catch {
      self = .unknown(reason: "\(error)")
    }
  }

  /// - Returns: Nil if the file ends before.
  private static func read(_ count: Int, from file: InputFile) throws(FileError) -> [UInt8]? {
    var bytes: [UInt8] = []
    // The header's length is a claim until the bytes are there.
    while bytes.count < count {
      var buffer = [UInt8](repeating: 0, count: min(count - bytes.count, 1 << 20))
      let found = try file.read(into: &buffer)
      if found == 0 { return nil }
      bytes += buffer[..<found]
    }
    return bytes
  }

  /// The largest end among the `data_offsets` of a header.
  /// - Returns: Nil if the text is not one JSON object, or an offset not a number.
  static func dataByteCount(_ header: [UInt8]) -> Int? {
    var scanner = JSONScanner(header)
    return scanner.largestEnd()
  }
}
