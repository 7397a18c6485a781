import Glibc

/// The process's environment variables, or values that stand in for them in a test.
public struct ProcessEnvironment: Sendable {
  /// The value of a variable; nil if it is not set.
  public let value: @Sendable (String) -> String?
  /// Takes a variable away, so that programs started later do not see it. The process's own environment
  /// has no lock: call it before there are other threads.
  public let remove: @Sendable (String) -> Void

  public init(
    value: @escaping @Sendable (String) -> String?, remove: @escaping @Sendable (String) -> Void
  ) {
    self.value = value
    self.remove = remove
  }

  public static let process = ProcessEnvironment(
    value: { name in
      guard let value = unsafe getenv(name) else { return nil }
      return unsafe String(cString: value)
    },
    remove: { name in _ = unsafe unsetenv(name) })

  public static func processID() -> Int { Int(getpid()) }
}

/// Standard error, as a place for lines.
public enum StandardError {
  public static let descriptor = STDERR_FILENO

  public static var isTerminal: Bool { SystemCall.isTerminal(descriptor) }

  /// Whether it leads to a service, as the journal is one.
  public static var isSocket: Bool { SystemCall.isSocket(descriptor) }

  /// Writes a line in one call, so that lines of several threads do not mix. Nobody can be told of a
  /// failure, so it has no effect.
  public static func write(_ line: [UInt8], to number: Int32 = descriptor) {
    var rest = line[...]
    // A line that the kernel takes in parts, as a full pipe does, is finished all the same.
    while !rest.isEmpty, let count = try? SystemCall.writeOnce(number, rest), count > 0 {
      rest = rest.dropFirst(count)
    }
  }
}

/// Descriptors that the process was started with.
public enum InheritedDescriptor {
  /// Keeps a descriptor from programs that this process starts.
  /// - Throws: ``SocketError``, EBADF if it is not open
  public static func closeOnExec(_ number: Int32) throws(SocketError) {
    do { try SystemCall.closeOnExec(number) } catch {
      throw SocketError(socket: "descriptor \(number)", operation: .listen, errno: error)
    }
  }
}
