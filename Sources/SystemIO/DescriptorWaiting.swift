import Glibc
import Synchronization
import SystemPackage

/// Waits for descriptors.
public enum DescriptorWaiting {
  public struct Interest: Sendable, Equatable {
    public enum Direction: Sendable { case reading, writing }

    public let descriptor: Int32
    public let direction: Direction

    public init(_ descriptor: Int32, _ direction: Direction) {
      self.descriptor = descriptor
      self.direction = direction
    }
  }

  /// Waits until one of the descriptors can be read or written without waiting, or its other side is gone.
  /// - Parameter seconds: how long at most; nil is for ever. A signal may end the wait earlier.
  /// - Returns: for each descriptor whether it is ready
  public static func wait(for interests: [Interest], seconds: Double?) throws(SocketError) -> [Bool] {
    var descriptors = interests.map { interest in
      pollfd(
        fd: interest.descriptor, events: Int16(interest.direction == .reading ? POLLIN : POLLOUT), revents: 0)
    }
    // Upwards: rounded down, the last millisecond would be spent spinning.
    let milliseconds = seconds.map { Int32(max(0, min($0 * 1000, 1e9)).rounded(.up)) } ?? -1
    try SocketError.attempt(.wait, "connections") { () throws(Errno) in
      try SystemCall.poll(&descriptors, milliseconds: milliseconds)
    }
    return descriptors.map { $0.revents != 0 }
  }

  /// Waits until one of the descriptors can be read, or until the time is over.
  /// - Returns: those that can be read, or whose other side is gone
  public static func readable(among descriptors: [Int32], for time: Duration) throws(SocketError) -> Set<
    Int32
  > {
    let (seconds, attoseconds) = time.components
    let isReady = try wait(
      for: descriptors.map { Interest($0, .reading) }, seconds: Double(seconds) + Double(attoseconds) * 1e-18)
    return Set(zip(descriptors, isReady).filter(\.1).map(\.0))
  }
}

/// Lets one thread wake another one that waits in ``DescriptorWaiting``.
public final class WakeEvent: Sendable {
  private let reading: Descriptor
  private let writing: Mutex<Descriptor?>

  public init() throws(SocketError) {
    let ends = try SocketError.attempt(.open, "waking a thread") { () throws(Errno) in
      try SystemCall.pipe()
    }
    reading = Descriptor(owning: ends.reading)
    writing = Mutex(Descriptor(owning: ends.writing))
  }

  /// Readable once ``signal()`` was called, for good.
  public var descriptor: Int32 { reading.number }

  public func signal() {
    // The other end is told of a pipe that is closed, and nothing keeps one from being closed, as a write may be.
    writing.withLock { $0 = nil }
  }
}

/// Time that no change of the date moves.
public enum MonotonicClock {
  /// Microseconds since an arbitrary start, the one of CLOCK_MONOTONIC.
  public static func microseconds() -> Int { SystemCall.monotonicMicroseconds() }

  /// Seconds since the same start.
  public static func seconds() -> Double { Double(microseconds()) / 1e6 }
}
