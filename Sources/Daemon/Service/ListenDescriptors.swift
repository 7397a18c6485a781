import SystemIO

/// Sockets that systemd opened for the service (`sd_listen_fds`).
public enum ListenDescriptors {
  public struct Named: Sendable, Equatable {
    public let descriptor: Int32
    /// `FileDescriptorName=` in the socket unit; empty where there is none.
    public let name: String
  }

  /// Takes the descriptors over: the variables are removed and the descriptors closed on exec, so that no
  /// program started later takes them for its own. Call it once, before there are other threads.
  /// - Parameters:
  ///   - processID: whom the descriptors have to be meant for
  ///   - first: the number of the first one, 3 by the protocol
  /// - Returns: empty where the variables are missing, broken, or meant for another process
  /// - Throws: ``SocketError``, EBADF if a descriptor is not open
  public static func fromEnvironment(
    _ environment: ProcessEnvironment = .process, processID: Int = ProcessEnvironment.processID(),
    first: Int32 = 3
  ) throws(SocketError) -> [Named] {
    let process = environment.value("LISTEN_PID")
    let count = environment.value("LISTEN_FDS")
    let names = environment.value("LISTEN_FDNAMES")
    for name in ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"] { environment.remove(name) }

    // More than a thousand are no sockets of a status endpoint, and might overflow.
    guard let process, Int(process) == processID, let count = count.flatMap({ Int32($0) }),
      count > 0, count <= 1024
    else { return [] }
    let nameOf = (names ?? "").split(separator: ":", omittingEmptySubsequences: false)
    var descriptors: [Named] = []
    for index in 0..<Int(count) {
      let descriptor = first + Int32(index)
      try InheritedDescriptor.closeOnExec(descriptor)
      descriptors.append(
        Named(descriptor: descriptor, name: index < nameOf.count ? String(nameOf[index]) : ""))
    }
    return descriptors
  }
}
