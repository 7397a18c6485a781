import ArgumentParser
import Checkpoint
import ComputeOpenBLAS
import Decoder
import Export
import Pipeline
import SystemIO

struct InspectCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "inspect",
    abstract: "Says what a checkpoint holds and whether it can be quantized.",
    discussion: "Reads config.json and the headers of the shards; no weights.")

  @Argument(
    help: ArgumentHelp("The checkpoint's directory, or a GGUF file.", valueName: "model"),
    completion: .file())
  var model: String

  @Flag(help: "Print JSON.")
  var json = false

  private struct Summary: Encodable {
    let architecture: String
    let layers: Int
    let hiddenSize: Int
    let vocabularySize: Int
    let tensors: Int
    let bytes: Int
    let parameters: Int
    let linears: Int
    let quantizableParameters: Int
    let dtypes: [String]
    /// Tensors and bytes by type.
    let types: [String: TypeShare]
    let quantization: String?
    /// The least memory that a run of 128 × 2,048 tokens can do with, by the defaults and with `--target layer`.
    let memoryBytes: Int?
    let memoryBytesOfLayerTarget: Int?
    /// What would compute.
    let kernels: String
  }

  private struct TypeShare: Encodable {
    var tensors = 0
    var parameters = 0
    var bytes = 0
  }

  func run() throws {
    Console.useBestKernels()
    let (checkpoint, weights) = try openWeights(model)
    let description = try ModelDescription(checking: checkpoint, source: weights)
    let tensors = Array(checkpoint.tensors.values)
    let linears = (0..<description.layerCount).flatMap { description.linears(ofLayer: $0) }
    let linearParameters = linears.reduce(0) { $0 + $1.outFeatures * $1.inFeatures }
    let backend = OpenBLASBackend(threads: 1, bfloat16: .best)
    let operands = backend.operandType(for: checkpoint.weightType(of: description))
    func memory(_ target: QuantizationSettings.TargetChoice) -> Int {
      var settings = QuantizationSettings()
      settings.target = target
      let work = MemoryPlan.Work(
        model: description, samples: settings.samples,
        sequenceLength: min(settings.sequenceLength, description.maximumSequenceLength ?? .max),
        originalSamples: settings.originalSamples,
        operands: operands)
      // As little as it can do with.
      return MemoryPlan.smallest(work).peakBytes
    }
    var types: [String: TypeShare] = [:]
    for tensor in tensors {
      var share = types[tensor.blocks?.name ?? tensor.dtype.rawValue] ?? TypeShare()
      share.tensors += 1
      share.parameters += tensor.shape.reduce(1, *)
      share.bytes += tensor.byteRange.count
      types[tensor.blocks?.name ?? tensor.dtype.rawValue] = share
    }
    let summary = Summary(
      architecture: description.modelType, layers: description.layerCount,
      hiddenSize: description.hiddenSize, vocabularySize: description.vocabularySize,
      tensors: tensors.count,
      bytes: tensors.map(\.byteRange.count).reduce(0, +),
      parameters: tensors.map { $0.shape.reduce(1, *) }.reduce(0, +),
      linears: linears.count,
      quantizableParameters: linearParameters,
      dtypes: types.keys.sorted(), types: types,
      quantization: checkpoint.configuration["quantization_config"]?["quant_method"]?.string
        ?? Set(tensors.compactMap { $0.blocks?.name }).max {
          (types[$0]?.bytes ?? 0, $0) < (types[$1]?.bytes ?? 0, $1)
        },
      memoryBytes: memory(.auto), memoryBytesOfLayerTarget: memory(.layer),
      kernels: backend.kernels(for: operands))
    if json { return try Console.json(summary) }
    try Console.line(
      """
      \(FileSystem.name(of: model)): \(summary.architecture), \(summary.layers) layers, \
      hidden size \(summary.hiddenSize), vocabulary \(summary.vocabularySize)
      tensors   \(summary.tensors), \(Console.bytes(summary.bytes)), \(summary.dtypes.joined(separator: ", "))
      linears   \(summary.linears) with \(summary.quantizableParameters) of \(summary.parameters) parameters
      """)
    if let header = checkpoint.gguf {
      try Console.line("types     \(GGUFOutline.description(of: header))")
    }
    if let method = summary.quantization {
      try Console.line("quantized already: \(method)")
    } else {
      try Console.line(
        "memory    \(Console.bytes(summary.memoryBytes ?? 0)) at least to quantize it, mapped files aside; "
          + "\(Console.bytes(summary.memoryBytesOfLayerTarget ?? 0)) with --target layer")
      try Console.line("kernels   \(summary.kernels)")
    }
  }
}
