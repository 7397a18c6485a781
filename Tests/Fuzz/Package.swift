// swift-tools-version: 6.2
import PackageDescription

// A package of its own: it is built with what a fuzzer needs, and the engine is built without.
let package = Package(
  name: "quantease-fuzz",
  dependencies: [
    .package(name: "quantease", path: "../..")
  ],
  targets: [
    .executableTarget(
      name: "Fuzz",
      dependencies: [.product(name: "CheckpointReading", package: "quantease")],
      path: "Sources",
      swiftSettings: [
        .swiftLanguageMode(.v6),
        .strictMemorySafety(),
        .treatAllWarnings(as: .error),
        .unsafeFlags(["-parse-as-library"]),
      ])
  ]
)
