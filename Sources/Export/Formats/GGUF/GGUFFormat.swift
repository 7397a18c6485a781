import Checkpoint
import Quantization
import SystemIO
import Tensors

/// One GGUF file of a GGUF file: its keys and unquantized tensors as they are, the others in blocks.
///
/// ``GGUFBlocks`` has the layouts of the types, and ``GGUFMix`` which tensor gets which.
public struct GGUFFormat: OutputFormat {
  public let name = OutputFormatName.gguf
  public let storesOutliersApart = false
  public let keepsSourceLayout = true
  public let holdsAnyGrid = true
  let mix: GGUFMix

  public init(_ mix: GGUFMix) { self.mix = mix }

  public func scaleTypes(modelType: DType) -> [DType] { [.float16] }

  public func check(_ linears: [LinearDescription]) throws(ExportError) {
    for linear in linears {
      guard let grid = linear.gridFormat else { continue }
      if linear.outliers != nil { throw .outliersNotInGGUF(linear: linear.name) }
      guard let type = GGUFTensorType(grid) else {
        throw .gridNotInGGUF(
          linear: linear.name, bits: grid.bitWidth.rawValue, groupSize: grid.groupSize.notation,
          isSymmetric: grid.isSymmetric)
      }
      guard linear.inFeatures.isMultiple(of: type.blockSize) else {
        throw .noWholeBlocks(
          linear: linear.name, type: type.name, blockSize: type.blockSize, inFeatures: linear.inFeatures)
      }
    }
  }

  /// The name of a file made of another one.
  static func fileName(of source: String, _ mix: GGUFMix) -> String {
    var stem = GGUFFiles.stem(of: source)
    for ending in ["-bf16", "-f16", "-f32", ".bf16", ".f16", ".f32"] where stem.lowercased().hasSuffix(ending)
    {
      stem = String(stem.dropLast(ending.count))
    }
    return "\(stem)-\(mix.title).gguf"
  }

  public func tensors(
    of linear: LinearDescription, grid: GridFormat, inPlaceOf weight: TensorInfo
  ) -> [TensorPlan] {
    guard let type = GGUFTensorType(grid) else { preconditionFailure("the grid was checked") }
    return [
      TensorPlan(
        name: weight.storedName, type: type, shape: weight.part?.shape ?? weight.shape)
    ]
  }

  public func write(_ linear: QuantizedLinear, inPlaceOf weight: TensorInfo, to writer: CheckpointWriter)
    throws
  {
    try write(linear, firstRow: 0, inPlaceOf: weight, to: writer)
  }

  /// - Parameter firstRow: where the linear's first row stands in its matrix
  func write(
    _ linear: QuantizedLinear, firstRow: Int, inPlaceOf weight: TensorInfo, to writer: CheckpointWriter
  ) throws {
    guard let type = GGUFTensorType(linear.grid.format) else { preconditionFailure("the grid was checked") }
    let panelRows = max(1, codesPerPanel / max(linear.inFeatures, 1))
    let rowBytes = linear.inFeatures / type.blockSize * type.blockBytes
    let start = (weight.part?.start ?? 0) / type.blockSize * type.blockBytes
    for first in stride(from: 0, to: linear.outFeatures, by: panelRows) {
      let rows = first..<min(first + panelRows, linear.outFeatures)
      try writer.write(
        weight.storedName, type.packed(linear, rows: rows),
        at: start + (firstRow + first) * rowBytes)
    }
  }

  public func ggufType(ofUnquantized tensor: TensorInfo) -> GGUFTensorType? { tensor.ggufType }

  public func makeWriter(
    in directory: String, plan: [TensorPlan], for linears: [LinearDescription], source: CheckpointReader,
    shardSizeLimit: Int
  ) throws -> CheckpointWriter {
    guard let file = source.gguf?.file else { throw ExportError.needsGGUF }
    return try CheckpointWriter(
      gguf: Self.fileName(of: FileSystem.name(of: file), mix), in: directory, plan: plan, keysOf: source,
      fileType: mix.name.fileType)
  }

  public func quantizationConfiguration(
    of linears: [LinearDescription], besides towers: [String]
  ) -> JSONValue? { nil }

  public func runtimes(for grid: GridFormat, of traits: ModelTraits) -> [RuntimeSupport] {
    ["llama.cpp", "Ollama", "LM Studio"].map { RuntimeSupport(format: name, runtime: $0, loads: true) }
  }
}
