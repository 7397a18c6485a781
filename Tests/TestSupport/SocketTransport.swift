import Collective
import Glibc
import Synchronization

/// Ranks of one process, each on a thread of its own, joined by pairs of sockets.
@safe public final class SocketTransport: RankTransport {
  public let rank: Int
  public let count: Int
  public let library = "pairs of sockets"
  /// By rank; -1 for the own one.
  private let sockets: [Int32]
  private var requests: [Int: Request] = [:]
  private var nextRequest = 0
  /// Requests of each rank that are under way, in order; what is sent and what is received do not wait for one another.
  private var queues: [Direction: [Int]] = [:]

  private struct Direction: Hashable {
    let rank: Int
    let isSending: Bool
  }

  @safe private struct Request {
    let direction: Direction
    var rest: UnsafeMutableRawBufferPointer
  }

  private init(rank: Int, sockets: [Int32]) {
    self.rank = rank
    self.count = sockets.count
    self.sockets = sockets
  }

  deinit { for socket in sockets where socket >= 0 { close(socket) } }

  /// The ends of the sockets of `count` ranks, each of which takes its own on the thread that uses them.
  public static func sockets(_ count: Int) -> [[Int32]] {
    var sockets = Array(repeating: Array(repeating: Int32(-1), count: count), count: count)
    for low in 0..<count {
      for high in low + 1..<max(count, low + 1) {
        var pair: [Int32] = [0, 0]
        let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        precondition(unsafe socketpair(AF_UNIX, type, 0, &pair) == 0, "a pair of sockets")
        (sockets[low][high], sockets[high][low]) = (pair[0], pair[1])
      }
    }
    return sockets
  }

  public static func take(_ sockets: [Int32], rank: Int) -> SocketTransport {
    SocketTransport(rank: rank, sockets: sockets)
  }

  public func send(_ bytes: UnsafeRawBufferPointer, to rank: Int) throws(RankError) -> Int {
    unsafe begin(UnsafeMutableRawBufferPointer(mutating: bytes), Direction(rank: rank, isSending: true))
  }

  public func receive(_ bytes: UnsafeMutableRawBufferPointer, from rank: Int) throws(RankError) -> Int {
    unsafe begin(bytes, Direction(rank: rank, isSending: false))
  }

  private func begin(_ bytes: UnsafeMutableRawBufferPointer, _ direction: Direction) -> Int {
    nextRequest += 1
    unsafe requests[nextRequest] = Request(direction: direction, rest: bytes)
    queues[direction, default: []].append(nextRequest)
    return nextRequest
  }

  public func isDone(_ request: Int) throws(RankError) -> Bool {
    guard let direction = requests[request]?.direction else { preconditionFailure("no request") }
    while let first = queues[direction]?.first, var open = requests[first] {
      let (socket, rest) = unsafe (sockets[direction.rank], open.rest)
      let moved: Int =
        direction.isSending
        ? unsafe Glibc.send(socket, rest.baseAddress, rest.count, Int32(MSG_NOSIGNAL))
        : unsafe recv(socket, rest.baseAddress, rest.count, 0)
      if moved < 0, errno == EAGAIN || errno == EINTR { break }
      guard moved > 0 else { throw .gone(RankName(rank: direction.rank, host: "")) }
      unsafe open.rest = UnsafeMutableRawBufferPointer(rebasing: rest[moved...])
      requests[first] = open
      guard unsafe open.rest.isEmpty else { break }
      queues[direction]?.removeFirst()
      if first == request { break }
    }
    guard unsafe requests[request]?.rest.isEmpty == true else { return false }
    requests[request] = nil
    return true
  }

  public func finish() {}
}

/// What a rank comes to that runs among others on a thread of its own.
public func withRanks<Value: Sendable>(
  _ count: Int, patience: Int = 60, _ body: @escaping @Sendable (Ranks) throws -> Value
) -> [Result<Value, any Error>] {
  let sockets = SocketTransport.sockets(count)
  let results = Mutex<[Int: Result<Value, any Error>]>([:])
  let threads = (0..<count).map { rank in
    RankThread {
      let result = Result {
        let ranks = try Ranks(patience: patience) { () throws(RankError) in
          SocketTransport.take(sockets[rank], rank: rank)
        }
        do {
          let value = try body(ranks)
          try ranks.end()
          return value
        } catch {
          ranks.abandon(reason: "\(error)", status: 70)
          throw error
        }
      }
      results.withLock { $0[rank] = result }
    }
  }
  for thread in threads { thread.join() }
  return results.withLock { results in (0..<count).compactMap { results[$0] } }
}

/// A thread with a stack for the engine's work.
private final class RankThread: Sendable {
  private let thread: pthread_t

  init(_ body: @escaping @Sendable () -> Void) {
    final class Body {
      let run: @Sendable () -> Void; init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }
    var attributes = pthread_attr_t()
    var thread = pthread_t()
    unsafe pthread_attr_init(&attributes)
    unsafe pthread_attr_setstacksize(&attributes, 16 << 20)
    let context = unsafe Unmanaged.passRetained(Body(body)).toOpaque()
    let failure = unsafe pthread_create(
      &thread, &attributes,
      { context in
        if let context = unsafe context {
          unsafe Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run()
        }
        return nil
      }, context)
    precondition(failure == 0, "a thread")
    self.thread = thread
  }

  func join() { pthread_join(thread, nil) }
}
