import Glibc
import SystemPackage

/// A child process whose standard output is read here.
public final class ChildProcess: Sendable {
  /// How a process ended.
  public enum End: Sendable, Equatable {
    case exited(status: Int32)
    case killed(signal: Int32)
  }

  public let identifier: Int32
  private let output: Descriptor

  /// Starts the program at `path`, which gets no open files but its three streams.
  /// - Parameters:
  ///   - isAlone: whether it gets a group of processes of its own, which ``killAll()`` ends with it
  ///   - readsErrors: whether its standard error is read here, too; else that goes where this process's does
  /// - Throws: ``FileError`` if it cannot be started.
  public init(
    _ path: String, arguments: [String], environment: [String: String], isAlone: Bool = false,
    readsErrors: Bool = false
  ) throws(FileError) {
    let ends = try FileError.attempt(.create, "pipe") { () throws(Errno) in try SystemCall.pipe() }
    output = Descriptor(owning: ends.reading)
    let writing = Descriptor(owning: ends.writing)
    do {
      identifier = try SystemCall.spawn(
        path, arguments: arguments, environment: environment, output: writing, isAlone: isAlone,
        readsErrors: readsErrors)
    } catch {
      throw FileError(path: path, operation: .start, errno: error)
    }
  }

  /// What a poll loop waits for: readable when there is output, or when the process has closed it.
  public var descriptor: Int32 { output.number }

  /// Reads what there is of the output, waiting for the first byte.
  /// - Returns: the bytes; none once the process has closed its output
  public func read() throws(FileError) -> [UInt8] {
    var buffer = [UInt8](repeating: 0, count: 65_536)
    do {
      let count = try SystemCall.read(output, into: &buffer)
      return Array(buffer[..<count])
    } catch {
      throw FileError(path: "pipe from process \(identifier)", operation: .read, errno: error)
    }
  }

  /// Waits for the end, which is to be asked for once.
  public func wait() throws(FileError) -> End {
    let status = try FileError.attempt(.inspect, "process \(identifier)") { () throws(Errno) in
      try SystemCall.wait(for: identifier)
    }
    return Self.end(status)
  }

  /// Waits for the end, but no longer than until a time.
  /// - Returns: nil if the process runs on; else the end, which is not to be asked for any more
  public func end(before deadline: ContinuousClock.Instant) throws -> End? {
    while true {
      let status = try FileError.attempt(.inspect, "process \(identifier)") { () throws(Errno) in
        try SystemCall.statusIfEnded(of: identifier)
      }
      if let status { return Self.end(status) }
      guard ContinuousClock.now < deadline else { return nil }
      _ = try DescriptorWaiting.readable(among: [], for: .milliseconds(10))
    }
  }

  private static func end(_ status: Int32) -> End {
    let signal = status & 0x7F
    return signal == 0 ? .exited(status: (status >> 8) & 0xFF) : .killed(signal: signal)
  }

  /// Ends a process that was started alone, and all that it has started.
  public func killAll() { try? SystemCall.kill(-identifier, SIGKILL) }

  /// Ends the process at once; one that has ended already is fine.
  public func kill() {
    // The only error that can be is that there is no such process any more.
    try? SystemCall.kill(identifier, SIGKILL)
  }
}

/// This process itself.
public enum ThisProcess {
  /// Has the kernel end this process when the one that started it ends.
  public static func endWithParent() {
    // Without it a process whose parent was killed goes on for nobody; nothing else comes of it.
    try? SystemCall.endWithParent()
  }

  /// Has this process go on when it is asked to end: who asks means it to be gone at once only later, and until then work
  /// gets done.
  public static func ignoreTermination() { _ = signal(SIGTERM, SIG_IGN) }

  /// Starts the program again in this process, from its beginning and with the same arguments, for what is only read
  /// then: a library's variables. Nothing may have begun that cannot be begun again.
  ///
  /// It returns if the kernel would not start it.
  public static func restart(setting variables: [String: String]) {
    let before = variables.keys.map { ($0, ProcessEnvironment.process.value($0)) }
    for (name, value) in variables { _ = unsafe setenv(name, value, 1) }
    var arguments = unsafe CommandLine.arguments.map { unsafe strdup($0) } + [nil]
    defer { unsafe arguments.indices.forEach { unsafe free(arguments[$0]) } }
    // By its own name, so that it is found by that; the file may have been replaced meanwhile.
    _ = unsafe execv(program, &arguments)
    _ = unsafe execv(path, &arguments)
    for (name, value) in before {
      if let value { _ = unsafe setenv(name, value, 1) } else { _ = unsafe unsetenv(name) }
    }
  }

  /// The program that this process runs.
  public static var path: String { "/proc/self/exe" }

  /// The same as other hosts may find it, where it is on a file system that they share or stands in the same place.
  public static var program: String {
    var own = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
    let length = unsafe readlink(path, &own, Int(PATH_MAX))
    guard length > 0 else { return path }
    return named(String(decoding: own.prefix(length).map { UInt8(bitPattern: $0) }, as: UTF8.self))
  }

  /// The name of a program by the kernel's link to it, which says of one that has been replaced since that it is deleted.
  static func named(_ link: String) -> String {
    let mark = " (deleted)"
    return link.hasSuffix(mark) ? String(link.dropLast(mark.count)) : link
  }

  public static var identifier: Int32 { getpid() }
}
