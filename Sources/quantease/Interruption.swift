import Foundation
import SystemIO

/// Ends the process in good order when a person or the system asks for it by a signal, for as long as it is kept.
final class Interruption: Sendable {
  /// - Parameters:
  ///   - message: what is said then
  ///   - cleanup: called on a thread of its own before the process ends; false if the work is done already,
  ///     and the process is to go on to its end
  init(
    saying message: String = "interrupted; nothing was written", _ cleanup: @escaping @Sendable () -> Bool
  ) throws {
    let signals = try SignalQueue([SIGINT, SIGTERM])
    Thread.detachNewThread { [weak self] in
      guard let number = try? signals.wait(), self != nil else { return }
      guard cleanup() else { return }
      Console.note("\n\(message)")
      // Not `exit`: that has the libraries take their memory from under the threads that still work.
      _exit(128 + number)
    }
  }
}
