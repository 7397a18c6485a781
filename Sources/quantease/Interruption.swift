import Dispatch
import Foundation

/// Ends the process in good order when a person or the system asks for it by a signal.
final class Interruption {
  private let sources: [any DispatchSourceSignal]

  /// - Parameter cleanup: called on a thread of its own before the process ends
  init(_ cleanup: @escaping @Sendable () -> Void) {
    sources = [SIGINT, SIGTERM].map { number in
      signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
      source.setEventHandler {
        cleanup()
        Console.note("\ninterrupted; nothing was written")
        exit(128 + number)
      }
      source.resume()
      return source
    }
  }

  deinit {
    for source in sources { source.cancel() }
  }
}
