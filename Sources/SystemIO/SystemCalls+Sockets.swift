import Glibc
import SystemPackage

/// A socket's address as the kernel takes it: the bytes of a `sockaddr`.
struct SocketAddress: Sendable, Equatable {
  let bytes: [UInt8]

  var family: Int32 { Int32(bytes[0]) | Int32(bytes[1]) << 8 }

  /// nil if the name is empty or longer than an address can hold.
  init?(_ address: LocalAddress) {
    let name: [UInt8]
    switch address {
    case .path(let path): name = Array(path.utf8) + [0]
    // Here the length says where the name ends: a zero at its end would be part of it.
    case .abstract(let text): name = [0] + Array(text.utf8)
    }
    guard name.count > 1, name.count <= MemoryLayout.size(ofValue: sockaddr_un().sun_path) else { return nil }
    bytes = Self.family(AF_UNIX) + name
  }

  init(_ address: InternetAddress) {
    let port = [UInt8(address.port >> 8), UInt8(address.port & 0xFF)]
    bytes =
      address.host.count == 4
      ? Self.family(AF_INET) + port + address.host + [UInt8](repeating: 0, count: 8)
      : Self.family(AF_INET6) + port + [0, 0, 0, 0] + address.host + [0, 0, 0, 0]
  }

  private static func family(_ family: Int32) -> [UInt8] {
    // In the machine's order, and Swift's Linux machines are little-endian.
    [UInt8(family & 0xFF), UInt8(family >> 8)]
  }

  /// Lends the address to a system call.
  func lend<Result>(_ call: (UnsafePointer<sockaddr>, socklen_t) -> Result) -> Result {
    unsafe bytes.withUnsafeBytes { raw in
      guard let base = raw.baseAddress else { preconditionFailure("an address has bytes") }
      return unsafe call(base.assumingMemoryBound(to: sockaddr.self), socklen_t(raw.count))
    }
  }
}

extension SystemCall {
  // MARK: Sockets

  static func socket(_ family: Int32, _ type: __socket_type) throws(Errno) -> Descriptor {
    let flags = Int32(type.rawValue | SOCK_CLOEXEC.rawValue)
    return Descriptor(owning: try retrying { Glibc.socket(family, flags, 0) })
  }

  static func bind(_ socket: borrowing Descriptor, to address: SocketAddress) throws(Errno) {
    let number = socket.number
    try retrying { unsafe address.lend { unsafe Glibc.bind(number, $0, $1) } }
  }

  static func connect(_ socket: borrowing Descriptor, to address: SocketAddress) throws(Errno) {
    let number = socket.number
    try retrying { unsafe address.lend { unsafe Glibc.connect(number, $0, $1) } }
  }

  /// Lets every user connect to the socket at a path.
  static func openToAll(_ path: String) throws(Errno) {
    try retrying { unsafe chmod(path, 0o666) }
  }

  static func listen(_ socket: borrowing Descriptor, backlog: Int32) throws(Errno) {
    let number = socket.number
    try retrying { Glibc.listen(number, backlog) }
  }

  /// Takes the next connection.
  /// - Throws: EAGAIN if there is none.
  static func accept(_ socket: borrowing Descriptor) throws(Errno) -> Descriptor {
    let number = socket.number
    // Swift's Glibc has no accept4. A program started between the two calls inherits the connection, which
    // still ends for its other side: ``finishSending(_:)`` acts on the connection, not on a descriptor.
    let connection = Descriptor(owning: try retrying { Glibc.accept(number, nil, nil) })
    try closeOnExec(connection.number)
    return connection
  }

  /// Receives what is there, at most as much as fits.
  static func receive(
    _ socket: borrowing Descriptor, into buffer: inout [UInt8], flags: Int32 = 0
  ) throws(Errno) -> Int {
    let number = socket.number
    return try retrying {
      unsafe buffer.withUnsafeMutableBytes { unsafe recv(number, $0.baseAddress, $0.count, flags) }
    }
  }

  /// Sends as much as the kernel takes. A receiver that is gone is an error and no signal.
  static func send(
    _ socket: borrowing Descriptor, _ bytes: ArraySlice<UInt8>, to address: SocketAddress? = nil,
    flags: Int32 = 0
  ) throws(Errno) -> Int {
    let number = socket.number
    let all = flags | Int32(MSG_NOSIGNAL)
    return try retrying {
      unsafe bytes.withUnsafeBytes { raw in
        guard let address else { return unsafe Glibc.send(number, raw.baseAddress, raw.count, all) }
        return unsafe address.lend { unsafe sendto(number, raw.baseAddress, raw.count, all, $0, $1) }
      }
    }
  }

  /// Says to the other side that nothing more comes.
  static func finishSending(_ socket: borrowing Descriptor) throws(Errno) {
    let number = socket.number
    try retrying { shutdown(number, Int32(SHUT_WR)) }
  }

  static func setOption(
    _ socket: borrowing Descriptor, level: Int32 = SOL_SOCKET, _ option: Int32, _ value: Int32
  ) throws(Errno) {
    let number = socket.number
    var value = value
    try retrying {
      unsafe setsockopt(number, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
    }
  }

  /// Lets a receive or send (`SO_RCVTIMEO`, `SO_SNDTIMEO`) that waits for longer fail with EAGAIN.
  static func setTimeout(
    _ socket: borrowing Descriptor, _ option: Int32, milliseconds: Int
  ) throws(Errno) {
    let number = socket.number
    var time = timeval(tv_sec: milliseconds / 1000, tv_usec: milliseconds % 1000 * 1000)
    try retrying {
      unsafe setsockopt(number, SOL_SOCKET, option, &time, socklen_t(MemoryLayout<timeval>.size))
    }
  }

  static func option(
    _ socket: borrowing Descriptor, level: Int32 = SOL_SOCKET, _ option: Int32
  ) throws(Errno) -> Int32 {
    let number = socket.number
    var value: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    try retrying { unsafe getsockopt(number, level, option, &value, &length) }
    return value
  }

  /// The port that an internet socket is bound to; nil for other families.
  static func port(_ socket: borrowing Descriptor) throws(Errno) -> UInt16? {
    let number = socket.number
    var storage = [UInt8](repeating: 0, count: MemoryLayout<sockaddr_storage>.size)
    try retrying {
      unsafe storage.withUnsafeMutableBytes { raw in
        guard let base = raw.baseAddress else { return Int32(-1) }
        var length = socklen_t(raw.count)
        return unsafe getsockname(number, base.assumingMemoryBound(to: sockaddr.self), &length)
      }
    }
    let family = Int32(storage[0]) | Int32(storage[1]) << 8
    guard family == AF_INET || family == AF_INET6 else { return nil }
    return UInt16(storage[2]) << 8 | UInt16(storage[3])
  }

  // MARK: Descriptors of any kind

  static func duplicate(_ descriptor: borrowing Descriptor) throws(Errno) -> Int32 {
    let number = descriptor.number
    return try retrying { fcntl(number, F_DUPFD_CLOEXEC, 0) }
  }

  /// Keeps a descriptor from programs that this process starts.
  static func closeOnExec(_ number: Int32) throws(Errno) {
    let flags = try retrying { fcntl(number, F_GETFD) }
    try retrying { fcntl(number, F_SETFD, flags | FD_CLOEXEC) }
  }

  static func neverBlock(_ descriptor: borrowing Descriptor) throws(Errno) {
    let number = descriptor.number
    let flags = try retrying { fcntl(number, F_GETFL) }
    try retrying { fcntl(number, F_SETFL, flags | O_NONBLOCK) }
  }

  /// Writes to a descriptor that stays open, in one call.
  /// - Returns: how many bytes were taken
  static func writeOnce(_ number: Int32, _ bytes: ArraySlice<UInt8>) throws(Errno) -> Int {
    try retrying { unsafe bytes.withUnsafeBytes { unsafe Glibc.write(number, $0.baseAddress, $0.count) } }
  }

  static func isTerminal(_ number: Int32) -> Bool { isatty(number) == 1 }

  static func isSocket(_ number: Int32) -> Bool {
    var status = stat()
    return unsafe fstat(number, &status) == 0 && status.st_mode & S_IFMT == S_IFSOCK
  }

  // MARK: Waiting

  /// A pipe: what is written to its second end comes out of the first.
  static func pipe() throws(Errno) -> (reading: Int32, writing: Int32) {
    var ends: [Int32] = [-1, -1]
    try retrying { unsafe ends.withUnsafeMutableBufferPointer { unsafe Glibc.pipe($0.baseAddress) } }
    for end in ends { try closeOnExec(end) }
    return (ends[0], ends[1])
  }

  /// Waits until one of the descriptors is ready, for at most so long; −1 is for ever. A signal ends the
  /// wait, as if its time were over.
  static func poll(_ descriptors: inout [pollfd], milliseconds: Int32) throws(Errno) {
    let result = unsafe descriptors.withUnsafeMutableBufferPointer {
      unsafe Glibc.poll($0.baseAddress, nfds_t($0.count), milliseconds)
    }
    if result == -1 {
      let failure = Errno(rawValue: Glibc.errno)
      if failure != .interrupted { throw failure }
      for index in descriptors.indices { descriptors[index].revents = 0 }
    }
  }

  // MARK: Time

  /// CLOCK_MONOTONIC, which no change of the date moves.
  static func monotonicMicroseconds() -> Int {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec * 1_000_000 + time.tv_nsec / 1000
  }
}
