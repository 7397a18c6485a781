import Checkpoint
import Compute
import Synchronization
import Tensors

/// A model's weights, the weights of some norms others than they are stored.
final class TunedNorms: WeightSource {
  private let base: any WeightSource
  private let values = Mutex<[String: [Float]]>([:])

  init(_ base: any WeightSource) { self.base = base }

  /// As they would be stored, by tensor.
  var stored: [String: [Float]] {
    get { values.withLock { $0 } }
    set { values.withLock { $0 = newValue } }
  }

  func shape(of tensor: String) -> [Int]? { base.shape(of: tensor) }

  func read(_ tensor: String, rows: Range<Int>, into panel: Matrix) throws {
    guard let own = values.withLock({ $0[tensor] }) else {
      return try base.read(tensor, rows: rows, into: panel)
    }
    let first = rows.lowerBound * panel.columns
    panel.withMutableSpan { span in
      for index in 0..<span.count { span[index] = own[first + index] }
    }
  }

  func willNeed(_ tensor: String) { base.willNeed(tensor) }

  func forget(_ tensor: String) { base.forget(tensor) }
}
