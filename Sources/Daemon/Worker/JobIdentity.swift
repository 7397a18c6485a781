import Calibration
import Checkpoint
import FoundationEssentials
import Pipeline
import SystemIO

/// What makes a job this one and no other, whatever it is called: the checkpoint's bytes, the settings, the tokens,
/// and the version of the algorithm.
enum JobIdentity {
  /// To be raised whenever the same job comes to other numbers than before: unfinished jobs then begin anew.
  static let algorithmVersion = 15

  /// What a job comes to, by what it is and by what computes: the same on the same machine.
  /// - Parameters:
  ///   - digest: see ``digest(of:contents:tokens:)``
  ///   - kernels: see ``ComputeBackend/kernels(for:)``
  static func result(of digest: String, by kernels: String) -> String {
    var result = SHA256Digest()
    result.update("\(digest)\n\(kernels)\n")
    return result.finish()
  }

  /// - Parameter contents: see ``contents(of:symlinks:advanced:)``
  static func digest(of order: JobOrder, contents: String, tokens: CalibrationSet) throws -> String {
    var digest = SHA256Digest()
    digest.update("quantease \(algorithmVersion)\n")
    digest.update(contents)
    // Another converter makes other weights of the same checkpoint.
    if let program = order.converter {
      guard FileSystem.isReadable(program) else { throw GGUFConversionError.missing(program: program) }
      digest.update("converter \(try SHA256Digest.of(file: program, symlinks: .follow))\n")
    }
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys]
    digest.update(String(decoding: try encoder.encode(order.settings), as: UTF8.self))
    digest.update("\n\(tokens.sequenceLength)\n")
    digest.update(unsafe tokens.tokens.span.bytes)
    digest.update(unsafe tokens.spare.span.bytes)
    return digest.finish()
  }

  /// Name, size and digest of the checkpoint's files, three lines for each.
  /// - Parameter advanced: called as parts of files are read
  /// - Throws: ``FileError``
  static func contents(
    of order: JobOrder, symlinks: SymlinkPolicy, advanced: () -> Void
  ) throws -> String {
    var contents = ""
    let (directory, names) = try CheckpointReader.files(of: order.model, symlinks: symlinks)
    for name in names where !isAboutTheJob(name) {
      let path = FileSystem.join(directory, name)
      let bytes = try SHA256Digest.of(file: path, symlinks: symlinks, advanced: advanced)
      contents += "\(name)\n\(try FileSystem.fileSize(path))\n\(bytes)\n"
    }
    return contents
  }

  /// Files that say something about the drop and nothing about the model.
  private static func isAboutTheJob(_ name: String) -> Bool {
    name == "quantease.yaml" || name == ChecksumManifest.fileName
  }
}
