import Synchronization

/// A count that several threads add to.
final class Counter: Sendable {
  private let total = Atomic(0)

  var value: Int { total.load(ordering: .relaxed) }

  func add(_ count: Int) {
    total.add(count, ordering: .relaxed)
  }
}
