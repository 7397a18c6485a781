import ComputeOpenBLAS
import Daemon
import Export
import Foundation
import Pipeline
import SystemIO

/// What a person or a log sees of a run: results on standard output, everything else on standard error.
enum Console {
  /// - Throws: ``StandardOutputError``
  static func line(_ text: String) throws { try StandardOutput.write(text + "\n") }

  static func note(_ text: String) { StandardError.write(Array((text + "\n").utf8)) }

  static func error(_ text: String) {
    note("quantease: error: \(text)")
  }

  static var isTerminal: Bool { StandardError.isTerminal }

  /// `value` as pretty JSON with keys in snake_case and in order.
  static func json(_ value: some Encodable) throws {
    try StandardOutput.write(JSONEncoder.ofReports.lines(value))
  }

  /// A share in percent with three significant digits.
  static func percent(_ share: Double) -> String {
    String(format: "%.3g %%", share * 100)
  }

  /// To be called before anything has begun: see ``KernelSet/useBest(unless:)``.
  static func useBestKernels() {
    KernelSet.useBest()
    if let warning = KernelSet.warning { note("quantease: warning: \(warning)") }
  }

  static func bytes(_ count: Int) -> String {
    ByteCountFormatStyle(style: .decimal).format(Int64(count))
  }

  static func operations(_ count: Double) -> String {
    let units = [(1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")]
    let (size, name) = units.first { count >= $0.0 } ?? (1e9, "GFLOP")
    return String(format: "%.1f ", count / size) + name
  }

  static func time(_ seconds: Double) -> String {
    let whole = Int(seconds.rounded())
    return whole < 3_600
      ? String(format: "%d:%02d", whole / 60, whole % 60)
      : String(format: "%d:%02d:%02d", whole / 3_600, whole / 60 % 60, whole % 60)
  }
}

/// Shows progress as one line that is written anew on a terminal, as plain lines elsewhere.
final class ProgressLine {
  private let isTerminal = Console.isTerminal
  /// Of the model that a worker has planned.
  private var layerCount = 0
  private var isLineOpen = false

  func show(_ event: ProgressEvent) {
    switch event {
    case .step(let text):
      close()
      Console.note(text)
    case .warning(let text):
      close()
      Console.note("quantease: warning: \(text)")
    case .catchingUp(let layer, let until):
      // Without a daemon nothing is gone on with but what this very run has begun.
      show(layer: layer + 1, of: until + 1)
    case .advanced: break
    case .linear(let progress):
      show(
        progress.name, layer: progress.layer, of: progress.layerCount, error: progress.relativeError,
        secondsLeft: progress.remaining.seconds)
    }
  }

  /// Shows what a worker tells.
  func show(telling event: WorkerEvent) {
    switch event {
    case .step(let text): show(ProgressEvent.step(text))
    case .warning(let text): show(ProgressEvent.warning(text))
    case .planned(let plan): layerCount = plan.layerCount
    case .resumed(let linears):
      show(.step("\(linears.count) linears are done, by an earlier command"))
    case .linear(let linear, let secondsLeft):
      show(
        linear.name, layer: linear.layer, of: layerCount, error: linear.relativeError,
        secondsLeft: secondsLeft)
    case .catchingUp(let progress): show(layer: progress.layer + 1, of: progress.until + 1)
    case .identity, .reused, .submitted, .advanced, .finished, .failed: break
    }
  }

  private func show(_ linear: String, layer: Int, of count: Int, error: Double, secondsLeft: Double) {
    let place = "layer \(layer + 1)/\(count)"
    let (left, error) = (Console.time(secondsLeft), Console.percent(error))
    if isTerminal {
      rewrite("\(place)  \(linear)  error \(error)  \(left) left")
    } else {
      Console.note("\(place) linear=\(linear) error=\(error) left=\(left)")
    }
  }

  /// Shows a count of layers.
  func show(layer: Int, of count: Int) {
    if isTerminal {
      rewrite("layer \(layer)/\(count)")
    } else {
      Console.note("layer \(layer)/\(count)")
    }
  }

  /// Ends the line that is being rewritten.
  func close() {
    if isLineOpen { Console.note("") }
    isLineOpen = false
  }

  private func rewrite(_ text: String) {
    StandardError.write(Array("\r\u{1B}[K\(text)".utf8))
    isLineOpen = true
  }
}
