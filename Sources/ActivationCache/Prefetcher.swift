import Dispatch
import Synchronization
import Tensors

/// Decodes values in the background before they are asked for.
///
/// At most `limit` values are kept or under way; a further request drops the oldest. Nobody has to pick a
/// value up, and whoever changes what is stored under a key calls `forget`.
final class Prefetcher: Sendable {
  /// Decodes a value into the matrix that `room` returns for its shape (rows, columns).
  typealias Load =
    @Sendable (HiddenStatesKey, _ room: (Int, Int) -> Matrix) throws(CacheError) -> Matrix

  /// One value that is ready, under way, or waits its turn.
  private final class Ticket: Sendable {
    let key: HiddenStatesKey
    let isDone = DispatchSemaphore(value: 0)
    let isDropped = Atomic(false)
    let outcome = Mutex<Result<Matrix, CacheError>?>(nil)

    init(key: HiddenStatesKey) { self.key = key }
  }

  private struct State {
    var tickets: [Ticket] = []
    /// Matrices that have been handed back, so that batches of equal shapes need no new memory.
    var spares: [Matrix] = []
  }

  private let limit: Int
  private let load: Load
  private let state = Mutex(State())
  private let queue = DispatchQueue(label: "activation cache prefetch")

  init(limit: Int, load: @escaping Load) {
    self.limit = limit
    self.load = load
  }

  func request(_ key: HiddenStatesKey) {
    let ticket = Ticket(key: key)
    let isNew = state.withLock { state in
      if state.tickets.contains(where: { $0.key == key }) { return false }
      if state.tickets.count == limit {
        state.tickets.removeFirst().isDropped.store(true, ordering: .relaxed)
      }
      state.tickets.append(ticket)
      return true
    }
    guard isNew else { return }
    queue.async { [self] in
      defer { ticket.isDone.signal() }
      if ticket.isDropped.load(ordering: .relaxed) { return }
      let outcome = Result { () throws(CacheError) in try load(key, room) }
      ticket.outcome.withLock { $0 = outcome }
    }
  }

  /// Hands out the value of `key` if it was requested, waiting for it if it is under way; each value
  /// once. Nil where nothing was requested.
  func take(_ key: HiddenStatesKey) -> Result<Matrix, CacheError>? {
    let ticket = state.withLock { state in
      state.tickets.firstIndex { $0.key == key }.map { state.tickets.remove(at: $0) }
    }
    guard let ticket else { return nil }
    ticket.isDone.wait()
    return ticket.outcome.withLock { $0 }
  }

  /// Takes a matrix back whose content has been used.
  func recycle(_ matrix: Matrix) { state.withLock { $0.spares.append(matrix) } }

  /// A spare matrix of this shape, or a new one in the place of another spare: there are never more matrices than
  /// were once in use together.
  private func room(rows: Int, columns: Int) -> Matrix {
    let spare = state.withLock { state -> Matrix? in
      if let index = state.spares.firstIndex(where: { $0.rows == rows && $0.columns == columns }) {
        return state.spares.remove(at: index)
      }
      if !state.spares.isEmpty { state.spares.removeFirst() }
      return nil
    }
    return spare ?? Matrix(rows: rows, columns: columns)
  }

  /// Drops what was prefetched for the keys that satisfy the predicate.
  func forget(where isForgotten: (HiddenStatesKey) -> Bool) {
    state.withLock { state in
      for ticket in state.tickets where isForgotten(ticket.key) {
        ticket.isDropped.store(true, ordering: .relaxed)
      }
      state.tickets.removeAll { isForgotten($0.key) }
    }
  }
}
