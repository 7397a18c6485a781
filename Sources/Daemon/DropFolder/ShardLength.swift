import Checkpoint
import SystemIO

/// How long a shard is when it is complete, as the file itself says.
///
/// The file may be growing, shrinking or hostile: it is read and never mapped, and what is kept is one
/// number. Whether it keeps the rules of its format is for the job to find out.
enum ShardLength: Equatable {
  case complete(byteCount: Int)
  /// The header itself is not there, or none.
  case unknown(reason: String)

  private static let maximumHeaderByteCount = 100_000_000

  private static let pointerReason =
    "it is a git-lfs pointer to the weights: fetch them with git lfs pull, and upload them again"

  init(readingFrom path: String, _ format: WeightFormat) {
    do {
      let file = try InputFile(path: path, symlinks: .refuse)
      if format == .torch {
        self = try Self.ofTorchFile(file)
        return
      }
      let field = try file.read(0..<8)
      guard field.count == 8 else {
        self = .unknown(reason: "the header is not complete")
        return
      }
      let length = field.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      guard length <= Self.maximumHeaderByteCount else {
        let isPointer = SafetensorsHeader.pointerBeginning.utf8.starts(with: field)
        self = .unknown(
          reason: isPointer
            ? Self.pointerReason : "it does not begin like a safetensors file")
        return
      }
      // Its length is a claim until the bytes are there.
      let header = try file.read(8..<8 + Int(length))
      guard header.count == length else {
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

  /// The same of a GGUF file.
  init(readingGGUF path: String) {
    do {
      let file = try InputFile(path: path, symlinks: .refuse)
      // A header holds the vocabulary.
      var count = 1 << 20
      while true {
        let beginning = try file.read(0..<min(count, file.byteCount))
        do {
          self = .complete(
            byteCount: try GGUFHeader.completeByteCount(
              unsafe beginning.span.bytes, file: path, byteCount: file.byteCount))
          return
        } catch {
          guard case .truncated = error.reason, beginning.count < file.byteCount,
            count < Self.maximumHeaderByteCount
          else {
            self = .unknown(reason: error.isOfHeaderThatEnds ? "the header is not complete" : "\(error)")
            return
          }
          count *= 8
        }
      }
    } catch {
      self = .unknown(reason: "\(error)")
    }
  }

  /// What keeps a file of this length from being a complete shard.
  /// - Parameters:
  ///   - name: the shard's
  ///   - byteCount: of the file
  func gap(in name: String, byteCount: Int) -> String? {
    switch self {
    case .complete(byteCount): nil
    // The last tensor of a GGUF file may be padded.
    case .complete(let expected) where GGUFFiles.isGGUF(name) && expected <= byteCount: nil
    case .complete(let expected): "\(name) has \(byteCount) of \(expected) bytes"
    case .unknown(let reason): "\(name): \(reason)"
    }
  }

  private struct Shortened: Error {}

  private static func ofTorchFile(_ file: InputFile) throws -> ShardLength {
    do {
      let contents = try TorchFile(path: file.path, byteCount: file.byteCount) { range in
        let bytes = try file.read(range)
        guard bytes.count == range.count else { throw Shortened() }
        return bytes
      }
      return .complete(byteCount: contents.byteCount)
    } catch is Shortened {
      return .unknown(reason: "it became shorter while it was looked at")
    } catch let error as TorchFileError {
      switch error.violation {
      case .pointer: return .unknown(reason: pointerReason)
      case .truncated(let what): return .unknown(reason: what)
      case .unknownFormat: return .unknown(reason: "it does not begin like a file of torch.save")
      default: return .complete(byteCount: file.byteCount)
      }
    }
  }

  /// The largest end among the `data_offsets` of a header.
  /// - Returns: Nil if the text is not one JSON object, or an offset not a number.
  static func dataByteCount(_ header: [UInt8]) -> Int? {
    var scanner = JSONScanner(header)
    return scanner.largestEnd()
  }
}
