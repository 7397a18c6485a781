import Calibration
import Checkpoint
import Decoder
import Export
import SystemIO

// What is looked at before a run begins.
extension QuantizationRun {
  /// The files of a checkpoint's directory, or of a GGUF model by one of its files.
  public static func sourceFiles(of model: String, symlinks: SymlinkPolicy) throws -> SourceFiles {
    let files = try CheckpointReader.files(of: model, symlinks: symlinks)
    return try SourceFiles(named: files.names, in: files.directory, symlinks: symlinks)
  }

  /// Makes sure that a calibration set's source is this model's, as far as its ids tell.
  /// - Throws: ``DecoderError/tokenOutsideVocabulary(token:vocabulary:)``
  public static func requireTokens(_ calibration: CalibrationSet, of model: ModelDescription)
    throws(DecoderError)
  {
    for id in [calibration.idRange.lowerBound, calibration.idRange.upperBound]
    where !(0..<model.vocabularySize).contains(Int(id)) {
      throw .tokenOutsideVocabulary(token: id, vocabulary: model.vocabularySize)
    }
  }

  /// Makes a trial. Where the source is another by the time that it fails, that is told of, and not what came of it.
  static func watching<Decision>(
    _ source: SourceFiles, of request: QuantizationRequest, _ trial: () throws -> Decision
  ) throws -> Decision {
    do { return try trial() } catch {
      let directory = try CheckpointReader.files(of: request.model, symlinks: request.symlinks).directory
      try source.check(in: directory, symlinks: request.symlinks)
      throw error
    }
  }

  /// Opens a checkpoint and looks whether it is one that can be quantized, which takes no time: what cannot be is to be
  /// told before a text is tokenized for it.
  @discardableResult
  public static func open(
    _ model: String, symlinks: SymlinkPolicy, allowingRequantizing isAllowed: Bool,
    rotation: QuantizationSettings.Rotation, threads: Int = 1
  ) throws -> (CheckpointReader, ModelDescription) {
    var checkpoint = try CheckpointReader.open(model, symlinks: symlinks)
    if let method = checkpoint.configuration["quantization_config"]?["quant_method"]?.string,
      !checkpoint.isScaled
    {
      guard isAllowed else { throw PipelineError.alreadyQuantized(method: method) }
      checkpoint = try PackedCheckpoint(checkpoint, symlinks: symlinks).unpacked
    }
    let description = try ModelDescription(checking: checkpoint, source: checkpoint)
    let blocks = description.requiredTensors.lazy.compactMap { checkpoint.tensors[$0.name]?.blocks }
    if !isAllowed, let type = blocks.first(where: { _ in true }) {
      throw PipelineError.alreadyQuantized(method: type.name)
    }
    guard rotation == .residual else { return (checkpoint, description) }
    // Of here on it is a model like any other.
    checkpoint = try RotatedWeights(checkpoint, description, threads: threads).checkpoint
    return (checkpoint, try ModelDescription(checking: checkpoint, source: checkpoint))
  }
}
