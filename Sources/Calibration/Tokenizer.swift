import Checkpoint
import Foundation
import SystemIO

/// Turns texts into token ids by Hugging Face's `tokenizers`, in a helper process of one Python script that
/// the binary carries along.
public struct Tokenizer: Sendable {
  /// The Python that has the package: `QUANTEASE_PYTHON`, or the first python3 on the path.
  public let interpreter: String

  /// The environment variable that names it.
  public static let variable = "QUANTEASE_PYTHON"

  public init(interpreter: String) {
    self.interpreter = interpreter
  }

  public init(environment: [String: String] = ProcessInfo.processInfo.environment) {
    interpreter = environment[Self.variable] ?? "python3"
  }

  /// Tokenizes a text whole, as one string, with the tokenizer's own special tokens.
  /// - Parameters:
  ///   - text: a .txt file, or .jsonl with a field `text` or with conversations, either also .zst
  ///   - model: the directory with tokenizer.json, or a GGUF file
  /// - Throws: ``CalibrationError``
  public func tokenize(text: String, model: String) throws -> TokenRows {
    let bytes = try output(of: [model, text])
    let tokens = unsafe bytes.withUnsafeBytes { buffer in
      (0..<buffer.count / 4).map { index in
        unsafe Int32(littleEndian: buffer.loadUnaligned(fromByteOffset: 4 * index, as: Int32.self))
      }
    }
    return TokenRows(name: text, rows: [tokens])
  }

  /// What the helper writes.
  func output(of arguments: [String]) throws -> Data {
    let file = try nameless()
    try run(arguments: arguments, output: file)
    try file.seek(toOffset: 0)
    return try file.readToEnd() ?? Data()
  }

  /// A file without a name: whatever ends this process, nothing of it stays in the temporary folder.
  private func nameless() throws -> FileHandle {
    do {
      let directory = FileManager.default.temporaryDirectory.path
      return FileHandle(fileDescriptor: try FileSystem.openNameless(in: directory), closeOnDealloc: true)
    } catch { throw CalibrationError.tokenizerUnavailable(interpreter: interpreter, reason: "\(error)") }
  }

  private func run(arguments: [String], output: FileHandle) throws {
    let script = String(decoding: PackageResources.tokenize_py, as: UTF8.self)
    switch PythonProcess(interpreter: interpreter).run(["-c", script] + arguments, output: output) {
    case .exit(0, _): return
    case .exit(let status, let message):
      throw CalibrationError.tokenizerFailed(status: status, message: message)
    case .killed(let signal):
      let killed = "\(interpreter) was ended by signal \(signal)"
      throw CalibrationError.tokenizerFailed(
        status: 70,
        message: signal == SIGKILL
          ? killed + ", as the kernel does when memory runs out; give a shorter text, or token ids" : killed)
    case .missing(let reason):
      throw CalibrationError.tokenizerUnavailable(interpreter: interpreter, reason: reason)
    }
  }
}

extension TokenRows {
  /// Token ids from a safetensors file, or a text through the model's tokenizer.
  /// - Parameter python: the interpreter that has the package `tokenizers`; that of the environment if nil
  public init(file: String, model: String, python: String? = nil) throws {
    if file.hasSuffix(".safetensors") {
      self = try TokenRows(tokenFile: file)
      return
    }
    self = try (python.map { Tokenizer(interpreter: $0) } ?? Tokenizer()).tokenize(
      text: file, model: Self.tokenizerPlace(of: model))
  }

  /// Where a model has its tokenizer: a GGUF model in its first part.
  public static func tokenizerPlace(of model: String) throws -> String {
    try CheckpointReader.ggufFile(of: model).map { path in
      FileSystem.join(FileSystem.parent(of: path), GGUFFiles.firstPart(of: FileSystem.name(of: path)))
    } ?? model
  }

  /// The same of every file.
  public static func all(of sources: CalibrationSources, model: String, python: String? = nil) throws
    -> [TokenRows]
  {
    try sources.files.map { try TokenRows(file: $0.path, model: model, python: python) }
  }
}
