import Dispatch
import Glibc
import SystemPackage

/// Signals as something to read: they interrupt nothing.
///
/// Not by a signal mask: libraries start threads before a program's first line, and those would go on taking the
/// signals.
public final class SignalQueue {
  private let reading: Descriptor
  private let sources: [any DispatchSourceSignal]

  /// - Parameter signals: what to take; their default actions are off from now on, in this process alone
  public init(_ signals: [Int32]) throws(FileError) {
    let ends = try FileError.attempt(.open, "signal queue") { () throws(Errno) in
      let ends = try SystemCall.pipe()
      try SystemCall.makeNonBlocking(ends.reading)
      return ends
    }
    reading = Descriptor(owning: ends.reading)
    let writing = SharedDescriptor(ends.writing)
    let queue = DispatchQueue(label: "signals")
    sources = signals.map { number in
      signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number, queue: queue)
      source.setEventHandler {
        // A full pipe holds thousands of signals that nobody has looked at.
        _ = try? SystemCall.writeOnce(writing.number, [UInt8(truncatingIfNeeded: number)])
      }
      source.resume()
      return source
    }
  }

  deinit { for source in sources { source.cancel() } }

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
}

/// A descriptor that closures share.
private final class SharedDescriptor: Sendable {
  private let descriptor: Descriptor

  init(_ number: Int32) { descriptor = Descriptor(owning: number) }

  var number: Int32 { descriptor.number }
}
