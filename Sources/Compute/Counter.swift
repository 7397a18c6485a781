import Synchronization

/// A count that several threads add to.
public final class Counter: Sendable {
  private let total = Atomic(0)

  public init() {}

  public var value: Int { total.load(ordering: .relaxed) }

  public func add(_ count: Int) {
    total.add(count, ordering: .relaxed)
  }
}
