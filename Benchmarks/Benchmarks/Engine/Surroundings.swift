import Foundation

/// What the benchmarks learn from their surroundings.
enum Surroundings {
  /// The processors that this process may use: `taskset` reduces them.
  static var threads: Int { ProcessInfo.processInfo.activeProcessorCount }

  static var temporaryDirectory: String { variable("TMPDIR") ?? "/tmp" }

  /// Four linears of a real model with their Gram matrices, which lie outside the repository; nil where they
  /// are not at hand. `QUANTEASE_SHARED` names their folder, and otherwise it is `shared` beside the
  /// repository.
  static var referenceLayers: String? {
    let repository = URL(filePath: #filePath).appending(path: "../../../..").standardizedFileURL
    let folder = variable("QUANTEASE_SHARED") ?? repository.appending(path: "../shared").path
    let file = folder + "/reference/layers.safetensors"
    return FileManager.default.fileExists(atPath: file) ? file : nil
  }

  private static func variable(_ name: String) -> String? {
    ProcessInfo.processInfo.environment[name].flatMap { $0.isEmpty ? nil : $0 }
  }
}
