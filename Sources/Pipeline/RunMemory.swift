import Compute
import Export
import SystemIO

/// What a run has held in memory at most, phase by phase.
final class RunMemory {
  private let sampler = PeakMemorySampler()
  private let device: (any DeviceMemoryGauge)?
  private var peaks: [MemoryPlan.Phase: Int] = [:]
  private var devicePeaks: [MemoryPlan.Phase: Int] = [:]
  private var mostPinned = 0

  /// Begins.
  init(_ backend: any ComputeBackend) {
    device = backend.deviceMemory
    // What a trial took is no phase's.
    _ = device?.lap()
  }

  /// To be called when a phase is over.
  func lap(_ phase: MemoryPlan.Phase) {
    let pinned = device?.pinnedBytes ?? 0
    peaks[phase, default: 0].raise(to: sampler.lap() + pinned)
    mostPinned.raise(to: pinned)
    if let device { devicePeaks[phase, default: 0].raise(to: device.lap()) }
  }

  /// Ends, and puts what it has come to beside what was planned.
  func report(in totals: inout Report.Totals, _ plan: MemoryPlan) {
    func report(_ planned: [MemoryPlan.Phase: Int], _ peaks: [MemoryPlan.Phase: Int]) -> [String: Report
      .Memory]
    {
      Dictionary(
        uniqueKeysWithValues: planned.map { phase, bytes in
          (phase.rawValue, Report.Memory(planned: bytes, peak: peaks[phase] ?? 0))
        })
    }
    totals.peakMemoryBytes = sampler.stop() + mostPinned
    totals.memoryBytesPerPhase = report(plan.bytesPerPhase, peaks)
    totals.deviceMemoryBytesPerPhase = plan.deviceBytesPerPhase.map { report($0, devicePeaks) }
  }
}

extension Int {
  fileprivate mutating func raise(to other: Int) { self = Swift.max(self, other) }
}
