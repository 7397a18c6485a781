import Synchronization
import SystemIO

/// Compares files with their manifests on one thread beside the poll loop, as that takes hours for hundreds of
/// gigabytes. An outcome holds for the files as they were stamped, and no longer.
final class ManifestVerifier: Sendable {
  /// What is to be compared.
  struct Task: Equatable, Sendable {
    struct File: Equatable, Sendable {
      let path: String
      let digest: String
      let stamp: FileStamp
    }

    let directory: String
    let files: [File]
  }

  enum Outcome: Equatable, Sendable {
    case verified
    /// The files whose bytes have another digest.
    case differs([String])
    case unreadable(String)
  }

  private let shared = Shared()

  deinit { shared.state.withLock { $0.jobs = [:] } }

  /// What came of a comparison; nil while it is under way. Asking with another task ends the one before.
  func outcome(of name: String, _ task: Task) -> Outcome? {
    shared.state.withLock { state in
      if let job = state.jobs[name], job.task == task { return job.outcome }
      state.lastTicket += 1
      state.jobs[name] = Job(task: task, ticket: state.lastTicket)
      state.queue.append(name)
      return nil
    } ?? startIfNeeded()
  }

  /// Ends the comparison, and forgets its outcome.
  func forget(_ name: String) {
    shared.state.withLock { _ = $0.jobs.removeValue(forKey: name) }
  }

  /// Where no thread is to be had now, the next scan tries again.
  private func startIfNeeded() -> Outcome? {
    let isNeeded = shared.state.withLock { state in
      defer { state.isRunning = state.isRunning || !state.queue.isEmpty }
      return !state.isRunning && !state.queue.isEmpty
    }
    if isNeeded, !BackgroundThread.start({ [shared] in shared.work() }) {
      shared.state.withLock { $0.isRunning = false }
    }
    return nil
  }

  private struct Job {
    let task: Task
    let ticket: Int
    var outcome: Outcome?
  }

  /// What the verifier and its thread share, so that the thread does not keep the verifier alive.
  private final class Shared: Sendable {
    struct State {
      var jobs: [String: Job] = [:]
      var queue: [String] = []
      var lastTicket = 0
      var isRunning = false
    }

    let state = Mutex(State())

    func work() {
      while let (name, job) = next() {
        let isCancelled = { self.state.withLock { $0.jobs[name]?.ticket != job.ticket } }
        guard let outcome = Self.compare(job.task, isCancelled) else { continue }
        state.withLock { state in
          if state.jobs[name]?.ticket == job.ticket { state.jobs[name]?.outcome = outcome }
        }
      }
    }

    private func next() -> (String, Job)? {
      state.withLock { state in
        while !state.queue.isEmpty {
          let name = state.queue.removeFirst()
          if let job = state.jobs[name], job.outcome == nil { return (name, job) }
        }
        state.isRunning = false
        return nil
      }
    }

    /// - Returns: Nil if nobody wants to know any more.
    private static func compare(_ task: Task, _ isCancelled: () -> Bool) -> Outcome? {
      var different: [String] = []
      for file in task.files {
        do {
          let digest = try SHA256Digest.of(
            file: FileSystem.join(task.directory, file.path), symlinks: .refuse, isCancelled: isCancelled)
          if digest != file.digest { different.append(file.path) }
        } catch is CancellationError {
          return nil
        } catch {
          return .unreadable("\(error)")
        }
      }
      return different.isEmpty ? .verified : .differs(different)
    }
  }
}
