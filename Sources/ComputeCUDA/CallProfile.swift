import Glibc
import Synchronization

/// Where a GPU's time goes, call by call: with `QUANTEASE_CUDA_PROFILE=1` in the environment every call is waited for, and a
/// table is printed on standard error when the process ends. Such a run is slower, as nothing overlaps.
final class CallProfile: Sendable {
  private struct Entry {
    var calls = 0
    var seconds = 0.0
    var operations = 0.0
  }

  private let entries = Mutex<[String: Entry]>([:])

  static let shared: CallProfile? = {
    guard environment("QUANTEASE_CUDA_PROFILE") == "1" else { return nil }
    atexit { CallProfile.shared?.print() }
    return CallProfile()
  }()

  func add(_ name: String, seconds: Double, operations: Double) {
    entries.withLock { entries in
      entries[name, default: Entry()].calls += 1
      entries[name, default: Entry()].seconds += seconds
      entries[name, default: Entry()].operations += operations
    }
  }

  func print() {
    let entries = entries.withLock { $0.sorted { $0.value.seconds > $1.value.seconds } }
    var text = "GPU calls: seconds, calls, and TFLOP/s of products\n"
    for (name, entry) in entries {
      let rate = entry.operations > 0 ? "  \(Int(entry.operations / entry.seconds / 1e12))" : ""
      text += "\((entry.seconds * 1e3).rounded() / 1e3)  \(entry.calls)  \(name)\(rate)\n"
    }
    _ = unsafe text.withCString { unsafe Glibc.write(STDERR_FILENO, $0, strlen($0)) }
  }
}
