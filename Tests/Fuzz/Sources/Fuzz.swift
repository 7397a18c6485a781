import Glibc
import SystemIO
import Tensors

@testable import Checkpoint

/// What libFuzzer calls with every input. An input is read or refused; it traps where a reader is at fault.
@_cdecl("LLVMFuzzerTestOneInput")
public func testOneInput(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  let bytes = unsafe Array(UnsafeBufferPointer(start: data, count: size))
  FuzzTarget.chosen.read(bytes)
  return 0
}

/// The readers of what strangers give, by the names that `tools/fuzz` has for them.
enum FuzzTarget: String, CaseIterable {
  /// A pickle by itself.
  case pickle
  /// `pytorch_model.bin`, in both layouts.
  case torch
  /// A safetensors file.
  case safetensors
  /// A GGUF file.
  case gguf
  /// `model.safetensors.index.json`.
  case index
  /// Any JSON.
  case json

  /// From QUANTEASE_FUZZ.
  static let chosen: FuzzTarget = {
    let name = unsafe getenv("QUANTEASE_FUZZ").map { unsafe String(cString: $0) } ?? ""
    guard let target = FuzzTarget(rawValue: name) else {
      fatalError("QUANTEASE_FUZZ is “\(name)”, and no one of \(allCases.map(\.rawValue))")
    }
    return target
  }()

  func read(_ bytes: [UInt8]) {
    do {
      switch self {
      case .pickle: try readPickle(bytes)
      case .torch:
        check(
          try TorchFile(path: "input", byteCount: bytes.count) { Array(bytes[$0]) }.tensors, in: bytes.count)
      case .safetensors:
        check(try SafetensorsHeader(of: InputFile.model.mapped(bytes)).tensors, in: bytes.count)
      case .gguf:
        InputFile.gguf.write(bytes)
        let reader = try CheckpointReader(gguf: InputFile.gguf.path)
        check(Array(reader.tensors.values), in: bytes.count)
        for tensor in reader.tensors.values where tensor.blocks != nil && tensor.shape.count == 2 {
          // What is read of random bits may be no number, which is an error as any other.
          let panel = Matrix(rows: 1, columns: tensor.shape[1])
          try? reader.read(tensor.name, rows: 0..<1, into: panel)
        }
        let beginning = Array(bytes.prefix(bytes.count / 2))
        _ = try GGUFHeader.completeByteCount(
          unsafe beginning.span.bytes, file: "beginning", byteCount: bytes.count)
      case .index:
        InputFile.index.write(bytes)
        _ = try ShardIndex(directory: InputFile.folder, symlinks: .refuse)
      case .json: _ = try JSONValue(parsing: bytes)
      }
    } catch {
      precondition(!"\(error)".isEmpty, "an error has a text")
    }
  }

  private func readPickle(_ bytes: [UInt8]) throws {
    let file = TorchFile.Bytes(path: "input", byteCount: bytes.count) { Array(bytes[$0]) }
    var unpickler = Unpickler(bytes, of: file)
    _ = try unpickler.stateDict()
  }

  private func check(_ tensors: [TensorInfo], in byteCount: Int) {
    for tensor in tensors {
      precondition(
        tensor.byteRange.lowerBound >= 0 && tensor.byteRange.upperBound <= byteCount,
        "a tensor outside the file")
    }
  }
}

/// An input as a file, in a folder of its own; `tools/fuzz` names one in memory, and removes it.
private struct InputFile {
  static let folder: String = unsafe getenv("QUANTEASE_FUZZ_FOLDER").map { unsafe String(cString: $0) } ?? "."
  static let model = InputFile("input.safetensors")
  static let gguf = InputFile("input.gguf")
  static let index = InputFile(WeightFormat.safetensors.indexName)

  let path: String
  private let descriptor: Int32

  init(_ name: String) {
    path = "\(Self.folder)/\(name)"
    descriptor = unsafe open(path, O_RDWR | O_CREAT, 0o600)
    precondition(descriptor >= 0, "\(path) cannot be written")
  }

  func write(_ bytes: [UInt8]) {
    let count = unsafe bytes.withUnsafeBytes { unsafe pwrite(descriptor, $0.baseAddress, $0.count, 0) }
    precondition(count == bytes.count && ftruncate(descriptor, bytes.count) == 0, "\(path) is not written")
  }

  func mapped(_ bytes: [UInt8]) throws -> MappedFile {
    write(bytes)
    return try MappedFile(path: path)
  }
}
