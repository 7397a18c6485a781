// swift-tools-version: 6.2
import PackageDescription

// A package of its own, so that building and testing the engine needs nothing of what measures it.
let package = Package(
  name: "quantease-benchmarks",
  dependencies: [
    .package(name: "quantease", path: ".."),
    // Without its traits, the interposers that count allocations: they slow down what is measured here.
    .package(url: "https://github.com/ordo-one/benchmark", from: "1.38.1", traits: []),
  ],
  targets: [
    .executableTarget(
      name: "Engine",
      dependencies: [
        .product(name: "QuantEaseEngine", package: "quantease"),
        .product(name: "COpenBLAS", package: "quantease"),
        .product(name: "Benchmark", package: "benchmark"),
      ],
      path: "Benchmarks/Engine",
      swiftSettings: [
        .swiftLanguageMode(.v6),
        .strictMemorySafety(),
        .treatAllWarnings(as: .error),
      ],
      plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")])
  ]
)
