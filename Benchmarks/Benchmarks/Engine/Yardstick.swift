import COpenBLAS
import ComputeOpenBLAS
import Glibc
import Tensors

/// The rate of `cblas_sgemm` on this machine at this moment, with which everything else is compared.
///
/// Clocks and neighbours move every rate; a ratio to one that was measured a moment before moves much less.
final class Yardstick {
  private static let order = 2_048
  static let operations = 2 * Double(order) * Double(order) * Double(order)

  private let threads: Int
  private let a: Matrix
  private let b: Matrix
  private let c = Matrix(rows: order, columns: order)

  init(threads: Int) {
    var noise = Noise(seed: 1)
    self.threads = threads
    a = noise.matrix(rows: Self.order, columns: Self.order)
    b = noise.matrix(rows: Self.order, columns: Self.order)
    OpenBLASBackend.configure()
  }

  /// Times one product.
  /// - Returns: operations per second, a multiplication and an addition counting as two
  func rate() -> Double {
    let seconds = Stopwatch.seconds(of: multiply)
    // OpenBLAS's threads look for more work for 2²⁶ ticks, and longer where others yield to them, before they sleep: up to a
    // tenth of a second, in which they would take a processor from what is measured.
    usleep(250_000)
    return Self.operations / seconds
  }

  /// One product of 2,048³, which OpenBLAS shares among threads of its own.
  func multiply() {
    openblas_set_num_threads(Int32(threads))
    defer { openblas_set_num_threads(1) }
    let order = Int32(Self.order)
    unsafe cblas_sgemm(
      CblasRowMajor, CblasNoTrans, CblasNoTrans, order, order, order, 1, a.pointer, order, b.pointer, order,
      0, c.pointer, order)
  }
}

enum Stopwatch {
  /// The wall time of a call.
  static func seconds(of body: () throws -> Void) rethrows -> Double {
    let start = ContinuousClock.now
    try body()
    return (ContinuousClock.now - start) / .seconds(1)
  }
}
