import Tensors

/// How a tensor is stored that is read as what it stands for.
public enum WeightCoding: Sendable, Hashable {
  case float8(WeightScaling)
  case microscaled(MicroscaledRows)
  /// As codes in several tensors, or what a rotation makes of some: another source reads it.
  case computed
  /// In blocks of a GGUF file.
  case blocks(GGUFTensorType)

  /// The tensor of the scales.
  var scales: String? {
    switch self {
    case .float8(let scaling): scaling.scales
    case .microscaled(let rows): rows.scales
    case .computed, .blocks: nil
    }
  }
}

/// Where rows of four-bit floats stand, two to a byte, of which every 32 share a power of two (MXFP4).
public struct MicroscaledRows: Sendable, Hashable {
  static let blockSize = 32

  /// The tensor of the exponents, one for each block; a byte b stands for 2^(b − 127).
  let scales: String
  /// The row of them that belongs to the first stored row.
  let firstScaleRow: Int
  /// The first of the stored rows, and how far the next one is.
  let first: Int
  let stride: Int

  /// The stored row that a row stands in.
  func storedRow(_ row: Int) -> Int { first + row * stride }
}

/// How a tensor of 8-bit floats becomes weights: each block of it is multiplied by a scale.
public struct WeightScaling: Sendable, Hashable {
  /// The tensor of the scales, one for each block, `[⌈out / rows⌉, ⌈in / columns⌉]`.
  let scales: String
  /// The extents of a block; those at the ends may be smaller.
  let rows: Int
  let columns: Int

  func columnCount(_ columns: Int) -> Int { (columns + self.columns - 1) / self.columns }
}

/// What a checkpoint's `quantization_config` makes of its tensors of 8-bit floats.
struct ScaledWeights {
  /// Those that a model reads, in the type that they stand for.
  private(set) var tensors: [String: TensorInfo] = [:]
  /// Scales of weights and of activations, which mean nothing without the tensors that they belong to.
  private(set) var hidden: Set<String> = []

  private static let weightScales = ["weight_scale_inv", "weight_scale"]
  /// For runtimes that compute in 8 bits.
  private static let activationScales = ["activation_scale", "activation_scale_inv", "input_scale"]

  /// - Throws: ``CheckpointError/missingScale(tensor:)``, or ``CheckpointError/wrongShape(tensor:found:expected:)`` of a
  ///   scale
  init(configuration: JSONValue, tensors all: [String: TensorInfo]) throws(CheckpointError) {
    let settings = configuration["quantization_config"] ?? .null
    guard Self.isScaled(settings) else { return }
    let type = Self.weightType(configuration)
    for (name, tensor) in all where tensor.dtype == .float8E4M3 && tensor.shape.count == 2 {
      guard name.hasSuffix(".weight") else { continue }
      let module = name.dropLast("weight".count)
      guard let scales = Self.weightScales.lazy.compactMap({ all["\(module)\($0)"] }).first else {
        throw .missingScale(tensor: name)
      }
      let scaling = try Self.scaling(of: tensor, scales, settings)
      self.tensors[name] = TensorInfo(
        name: name, dtype: type, shape: tensor.shape, file: tensor.file, byteRange: tensor.byteRange,
        coding: .float8(scaling))
      hidden.insert(scales.name)
      for suffix in Self.activationScales { hidden.insert("\(module)\(suffix)") }
    }
  }

  private static func isScaled(_ settings: JSONValue) -> Bool {
    switch settings["quant_method"]?.string {
    case "fp8", "mxfp4": true
    case "compressed-tensors": settings["format"]?.string == "float-quantized"
    default: false
    }
  }

  /// Whether such a checkpoint is read as its weights, and so can be quantized.
  static func isScaled(configuration: JSONValue) -> Bool {
    isScaled(configuration["quantization_config"] ?? .null)
  }

  /// The type that the model computes in.
  static func weightType(_ configuration: JSONValue) -> DType {
    let places = [configuration, configuration["text_config"] ?? .null]
    let name = places.lazy.compactMap { $0["dtype"]?.string ?? $0["torch_dtype"]?.string }.first
    return name == "float16" ? .float16 : name == "float32" ? .float32 : .bfloat16
  }

  private static func scaling(
    of tensor: TensorInfo, _ scales: TensorInfo, _ settings: JSONValue
  ) throws(CheckpointError) -> WeightScaling {
    let (rows, columns) = (tensor.shape[0], tensor.shape[1])
    if scales.shape.allSatisfy({ $0 == 1 }) {
      return WeightScaling(scales: scales.name, rows: max(rows, 1), columns: max(columns, 1))
    }
    if scales.shape == [rows, 1] || scales.shape == [rows] {
      return WeightScaling(scales: scales.name, rows: 1, columns: max(columns, 1))
    }
    // By what the configuration says: as many scales may fit blocks of other extents.
    let groups = settings["config_groups"]?.object?.values.compactMap { $0["weights"]?["block_structure"] }
    let block = (settings["weight_block_size"] ?? groups?.first)?.array?.compactMap(\.int) ?? []
    guard block.count == 2, block.allSatisfy({ $0 > 0 }) else {
      throw .wrongShape(tensor: scales.name, found: scales.shape, expected: [rows, 1])
    }
    let scaling = WeightScaling(
      scales: scales.name, rows: min(block[0], max(rows, 1)), columns: min(block[1], max(columns, 1)))
    // No sum that could overflow.
    func blocks(_ extent: Int, of size: Int) -> Int { extent / size + (extent % size == 0 ? 0 : 1) }
    let expected = [blocks(rows, of: block[0]), blocks(columns, of: block[1])]
    guard scales.shape == expected else {
      throw .wrongShape(tensor: scales.name, found: scales.shape, expected: expected)
    }
    return scaling
  }
}

/// The values of 8-bit floats of four exponent and three fraction bits, by their bits: no infinities, and one NaN of each
/// sign.
let float8E4M3Values: [Float] = (0..<256).map { bits in
  let (exponent, fraction) = (bits >> 3 & 15, bits & 7)
  let magnitude: Float =
    switch (exponent, fraction) {
    case (15, 7): .nan
    case (0, _): Float(fraction) * 0x1p-9
    default: Float(sign: .plus, exponent: exponent - 7, significand: 1 + Float(fraction) / 8)
    }
  return bits < 128 ? magnitude : -magnitude
}

/// The values of four-bit floats of two exponent bits and one fraction bit, by their bits.
let float4E2M1Values: [Float] = {
  let magnitudes: [Float] = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
  return magnitudes + magnitudes.map { -$0 }
}()
