// swift-tools-version: 6.2
import PackageDescription

// Every target of the project: Swift 6 language mode, every use of an unsafe construct spelled out,
// and no warning let through.
let strict: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
]

let systemPackage = Target.Dependency.product(name: "SystemPackage", package: "swift-system")

/// A module of the engine; `Sources/` lists them in the order in which they may import one another.
func module(_ name: String, _ dependencies: [Target.Dependency], resources: [Resource] = []) -> Target {
  .target(name: name, dependencies: dependencies, resources: resources, swiftSettings: strict)
}

/// Sources of the GPU's kernels, in the order in which they are compiled.
let cudaKernels = [
  "Common", "Elementwise", "Rows", "Attention", "Triangles", "Grids", "Descent", "Pairs", "Outliers",
]

func tests(
  _ name: String, _ dependencies: [Target.Dependency], resources: [Resource] = []
) -> Target {
  .testTarget(
    name: name, dependencies: dependencies, resources: resources, swiftSettings: strict)
}

let package = Package(
  name: "quantease",
  products: [
    .executable(name: "quantease", targets: ["quantease"]),
    .executable(name: "quanteased", targets: ["quanteased"]),
    // What Benchmarks/, a package of its own, measures.
    .library(
      name: "QuantEaseEngine",
      targets: [
        "ActivationCache", "Checkpoint", "Compute", "ComputeOpenBLAS", "Decoder", "Export",
        "Quantization", "Solvers", "Tensors",
      ]),
    .library(name: "COpenBLAS", targets: ["COpenBLAS"]),
    // What Tests/Fuzz, another package, feeds with anything.
    .library(name: "CheckpointReading", targets: ["Checkpoint", "SystemIO", "Tensors"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.0"),
    .package(url: "https://github.com/jpsim/Yams", from: "6.2.0"),
  ],
  targets: [
    .systemLibrary(name: "CCrypto", pkgConfig: "libcrypto", providers: [.apt(["libssl-dev"])]),
    .systemLibrary(name: "CLinux"),
    .systemLibrary(name: "CLMDB", pkgConfig: "lmdb", providers: [.apt(["liblmdb-dev"])]),
    .systemLibrary(name: "CZstd", pkgConfig: "libzstd", providers: [.apt(["libzstd-dev"])]),
    .systemLibrary(name: "COpenBLAS", pkgConfig: "openblas", providers: [.apt(["libopenblas-dev"])]),

    .target(name: "CKernels"),
    .target(name: "CCUDA", linkerSettings: [.linkedLibrary("dl")]),
    // Its shim is built by a site's mpicc, with tools/build-mpi, and opened where somebody asks for ranks.
    .target(name: "CMPI", exclude: ["shim"], linkerSettings: [.linkedLibrary("dl")]),
    module("Tensors", []),
    module("SystemIO", ["CLinux", systemPackage]),
    module("Collective", ["CMPI", "SystemIO"]),
    module("Checkpoint", ["Tensors", "SystemIO"]),
    module("ActivationCache", ["Tensors", "CLinux", "CLMDB", "CZstd"]),
    module("Quantization", ["Tensors"]),
    module("Compute", ["Tensors", "Quantization"]),
    module(
      "ComputeOpenBLAS", ["Compute", "Tensors", "Quantization", "SystemIO", "COpenBLAS", "CKernels"]),
    module(
      "ComputeCUDA", ["CCUDA", "Compute", "Tensors", "Quantization"],
      resources: cudaKernels.map { .embedInCode("Kernels/\($0).cu") }),
    module("Devices", ["Compute", "ComputeCUDA", "ComputeOpenBLAS"]),
    module("Decoder", ["Tensors", "Checkpoint", "Compute"]),
    module("Tuning", ["Tensors", "Checkpoint", "Compute", "Decoder"]),
    module(
      "Calibration", ["Tensors", "Compute", "SystemIO", "Checkpoint"],
      resources: [.embedInCode("Resources/tokenize.py")]),
    module("Solvers", ["Tensors", "Compute", "Quantization"]),
    module("Export", ["Tensors", "SystemIO", "Checkpoint", "Quantization"]),
    module(
      "Pipeline",
      [
        "Tensors", "SystemIO", "Collective", "Checkpoint", "ActivationCache", "Compute", "Quantization",
        "Decoder", "Tuning", "Calibration", "Solvers", "Export",
      ]),
    module(
      "Evaluation",
      ["Tensors", "Calibration", "Checkpoint", "ActivationCache", "Compute", "Decoder", "Export"]),
    module(
      "Daemon",
      [
        "ActivationCache", "Calibration", "CCrypto", "Checkpoint", "CLMDB", "Collective", "Compute",
        "Decoder",
        "Devices", "Export",
        "Pipeline", "SystemIO", "Tensors",
        .product(name: "Yams", package: "Yams"),
      ]),
    module(
      "ProgramSupport",
      ["SystemIO", .product(name: "ArgumentParser", package: "swift-argument-parser")]),
    .executableTarget(
      name: "quanteased",
      dependencies: [
        "ActivationCache", "Calibration", "Checkpoint", "Collective", "Compute", "ComputeOpenBLAS", "Daemon",
        "Decoder", "Devices",
        "Export", "Pipeline", "ProgramSupport", "Solvers", "SystemIO",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: strict),
    .executableTarget(
      name: "quantease",
      dependencies: [
        "ActivationCache", "Calibration", "Checkpoint", "Collective", "Compute", "ComputeOpenBLAS", "Daemon",
        "Decoder", "Devices",
        "Evaluation", "Export", "Pipeline", "ProgramSupport", "Quantization", "Solvers", "SystemIO",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: strict),
    .target(
      name: "CUDAOnCPU", dependencies: ["CCUDA", "COpenBLAS"], path: "Tests/CUDAOnCPU"),
    .target(
      name: "TestSupport",
      dependencies: [
        "CCUDA", "CUDAOnCPU", "Collective", "SystemIO", "Tensors", "Compute", "ComputeCUDA", "Quantization",
      ],
      path: "Tests/TestSupport",
      swiftSettings: strict),
    tests("CollectiveTests", ["Collective", "TestSupport"]),
    tests("SystemIOTests", ["SystemIO", "TestSupport", systemPackage]),
    tests("CheckpointTests", ["Checkpoint", "SystemIO", "Tensors", "TestSupport", systemPackage]),
    tests("ActivationCacheTests", ["ActivationCache", "Tensors"]),
    tests(
      "ComputeTests",
      [
        "CCUDA", "CUDAOnCPU", "ComputeCUDA", "ComputeOpenBLAS", "Compute", "Quantization", "Tensors",
        "TestSupport",
      ]),
    tests("ExportTests", ["Export", "Checkpoint", "Quantization", "SystemIO", "Tensors", "TestSupport"]),
    tests(
      "DecoderTests",
      [
        "Decoder", "Calibration", "Checkpoint", "Compute", "ComputeOpenBLAS", "Tensors",
        "TestSupport",
      ]),
    tests(
      "TuningTests",
      [
        "Tuning", "Checkpoint", "Compute", "ComputeOpenBLAS", "Decoder", "Tensors", "TestSupport",
      ]),
    tests(
      "CalibrationTests", ["Calibration", "Checkpoint", "SystemIO", "Tensors", "TestSupport"]),
    tests(
      "SolversTests",
      [
        "Solvers", "Calibration", "Checkpoint", "Compute", "ComputeOpenBLAS", "Quantization",
        "Tensors", "TestSupport",
      ]),
    tests(
      "PipelineTests",
      [
        "Pipeline", "ActivationCache", "Calibration", "Checkpoint", "Collective", "Compute",
        "ComputeOpenBLAS",
        "Decoder", "Evaluation", "Export", "Quantization", "Solvers", "SystemIO", "Tensors", "TestSupport",
      ]),
    tests(
      "DaemonTests",
      [
        "Calibration", "CLMDB", "ComputeOpenBLAS", "Daemon", "Export", "Pipeline", "SystemIO", "TestSupport",
        systemPackage,
      ]),
    tests(
      "Integration",
      [
        "quantease", "quanteased", "Checkpoint", "ComputeOpenBLAS", "Daemon", "Export", "SystemIO", "Tensors",
        "TestSupport",
      ]),
  ],
  cxxLanguageStandard: .cxx17
)
