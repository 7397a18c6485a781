import Tensors

/// Why a checkpoint cannot be written as asked.
public enum ExportError: Error, Equatable, Sendable, CustomStringConvertible {
  case featuresNotMultipleOf32(linear: String, outFeatures: Int, inFeatures: Int, format: OutputFormatName)
  case bitsNotInFormat(linear: String, bits: Int, format: OutputFormatName)
  case groupSizeDoesNotDivide(linear: String, groupSize: Int, inFeatures: Int, format: OutputFormatName)
  case mixedGrids(linear: String, other: String, format: OutputFormatName)
  /// Experts of a family that no runtime loads one by one.
  case expertsLoadNowhere(format: OutputFormatName)
  case needsGGUF
  /// A GGUF file is to become another format.
  case onlyGGUF(format: OutputFormatName)
  case ggufGrid(linear: String, format: OutputFormatName)
  case noWholeBlocks(linear: String, type: String, blockSize: Int, inFeatures: Int)
  case gridNotInGGUF(linear: String, bits: Int, groupSize: Int, isSymmetric: Bool)
  case outliersNotInGGUF(linear: String)
  case missingTensor(String)
  case unexpectedShape(tensor: String, found: [Int], expected: [Int])
  case unsupportedType(tensor: String, type: DType)
  /// A bias or an outlier left the range of the type that keeps it.
  case valueOutOfRange(tensor: String, index: Int, type: DType)

  /// The process's exit status: a data error, after sysexits.h.
  public var exitCode: Int32 { 65 }

  public var description: String {
    switch self {
    case .featuresNotMultipleOf32(let linear, let outFeatures, let inFeatures, let format):
      """
      \(linear) is \(outFeatures) × \(inFeatures), and \(format.rawValue) needs multiples of 32: \
      leave this linear out, or write compressed-tensors
      """
    case .bitsNotInFormat(let linear, let bits, let format):
      """
      \(linear) has \(bits) bits, and readers of \(format.rawValue) know \(format == .awq ? "4" : "2, 3, 4 and 8"): choose \
      that, or write compressed-tensors
      """
    case .groupSizeDoesNotDivide(let linear, let groupSize, let inFeatures, let format):
      """
      \(linear) has \(inFeatures) columns, which groups of \(groupSize) do not divide, and readers of \
      \(format.rawValue) refuse a shorter last group: choose a group size that divides \(inFeatures), \
      or -1 for one group per row
      """
    case .mixedGrids(let linear, let other, let format):
      """
      \(linear) and \(other) differ in bits, group size or symmetry, and \(format.rawValue) has one \
      setting for all linears: write compressed-tensors or dense
      """
    case .expertsLoadNowhere(let format):
      """
      this model's quantized experts load in no known runtime as \(format.rawValue): vLLM refuses them, and \
      transformers starts with random ones in their place. Write the dense format (--format dense), or leave the \
      experts as they are (--rule '[.]experts[.]=skip')
      """
    case .needsGGUF:
      """
      the gguf format is written of GGUF files: convert the checkpoint with llama.cpp's \
      convert_hf_to_gguf.py CHECKPOINT --outtype bf16, and give its result; or name that program (--gguf-converter, and \
      gguf-converter in the daemon's configuration), and it is run first
      """
    case .onlyGGUF(let format):
      """
      a GGUF file becomes a GGUF file, and no \(format.rawValue), as its rows and names are those of llama.cpp: leave \
      --format out, or give the checkpoint that the file was made of
      """
    case .gridNotInGGUF(let linear, let bits, let groupSize, let isSymmetric):
      """
      \(linear) has \(bits) bits, \(groupSize == -1 ? "whole rows" : "groups of \(groupSize)") and a \
      \(isSymmetric ? "symmetric" : "asymmetric") grid, which no type of GGUF has: choose a file by --gguf-type, and \
      linears of another type by rules as '[.]v_proj=type:Q6_K'
      """
    case .ggufGrid(let linear, let format):
      "\(linear) has a grid of GGUF's, which \(format.rawValue) has no place for: choose bits and group size for it"
    case .noWholeBlocks(let linear, let type, let blockSize, let inFeatures):
      """
      \(linear) has \(inFeatures) columns, and \(type) has blocks of \(blockSize): choose another type for it, or none, and \
      it gets the nearest that fits
      """
    case .outliersNotInGGUF(let linear):
      "\(linear): GGUF has no place for outliers: leave --outliers out, or keep more bits with --gguf-type Q8_0"
    case .missingTensor(let tensor):
      "the source checkpoint has no tensor \(tensor): check that the linear is named as in its files"
    case .unexpectedShape(let tensor, let found, let expected):
      "\(tensor) has shape \(found) where \(expected) is expected: check config.json against the weights"
    case .unsupportedType(let tensor, let type):
      "\(tensor) is of type \(type.rawValue): convert the checkpoint to F32, F16 or BF16 first"
    case .valueOutOfRange(let tensor, let index, let type):
      """
      \(tensor) at index \(index) is outside \(type.rawValue), in which the format keeps it: write \
      another format
      """
    }
  }
}
