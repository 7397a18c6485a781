import Glibc
import SystemPackage

/// Signals as something to read: they interrupt nothing.
public final class SignalQueue: Sendable {
  private let queue: Descriptor

  /// To be made before the process has other threads: each would go on taking the signals.
  public init(_ signals: [Int32]) throws(FileError) {
    queue = try FileError.attempt(.open, "signal descriptor") { () throws(Errno) in
      try SystemCall.signalDescriptor(signals)
    }
  }

  public var descriptor: Int32 { queue.number }

  /// The next signal that has arrived; nil if none has.
  public func next() throws(FileError) -> Int32? {
    do { return try SystemCall.nextSignal(queue) } catch {
      throw FileError(path: "signal descriptor", operation: .read, errno: error)
    }
  }
}
