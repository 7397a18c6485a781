import Glibc
import SystemPackage

/// Where the signal handler writes. A handler can reach nothing but a global.
private nonisolated(unsafe) var signalPipe: Int32 = -1

/// Signals as something to read: they interrupt nothing. A process has one queue.
///
/// A handler writes each into a pipe. To block them and read them from a descriptor would lose some: libraries start
/// threads before a program's first line, and those would go on taking the signals.
public final class SignalQueue: Sendable {
  private let reading: Descriptor
  private let writing: Descriptor
  private let signals: [Int32]

  /// - Parameter signals: what to take; their default actions are off while there is a queue, in this process alone
  public init(_ signals: [Int32]) throws(FileError) {
    let ends = try FileError.attempt(.open, "signal queue") { () throws(Errno) in
      let ends = try SystemCall.pipe()
      // A handler must not wait: a full pipe holds thousands of signals that nobody has looked at.
      for end in [ends.reading, ends.writing] { try SystemCall.makeNonBlocking(end) }
      return ends
    }
    reading = Descriptor(owning: ends.reading)
    writing = Descriptor(owning: ends.writing)
    self.signals = signals
    unsafe signalPipe = ends.writing
    for number in signals {
      try FileError.attempt(.open, "signal queue") { () throws(Errno) in
        try SystemCall.handle(number) { number in
          let failure = errno
          var byte = UInt8(truncatingIfNeeded: number)
          // A signal that is not told of is one that nobody obeys. A pipe that is full tells of others.
          var tries = 3
          while tries > 0, unsafe write(signalPipe, &byte, 1) != 1, errno != EAGAIN { tries -= 1 }
          errno = failure
        }
      }
    }
  }

  deinit {
    // Before the pipe is closed: its number may soon be another file's.
    for number in signals { SystemCall.handleByDefault(number) }
    unsafe signalPipe = -1
  }

  public var descriptor: Int32 { reading.number }

  /// The next signal that has arrived; nil if none has.
  public func next() throws(FileError) -> Int32? {
    var byte: [UInt8] = [0]
    do { return try SystemCall.read(reading, into: &byte) == 1 ? Int32(byte[0]) : nil } catch .wouldBlock {
      return nil
    } catch {
      throw FileError(path: "signal queue", operation: .read, errno: error)
    }
  }

  /// Waits for the next signal.
  public func wait() throws -> Int32 {
    while true {
      if let number = try next() { return number }
      _ = try DescriptorWaiting.readable(among: [descriptor], for: .seconds(3_600))
    }
  }
}
