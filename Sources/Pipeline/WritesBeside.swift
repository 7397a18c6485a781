import Dispatch
import Synchronization

/// Writes of what is done beside the work on what comes next, one after the other.
///
/// Whoever has another one is held up until the one before is done, so that no more than two results stand in memory.
/// After the error of a write that was done beside nothing more is written, and every later call throws it.
final class WritesBeside: Sendable {
  typealias Write = @Sendable () throws -> Void

  private let queue = DispatchQueue(label: "quantease.writes")
  private let room = DispatchSemaphore(value: 1)
  private let failure = Mutex<(any Error)?>(nil)
  let isBeside: Bool

  /// - Parameter isBeside: false to have every write done before ``add(_:)`` returns: where the processor that writes is
  ///   the one that computes, nothing is gained by a second result in memory
  init(isBeside: Bool) { self.isBeside = isBeside }

  func add(_ write: @escaping Write) throws {
    guard isBeside else { return try write() }
    room.wait()
    queue.async { [self] in
      defer { room.signal() }
      guard failure.withLock({ $0 == nil }) else { return }
      do { try write() } catch { failure.withLock { $0 = error } }
    }
    try check()
  }

  /// Returns when all is written.
  func finish() throws {
    queue.sync {}
    try check()
  }

  private func check() throws {
    if let error = failure.withLock({ $0 }) { throw error }
  }
}
