import Calibration
import Checkpoint
import SystemIO

/// llama.cpp's converter, which makes a GGUF file of a checkpoint: `convert_hf_to_gguf.py`, run by a Python that has what it
/// imports. It is no part of this project, and is named by whoever runs it.
public struct GGUFConverter: Sendable, Equatable {
  /// The path of the program.
  public let program: String
  /// The interpreter that runs it.
  public let python: String

  public init(program: String, python: String) {
    self.program = program
    self.python = python
  }

  /// Makes a GGUF file in the checkpoint's own 16-bit type.
  /// - Parameters:
  ///   - model: the checkpoint's directory
  ///   - source: its files as they have to be, before and after; nil for those that stand there now
  ///   - file: where the file appears, which has to end in `.gguf`; until it is complete, it stands beside that, hidden
  ///   - heard: called whenever the converter says something
  /// - Throws: ``GGUFConversionError``; ``FileError`` if there is no space for the file; ``GGUFError`` if what was made is none;
  ///   ``SourceChange``
  public func convert(
    _ model: String, source: SourceFiles? = nil, to file: String, symlinks: SymlinkPolicy = .follow,
    heard: () -> Void = {}
  ) throws {
    guard FileSystem.isReadable(program) else {
      throw GGUFConversionError.missing(program: program)
    }
    let source = try source ?? QuantizationRun.sourceFiles(of: model, symlinks: symlinks)
    try source.check(in: model, symlinks: symlinks)
    let directory = FileSystem.parent(of: file)
    let needed = RunPlan.convertedBytes(of: try CheckpointReader.open(model, symlinks: symlinks))
    if try FileSystem.freeBytes(directory) < needed {
      throw FileError(path: file, operation: .write, errno: .noSpace, neededBytes: needed)
    }
    let partial = FileSystem.join(directory, ".\(FileSystem.name(of: file))")
    try FileSystem.removeTree(partial)
    let arguments = [program, model, "--outtype", "auto", "--outfile", partial]
    switch PythonProcess(interpreter: python).run(
      arguments, environment: Self.environment, heard: heard)
    {
    case .exit(0, _): break
    case .exit(let status, let message):
      try FileSystem.removeTree(partial)
      throw GGUFConversionError.failed(
        model: model, status: status, message: String(message.suffix(Self.longestMessage)))
    case .killed(let signal):
      try FileSystem.removeTree(partial)
      throw GGUFConversionError.killed(model: model, signal: signal)
    case .missing(let reason): throw GGUFConversionError.noPython(python, reason: reason)
    }
    do {
      // What the converter has read nobody sees later.
      try source.check(in: model, symlinks: symlinks)
      // What it says of itself is looked at where the file is opened; here, that it is one.
      _ = try GGUFHeader(of: MappedFile(path: partial))
    } catch {
      try FileSystem.removeTree(partial)
      throw error
    }
    try FileSystem.move(partial, to: file)
  }

  /// For some architectures the converter asks transformers for a tokenizer that may bring code of its own, and would run what
  /// a stranger has put into the checkpoint. It is copied to where modules are kept first, which nothing can be; and what
  /// refers to a hub is not waited for.
  private static let environment = ["HF_MODULES_CACHE": "/dev/null", "HF_HUB_OFFLINE": "1"]

  /// Of what the converter says, its end tells why.
  private static let longestMessage = 2_000
}

/// Why a checkpoint did not become a GGUF file.
public enum GGUFConversionError: Error, Sendable, Equatable, CustomStringConvertible {
  case missing(program: String)
  case noPython(String, reason: String)
  case failed(model: String, status: Int32, message: String)
  case killed(model: String, signal: Int32)

  public var description: String {
    switch self {
    case .missing(let program):
      "\(program), which is to make GGUF files, is not there or not readable: name llama.cpp's convert_hf_to_gguf.py as "
        + "gguf-converter"
    case .noPython(let python, let reason): "\(python), which is to run the GGUF converter: \(reason)"
    case .failed(let model, let status, let message):
      "\(model): llama.cpp's converter ended with status \(status): \(message)"
    case .killed(let model, let signal):
      "\(model): llama.cpp's converter was ended by signal \(signal)"
        + (signal == 9 ? ", as the kernel does when memory runs out" : "")
    }
  }

  /// By sysexits(3).
  public var exitCode: Int32 {
    switch self {
    case .missing, .noPython: 69
    case .failed: 65
    case .killed: 71
    }
  }
}
