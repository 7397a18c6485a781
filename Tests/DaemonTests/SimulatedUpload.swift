import Glibc
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// Somebody who uploads one checkpoint in steps, with pauses between them.
///
/// The pauses keep to what an uploader without a marker has to keep to: once every shard and config.json are
/// there, the rest follows within the settle time.
struct SimulatedUpload {
  enum Manner: CaseIterable {
    /// Files grow under their final names.
    case plain
    /// Files get their final names at the end.
    case partialNames
    /// The directory is filled elsewhere and moved in.
    case renamedIn
    /// As before, but a shard comes after.
    case renamedInTooEarly
    case marker
    /// The manifest comes first.
    case manifest
  }

  enum Step {
    case append(path: String, bytes: [UInt8])
    case rename(from: String, to: String)
    case pause(Duration)
  }

  let name: String
  let manner: Manner
  /// Every file with its bytes.
  let files: [String: [UInt8]]
  private let steps: [Step]
  /// The number of steps after which the checkpoint is complete.
  private let completeAfter: Int
  private var done = 0

  var isDone: Bool { done == steps.count }
  var isComplete: Bool { done >= completeAfter }

  /// Does the next step; paths are below `incoming/`.
  /// - Returns: How long the uploader then pauses.
  mutating func advance(_ fixture: DropFolderFixture) throws -> Duration {
    defer { done += 1 }
    switch steps[done] {
    case .append(let path, let bytes): try fixture.append(bytes, to: path)
    case .rename(let source, let destination):
      // An uploader does not wait for the disk.
      unsafe #expect(rename(fixture.incoming(source), fixture.incoming(destination)) == 0)
    case .pause(let time): return time
    }
    return .zero
  }

  init(name: String, number: Int, using generator: inout SeededGenerator) {
    self.name = name
    manner = Manner.allCases[number % Manner.allCases.count]
    var files = Self.files(using: &generator)
    let needed = Set(files.keys.filter { $0.hasSuffix(".safetensors") } + ["config.json"])
    if manner == .manifest {
      let lines = files.sorted { $0.key < $1.key }.map { path, bytes in
        "\(DropFolderFixture.digest(bytes))  \(path)\n"
      }
      files["SHA256SUMS"] = Array(lines.joined().utf8)
    }
    self.files = files
    var order = files.keys.sorted().shuffled(using: &generator)
    if let place = order.firstIndex(of: "SHA256SUMS") {
      order.remove(at: place)
      order.insert("SHA256SUMS", at: 0)
    }
    // The shard that is delayed comes last, and the rest of what is needed before the move.
    if manner == .renamedInTooEarly, let late = order.firstIndex(where: { $0.hasSuffix(".safetensors") }) {
      order.append(order.remove(at: late))
    }
    var plan = Plan(name: name, manner: manner, needed: needed)
    for path in order {
      plan.add(path, files[path] ?? [], isLast: path == order.last, using: &generator)
    }
    completeAfter = plan.finish(using: &generator)
    steps = plan.steps
  }

  private static func files(using generator: inout SeededGenerator) -> [String: [UInt8]] {
    var files = ["config.json": Array(#"{"model_type":"llama"}"#.utf8)]
    let count = Int.random(in: 1...4, using: &generator)
    if count == 1 {
      files["model.safetensors"] = DropFolderFixture.shard(elements: 20)
    } else {
      let shards = (1...count).map { "model-0000\($0)-of-0000\(count).safetensors" }
      for shard in shards {
        let elements = Int.random(in: 0...40, using: &generator)
        files[shard] = DropFolderFixture.shard(elements: elements)
      }
      if Bool.random(using: &generator) {
        files["model.safetensors.index.json"] = Array(DropFolderFixture.index(shards).utf8)
      }
    }
    if Bool.random(using: &generator) { files["tokenizer.json"] = Array(#"{"model":{}}"#.utf8) }
    return files
  }
}

/// The steps of an upload as they are put together.
private struct Plan {
  let name: String
  let manner: SimulatedUpload.Manner
  /// The files without which nobody takes the checkpoint for complete.
  var needed: Set<String>
  private(set) var steps: [SimulatedUpload.Step] = []

  init(name: String, manner: SimulatedUpload.Manner, needed: Set<String>) {
    self.name = name
    self.manner = manner
    self.needed = needed
  }

  mutating func add(_ path: String, _ bytes: [UInt8], isLast: Bool, using generator: inout SeededGenerator) {
    let isStaged = manner == .renamedIn || manner == .renamedInTooEarly
    if manner == .renamedInTooEarly, isLast { moveIn() }
    let directory = isStaged && !(manner == .renamedInTooEarly && isLast) ? ".\(name)" : name
    let suffix =
      manner == .partialNames ? [".part", ".incomplete", ".tmp"].randomElement(using: &generator) : nil
    let written = "\(directory)/\(path)\(suffix ?? "")"
    var start = 0
    while start < bytes.count {
      let isWhole = path == "SHA256SUMS" || Int.random(in: 0..<3, using: &generator) == 0
      let end = isWhole ? bytes.count : min(bytes.count, start + Int.random(in: 1...120, using: &generator))
      steps.append(.append(path: written, bytes: Array(bytes[start..<end])))
      start = end
      if start < bytes.count { pause(using: &generator) }
    }
    if suffix != nil {
      pause(using: &generator)
      steps.append(.rename(from: written, to: "\(directory)/\(path)"))
    }
    needed.remove(path)
    if !isLast { pause(using: &generator) }
  }

  /// Ends the plan.
  /// - Returns: The number of steps after which the checkpoint is complete.
  mutating func finish(using generator: inout SeededGenerator) -> Int {
    if manner == .renamedIn { moveIn() }
    let complete = steps.count
    if manner == .marker {
      pause(using: &generator)
      steps.append(.append(path: "\(name)/.ready", bytes: []))
    }
    return complete
  }

  private mutating func moveIn() { steps.append(.rename(from: ".\(name)", to: name)) }

  private mutating func pause(using generator: inout SeededGenerator) {
    let isGuarded = !needed.isEmpty || manner == .manifest
    let isLong = isGuarded && Int.random(in: 0..<8, using: &generator) == 0
    let limit = isLong ? 40_000 : 3_000
    steps.append(.pause(.milliseconds(Int.random(in: 0..<limit, using: &generator))))
  }
}
