/// What a run tells about its progress.
public enum ProgressEvent: Sendable {
  /// A new step has begun, in words.
  case step(String)
  /// Something that should not have been, and was made good.
  case warning(String)
  /// A linear is quantized.
  case linear(LinearProgress)
  /// A layer is run once more that an earlier run had quantized, since nothing holds its states any more. New work begins
  /// at the layer `until`; both count from 0.
  case catchingUp(layer: Int, until: Int)
  /// The work has gone on by a batch; there is nothing to show.
  case advanced
}

public struct LinearProgress: Sendable {
  /// The module's full name.
  public let name: String
  public let layer: Int
  public let layerCount: Int
  public let relativeError: Double
  public let linearsDone: Int
  public let linearCount: Int
  /// Those of `linearsDone` that an earlier run had quantized.
  public let linearsResumed: Int
  /// Since this run began with what no earlier one had done.
  public let elapsed: Duration

  /// Time left at the pace so far.
  public var remaining: Duration {
    let sinceStart = linearsDone - linearsResumed
    return sinceStart > 0 ? elapsed * (Double(linearCount - linearsDone) / Double(sinceStart)) : .zero
  }
}

/// Seconds by phase of a run.
struct PhaseTimes {
  enum Phase: String, CaseIterable {
    case embedding
    case forward
    case gram
    case solver
    case cache
    case export
    case loading
    /// Making messages of a batch's states for other ranks, and matrices of theirs.
    case exchange
    /// For what other ranks send of states and Gram matrices.
    case waiting
  }

  private(set) var seconds: [Phase: Double] = [:]

  mutating func measure<Result>(_ phase: Phase, _ body: () throws -> Result) rethrows -> Result {
    let start = ContinuousClock.now
    defer { seconds[phase, default: 0] += (ContinuousClock.now - start).seconds }
    return try body()
  }

  var byName: [String: Double] {
    Dictionary(uniqueKeysWithValues: seconds.map { ($0.key.rawValue, $0.value) })
  }
}

extension Duration {
  public var seconds: Double {
    Double(components.seconds) + Double(components.attoseconds) * 1e-18
  }
}
