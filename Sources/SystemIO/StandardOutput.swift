import Glibc
import SystemPackage

/// What a program was asked for, as opposed to what it says about its work.
public enum StandardOutput {
  /// Writes all of `bytes`.
  /// - Throws: ``StandardOutputError``
  public static func write(_ bytes: [UInt8]) throws(StandardOutputError) {
    var rest = bytes[...]
    while !rest.isEmpty {
      do { rest = rest.dropFirst(try SystemCall.writeOnce(STDOUT_FILENO, rest)) } catch {
        throw StandardOutputError(errno: error)
      }
    }
  }

  public static func write(_ text: String) throws(StandardOutputError) { try write(Array(text.utf8)) }

  public static var isTerminal: Bool { SystemCall.isTerminal(STDOUT_FILENO) }

  /// Has a write that nobody reads be an error and not a signal: what a program does besides must not end with it.
  public static func ignoreBrokenPipes() { _ = signal(SIGPIPE, SIG_IGN) }
}

/// Standard output took not all that there was to say.
public struct StandardOutputError: Error, Equatable, Sendable, CustomStringConvertible {
  public let errno: Errno

  /// Whether its reader has seen enough, as `head` has.
  public var isReaderGone: Bool { errno == .brokenPipe }

  public var description: String { "cannot write to standard output: \(errno)" }
}
