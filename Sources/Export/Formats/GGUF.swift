import Checkpoint
import Quantization
import SystemIO
import Tensors

/// One GGUF file of a GGUF file: its keys and unquantized tensors as they are, linears in blocks.
///
/// | bits | type | a block of 32 columns |
/// |---|---|---|
/// | 4 | Q4_0 | scale fp16, 16 bytes with the codes of columns i and i + 16 in the low and the high half |
/// | 8 | Q8_0 | scale fp16, 32 bytes, the code less 128 |
///
/// Token embeddings and the head, which no solver sees, are rounded to Q8_0.
public struct GGUFFormat: OutputFormat {
  public let name = OutputFormatName.gguf
  public let storesOutliersApart = false
  public let keepsSourceLayout = true

  static let groupSize = GroupSize.columns(32)
  /// What is rounded without a solver.
  private static let rounded: Set = ["token_embd.weight", "output.weight"]

  public init() {}

  public func scaleTypes(modelType: DType) -> [DType] { [.float16] }

  public func check(_ linears: [LinearDescription]) throws(ExportError) {
    for linear in linears {
      guard let grid = linear.gridFormat else { continue }
      if linear.outliers != nil { throw .outliersNotInGGUF(linear: linear.name) }
      guard Self.type(of: grid) != nil else {
        throw .gridNotInGGUF(
          linear: linear.name, bits: grid.bitWidth.rawValue, groupSize: grid.groupSize.notation,
          isSymmetric: grid.isSymmetric)
      }
      guard linear.inFeatures.isMultiple(of: 32) else {
        throw .groupSizeDoesNotDivide(
          linear: linear.name, groupSize: 32, inFeatures: linear.inFeatures, format: name)
      }
    }
  }

  /// The type that holds a grid.
  static func type(of grid: GridFormat) -> GGUFTensorType? {
    guard grid.isSymmetric, grid.groupSize == groupSize else { return nil }
    switch grid.bitWidth {
    case .four: return .q4_0
    case .eight: return .q8_0
    default: return nil
    }
  }

  /// What most linears are stored as.
  static func type(of linears: some Collection<LinearDescription>) -> GGUFTensorType {
    var counts: [GGUFTensorType: Int] = [:]
    for linear in linears {
      guard let type = linear.gridFormat.flatMap(type) else { continue }
      counts[type, default: 0] += linear.outFeatures * linear.inFeatures
    }
    return counts.max { ($0.value, $0.key.name) < ($1.value, $1.key.name) }?.key ?? .q8_0
  }

  /// llama.cpp's number of a file of that type.
  static func fileType(_ type: GGUFTensorType) -> UInt32 { type == .q4_0 ? 2 : 7 }

  /// The name of a file made of another one.
  static func fileName(of source: String, _ type: GGUFTensorType) -> String {
    var stem = String(source.dropLast(".gguf".count))
    for ending in ["-bf16", "-f16", "-f32", ".bf16", ".f16", ".f32"] where stem.lowercased().hasSuffix(ending)
    {
      stem = String(stem.dropLast(ending.count))
    }
    return "\(stem)-\(type.name).gguf"
  }

  public func tensors(
    of linear: LinearDescription, grid: GridFormat, inPlaceOf weight: TensorInfo
  ) -> [TensorPlan] {
    guard let type = Self.type(of: grid) else { preconditionFailure("the grid was checked") }
    return [TensorPlan(name: weight.part?.whole ?? weight.name, type: type, shape: weight.shape)]
  }

  public func write(_ linear: QuantizedLinear, inPlaceOf weight: TensorInfo, to writer: CheckpointWriter)
    throws
  {
    guard let type = Self.type(of: linear.grid.format) else { preconditionFailure("the grid was checked") }
    let columns = linear.inFeatures
    let blocks = columns / type.blockSize
    let panelRows = max(1, codesPerPanel / max(columns, 1))
    for first in stride(from: 0, to: linear.outFeatures, by: panelRows) {
      let rows = first..<min(first + panelRows, linear.outFeatures)
      var bytes: [UInt8] = []
      bytes.reserveCapacity(rows.count * blocks * type.blockBytes)
      for row in rows {
        for block in 0..<blocks {
          let bits = linear.grid.scales[row, block].float16Bits
          bytes += [UInt8(truncatingIfNeeded: bits), UInt8(truncatingIfNeeded: bits >> 8)]
          let start = row * columns + block * type.blockSize
          let codes = linear.codes[start..<start + type.blockSize]
          if type == .q4_0 {
            bytes += (start..<start + 16).map { codes[$0] | codes[$0 + 16] << 4 }
          } else {
            bytes += codes.map { $0 &- 128 }
          }
        }
      }
      try writer.write(
        weight.part?.whole ?? weight.name, bytes, at: first * blocks * type.blockBytes)
    }
  }

  public func ggufType(ofUnquantized tensor: TensorInfo) -> GGUFTensorType? {
    let isRounded =
      Self.rounded.contains(tensor.part?.whole ?? tensor.name) && tensor.dtype.isSupportedFloat
      && tensor.coding == nil && tensor.shape.count == 2 && tensor.shape[1].isMultiple(of: 32)
    return isRounded ? .q8_0 : tensor.ggufType
  }

  /// Rows rounded to Q8_0: a scale of the largest value over 127.
  static func rounded(_ panel: Matrix) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(panel.count / 32 * 34)
    panel.withSpan { values in
      for start in stride(from: 0, to: values.count, by: 32) {
        let block = start..<start + 32
        let largest = block.reduce(0 as Float) { max($0, abs(values[$1])) }
        // A block too small for any scale is one of zeros.
        let scale = (largest / 127).rounded(to: .float16)
        let bits = scale.float16Bits
        bytes += [UInt8(truncatingIfNeeded: bits), UInt8(truncatingIfNeeded: bits >> 8)]
        bytes += block.map { place in
          let code = scale > 0 ? min(max((values[place] / scale).rounded(), -127), 127) : 0
          return UInt8(bitPattern: Int8(code))
        }
      }
    }
    return bytes
  }

  public func makeWriter(
    in directory: String, plan: [TensorPlan], for linears: [LinearDescription], source: CheckpointReader,
    shardSizeLimit: Int
  ) throws -> CheckpointWriter {
    guard let file = source.gguf?.file else { throw ExportError.needsGGUF }
    let type = Self.type(of: linears)
    return try CheckpointWriter(
      gguf: Self.fileName(of: FileSystem.name(of: file), type), in: directory, plan: plan, keysOf: source,
      fileType: Self.fileType(type))
  }

  public func quantizationConfiguration(
    of linears: [LinearDescription], besides towers: [String]
  ) -> JSONValue? { nil }

  public func runtimes(for grid: GridFormat, of traits: ModelTraits) -> [RuntimeSupport] {
    ["llama.cpp", "Ollama", "LM Studio"].map { RuntimeSupport(format: name, runtime: $0, loads: true) }
  }
}
