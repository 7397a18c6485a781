import Benchmark
import ComputeOpenBLAS

/// What one run of a benchmark gets done.
enum Work {
  /// Floating-point operations.
  case operations(Double)
  /// The operations of one dense pass of coordinate descent over a linear, by which solvers are measured.
  case densePass(outFeatures: Int, inFeatures: Int)
  /// Bytes that come through.
  case bytes(Int)

  var amount: Double {
    switch self {
    case .operations(let count): count
    case .densePass(let outFeatures, let inFeatures):
      2 * Double(outFeatures) * Double(inFeatures) * Double(inFeatures)
    case .bytes(let count): Double(count)
    }
  }

  /// How often short work is repeated within one measurement: over a third of a second of products, threads that wake up
  /// and clocks that rise hardly count. A kernel may leave two threads that have just woken on one processor, beside an idle
  /// one, for fifty milliseconds.
  var repetitions: Int {
    switch self {
    case .operations(let count): max(1, Int((8e10 / count).rounded(.up)))
    case .densePass, .bytes: 1
    }
  }
}

/// A benchmark with its inputs at hand.
struct Trial {
  /// Puts the inputs back before every measurement, outside of it.
  var reset: () throws -> Void = {}
  /// What is measured.
  let run: () throws -> Void
  /// Bytes stored of a thousand bytes so far, where the work stores any.
  var storedPerThousand: (() -> Int)?
}

/// The figures that `tools/benchmark-table.py` reads: whole numbers, as the package keeps no others.
enum Metric {
  static let microseconds = BenchmarkMetric.custom("microseconds", useScalingFactor: false)
  /// Million operations of `cblas_sgemm` a second, right before the measurement.
  static let yardstick = BenchmarkMetric.custom(
    "sgemm megaflops", polarity: .prefersLarger, useScalingFactor: false)
  static let kilooperations = BenchmarkMetric.custom("kilooperations", useScalingFactor: false)
  static let densePass = BenchmarkMetric.custom("dense pass kilooperations", useScalingFactor: false)
  static let kilobytes = BenchmarkMetric.custom("kilobytes", useScalingFactor: false)
  /// The rate of operations as millionths of the yardstick's.
  static let share = BenchmarkMetric.custom(
    "millionths of sgemm", polarity: .prefersLarger, useScalingFactor: false)
  static let stored = BenchmarkMetric.custom("stored per thousand", useScalingFactor: false)

  static let all = [microseconds, yardstick, kilooperations, densePass, kilobytes, share, stored]
}

/// Adds benchmarks that measure the yardstick and their own work in turn.
struct Suite {
  let backend: OpenBLASBackend

  var threads: Int { backend.threads }

  init(threads: Int) {
    backend = OpenBLASBackend(threads: threads, bfloat16: .best)
  }

  /// Adds a benchmark.
  /// - Parameters:
  ///   - name: its group, a dot, and what it is in that group; it becomes part of file names
  ///   - iterations: measurements, of which the median counts
  ///   - isWarmedUp: whether a run that does not count comes first
  ///   - prepare: makes the inputs; not called before the benchmark runs
  func add(
    _ name: String, _ work: Work, iterations: Int = 9, isWarmedUp: Bool = true,
    _ prepare: @escaping () throws -> Trial
  ) {
    let threads = threads
    let inputs = Deferred { (Yardstick(threads: threads), try prepare()) }
    let configuration = Benchmark.Configuration(
      metrics: [.wallClock] + Metric.all,
      units: Dictionary(uniqueKeysWithValues: Metric.all.map { ($0, .count) }),
      warmupIterations: isWarmedUp ? 1 : 0, maxDuration: .seconds(3_600), maxIterations: iterations)
    Benchmark(
      name, configuration: configuration,
      closure: { (benchmark: Benchmark) throws -> Void in
        let (yardstick, trial) = try inputs.value()
        try trial.reset()
        let rate = yardstick.rate()
        benchmark.startMeasurement()
        let seconds = try Stopwatch.seconds {
          for _ in 0..<work.repetitions { try trial.run() }
        }
        benchmark.stopMeasurement()
        report(work, seconds: seconds / Double(work.repetitions), yardstick: rate, to: benchmark)
        if let stored = trial.storedPerThousand?() { benchmark.measurement(Metric.stored, stored) }
      },
      teardown: { inputs.discard() })
  }

  private func report(_ work: Work, seconds: Double, yardstick: Double, to benchmark: Benchmark) {
    benchmark.measurement(Metric.microseconds, Int(seconds * 1e6))
    benchmark.measurement(Metric.yardstick, Int(yardstick / 1e6))
    let amount =
      switch work {
      case .operations: Metric.kilooperations
      case .densePass: Metric.densePass
      case .bytes: Metric.kilobytes
      }
    benchmark.measurement(amount, Int(work.amount / 1e3))
    if amount != Metric.kilobytes {
      benchmark.measurement(Metric.share, Int(work.amount / seconds / yardstick * 1e6))
    }
  }
}

/// A value that is made when it is first asked for: benchmarks are also registered to be listed.
final class Deferred<Value> {
  private let make: () throws -> Value
  private var made: Value?

  init(_ make: @escaping () throws -> Value) {
    self.make = make
  }

  func value() throws -> Value {
    if let made { return made }
    let value = try make()
    made = value
    return value
  }

  func discard() {
    made = nil
  }
}
