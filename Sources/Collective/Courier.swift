import Dispatch
import Synchronization
import SystemIO

/// Sends and receives for a rank on a thread of its own, beside the work.
///
/// A transport gets on only while it is asked, so the thread asks all the time, with a pause that doubles while nothing
/// moves: waiting takes no core from whoever computes. Every rank says now and then that it is there, however long it
/// computes; so a wait has a limit that is one of silence and not of work.
final class Courier: Sendable {
  private struct Outgoing {
    let rank: Int
    let label: MessageLabel
    let bytes: MessageBytes
  }

  private struct Incoming {
    let label: MessageLabel
    let bytes: MessageBytes
  }

  private struct State {
    var outgoing: [Outgoing] = []
    /// Bytes that are posted and not sent yet, each as often as there are ranks that they are for.
    var waitingBytes = 0
    /// Messages that nobody has asked for yet, by the rank that they come from.
    var inbox: [[Incoming]]
    var lastHeard: [ContinuousClock.Instant]
    /// Whether the rank has posted its last message.
    var isEnding = false
    var isAbandoned = false
    var isOver = false
    var failure: RankError?
    var whenOneFails: (@Sendable (RankError) -> Void)?
  }

  let rank: Int
  let count: Int
  let library: String
  private let names: Mutex<[RankName]>
  private let state: Mutex<State>
  /// Something has arrived, or never will.
  private let arrived = DispatchSemaphore(value: 0)
  /// Something has been sent, or never will be.
  private let drained = DispatchSemaphore(value: 0)
  /// There is something to send.
  private let posted = DispatchSemaphore(value: 0)
  private let patience: Duration

  /// How often a rank that has nothing to say says so.
  private static let heartbeat = Duration.seconds(5)
  private static let shortestPause = 20
  private static let longestPause = 2_000
  /// Whoever posts more than is sent waits. The others' threads take what comes, whatever else they do, so that it ends.
  private static let mostWaitingBytes = 1 << 28

  /// Starts the thread, and returns when the transport is there.
  /// - Parameters:
  ///   - patience: how long a rank may be silent
  ///   - connect: makes the transport, on the thread that uses it from then on
  /// - Throws: ``RankError``
  init(patience: Duration, _ connect: @escaping @Sendable () throws(RankError) -> any RankTransport)
    throws(RankError)
  {
    let start = Start()
    let isRunning = BackgroundThread.start {
      let transport: any RankTransport
      do throws(RankError) { transport = try connect() } catch {
        return start.finish(.failure(error))
      }
      start.finish(
        .success(Start.Place(rank: transport.rank, count: transport.count, library: transport.library)))
      guard let courier = start.courier() else { return }
      courier.work(with: transport)
    }
    guard isRunning else { throw .noLibrary(path: nil, reason: "there is no thread to spare") }
    let place = try start.place()
    (rank, count) = (place.rank, place.count)
    library = place.library
    self.patience = patience
    names = Mutex((0..<place.count).map { RankName(rank: $0, host: "") })
    state = Mutex(
      State(
        inbox: Array(repeating: [], count: place.count),
        lastHeard: Array(repeating: .now, count: place.count)))
    start.take(self)
  }

  func name(_ rank: Int) -> RankName { names.withLock { $0[rank] } }

  func rename(_ all: [RankName]) { names.withLock { $0 = all } }

  /// Sends without waiting for anybody to receive.
  func post(_ label: MessageLabel, _ bytes: MessageBytes, to rank: Int) {
    state.withLock { state in
      state.outgoing.append(Outgoing(rank: rank, label: label, bytes: bytes))
      state.waitingBytes += bytes.count
    }
    posted.signal()
    while mustWait { _ = drained.wait(timeout: .now() + .seconds(1)) }
  }

  /// Whether more waits to be sent than may. What fails meanwhile is heard of by the next who receives.
  private var mustWait: Bool {
    state.withLock { state in
      guard !state.isOver, state.failure == nil, state.waitingBytes > Self.mostWaitingBytes else {
        return false
      }
      let silent = others.first { ContinuousClock.now - state.lastHeard[$0] > patience }
      state.failure = silent.map {
        .silent(name($0), missing: "room for what it is sent", seconds: Int(patience.components.seconds))
      }
      return silent == nil
    }
  }

  /// Waits for the next message of a rank, which has to be the one that is expected.
  func receive(_ label: MessageLabel, from rank: Int) throws(RankError) -> MessageBytes {
    let message = try wait(for: rank, missing: label) { state in
      state.inbox[rank].isEmpty ? nil : state.inbox[rank].removeFirst()
    }
    guard message.label == label else {
      throw .unexpected(name(rank), expected: "\(label)", found: "\(message.label)")
    }
    return message.bytes
  }

  /// Has a function called when another rank tells of a failure, whatever this one is doing; on the thread that hears of it.
  func whenOneFails(_ body: @escaping @Sendable (RankError) -> Void) {
    let known = state.withLock { state in
      state.whenOneFails = body
      return state.failure
    }
    if let known { body(known) }
  }

  /// Ends the thread once every rank has got this far.
  func end() throws(RankError) {
    // At once, so that nothing is sent behind it.
    state.withLock { state in
      state.outgoing += others.map { Outgoing(rank: $0, label: MessageLabel(.ended), bytes: .none) }
      state.isEnding = true
    }
    posted.signal()
    for other in others { _ = try receive(MessageLabel(.ended), from: other) }
    while !state.withLock({ $0.isOver }) { arrived.wait() }
  }

  /// Tells the others why this rank gives up, and leaves.
  func abandon(reason: String, status: Int32) {
    var bytes = unsafe withUnsafeBytes(of: status.littleEndian) { unsafe Array($0) }
    bytes += Array(reason.utf8)
    let message = MessageBytes(bytes)
    for other in others { post(MessageLabel(.failed), message, to: other) }
    state.withLock { $0.isAbandoned = true }
    posted.signal()
    // Whoever is to hear it may be gone.
    let deadline = DispatchTime.now() + .seconds(3)
    while !state.withLock({ $0.isOver }), arrived.wait(timeout: deadline) == .success {}
  }

  private var others: [Int] { (0..<count).filter { $0 != rank } }

  private func wait<Found>(
    for rank: Int, missing: MessageLabel, _ find: (inout State) -> Found?
  ) throws(RankError) -> Found {
    while true {
      let (found, failure, heard) = state.withLock { state in
        (find(&state), state.failure, state.lastHeard[rank])
      }
      if let found { return found }
      if let failure { throw failure }
      let silence = ContinuousClock.now - heard
      if silence > patience {
        throw .silent(
          name(rank), missing: "\(missing)", seconds: Int(silence.components.seconds))
      }
      _ = arrived.wait(timeout: .now() + .seconds(1))
    }
  }

  // MARK: The thread

  /// Runs until every rank has ended, or one has failed.
  private func work(with transport: any RankTransport) {
    var senders: [Sender] = []
    var receivers = others.map { Receiver(from: $0) }
    var lastBeat = ContinuousClock.now
    var pause = Self.shortestPause
    do throws(RankError) {
      while true {
        var outgoing: [Outgoing]
        let isLeaving: Bool
        (outgoing, isLeaving) = state.withLock { state in
          defer { state.outgoing = [] }
          return (state.outgoing, state.isEnding)
        }
        if !isLeaving, ContinuousClock.now - lastBeat > Self.heartbeat {
          lastBeat = .now
          outgoing += others.map { Outgoing(rank: $0, label: MessageLabel(.alive), bytes: .none) }
        }
        var hasMoved = !outgoing.isEmpty
        senders += outgoing.map { Sender($0.label, $0.bytes, to: $0.rank) }
        // One message of a rank at a time, or pieces of two would mix.
        var isBusy: Set<Int> = []
        var left: [Sender] = []
        for sender in senders {
          if isBusy.insert(sender.rank).inserted {
            if try sender.advance(transport) { hasMoved = true }
          }
          if !sender.isDone { left.append(sender) }
        }
        let sent = senders.lazy.filter(\.isDone).reduce(0) { $0 + $1.byteCount }
        senders = left
        if sent > 0 {
          state.withLock { $0.waitingBytes -= sent }
          drained.signal()
        }
        for receiver in receivers {
          while let message = try receiver.advance(transport, hasMoved: &hasMoved) {
            take(message.label, message.bytes, from: receiver.rank)
          }
          if hasMoved { heard(receiver) }
        }
        receivers.removeAll(where: \.hasEnded)
        if try isOver(senders.isEmpty, receivers.isEmpty, transport) {
          return keepForever(senders, receivers)
        }
        pause = hasMoved ? Self.shortestPause : min(2 * pause, Self.longestPause)
        if !hasMoved { _ = posted.wait(timeout: .now() + .microseconds(pause)) }
      }
    } catch {
      // A rank that cannot be sent to any more may have said why.
      var hasMoved = false
      for receiver in receivers {
        while let message = try? receiver.advance(transport, hasMoved: &hasMoved) {
          take(message.label, message.bytes, from: receiver.rank)
        }
      }
      state.withLock { state in
        state.failure = state.failure ?? error
        state.isOver = true
      }
      keepForever(senders, receivers)
      arrived.signal()
      drained.signal()
    }
  }

  /// The transport may still read and write what it was to send and receive, until the process ends.
  private func keepForever(_ senders: [Sender], _ receivers: [Receiver]) {
    for object in senders as [AnyObject] + receivers { _ = unsafe Unmanaged.passRetained(object) }
  }

  private func heard(_ receiver: Receiver) {
    guard receiver.hasMoved else { return }
    receiver.hasMoved = false
    state.withLock { $0.lastHeard[receiver.rank] = .now }
  }

  private func take(_ label: MessageLabel, _ bytes: MessageBytes, from rank: Int) {
    let tell: (() -> Void)? = state.withLock { state in
      switch label.kind {
      case .alive: break
      case .failed:
        if state.failure != nil { return nil }
        let bytes = bytes.array
        let status =
          bytes.count >= 4 ? bytes.prefix(4).reversed().reduce(Int32(0)) { $0 << 8 | Int32($1) } : 70
        let failure = RankError.failed(
          name(rank), reason: String(decoding: bytes.dropFirst(4), as: UTF8.self), status: status)
        state.failure = failure
        return state.whenOneFails.map { body in { body(failure) } }
      default: state.inbox[rank].append(Incoming(label: label, bytes: bytes))
      }
      return nil
    }
    tell?()
    arrived.signal()
  }

  private func isOver(
    _ isSent: Bool, _ isReceived: Bool, _ transport: any RankTransport
  ) throws(RankError) -> Bool {
    let (isDone, isAbandoned) = state.withLock { state in
      let isFlushed = isSent && state.outgoing.isEmpty
      return (isFlushed && state.isEnding && isReceived, isFlushed && state.isAbandoned)
    }
    guard isDone || isAbandoned else { return false }
    if isDone { try transport.finish() }
    state.withLock { $0.isOver = true }
    arrived.signal()
    drained.signal()
    return true
  }
}

/// Hands a transport's thread what waits for it to be there.
private final class Start: Sendable {
  struct Place: Sendable {
    let rank: Int
    let count: Int
    let library: String
  }

  private let result = Mutex<Result<Place, RankError>?>(nil)
  private let taker = Mutex<Courier?>(nil)
  private let isConnected = DispatchSemaphore(value: 0)
  private let isTaken = DispatchSemaphore(value: 0)

  func finish(_ result: Result<Place, RankError>) {
    self.result.withLock { $0 = result }
    isConnected.signal()
  }

  func place() throws(RankError) -> Place {
    isConnected.wait()
    guard let result = result.withLock({ $0 }) else {
      preconditionFailure("a transport is there or it is not")
    }
    return try result.get()
  }

  func take(_ courier: Courier) {
    taker.withLock { $0 = courier }
    isTaken.signal()
  }

  func courier() -> Courier? {
    isTaken.wait()
    return taker.withLock { $0.take() }
  }
}

/// A message on its way out: its header, and then its bytes.
private final class Sender {
  let rank: Int
  let byteCount: Int
  private(set) var isDone = false
  /// Header and bytes.
  private let parts: [MessageBytes]
  private var requests: [Int] = []

  init(_ label: MessageLabel, _ bytes: MessageBytes, to rank: Int) {
    self.rank = rank
    byteCount = bytes.count
    let header = MessageHeader(label, byteCount: bytes.count).words.flatMap { word in
      (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) }
    }
    parts = [MessageBytes(header)] + (bytes.count == 0 ? [] : [bytes])
  }

  /// - Returns: whether anything got on
  func advance(_ transport: any RankTransport) throws(RankError) -> Bool {
    if requests.isEmpty {
      for part in parts {
        var offset = 0
        while offset < part.count {
          let piece = unsafe part.piece(at: offset)
          requests.append(try unsafe transport.send(UnsafeRawBufferPointer(piece), to: rank))
          offset += piece.count
        }
      }
    }
    var hasMoved = false
    while let request = requests.first, try transport.isDone(request) {
      requests.removeFirst()
      hasMoved = true
    }
    isDone = requests.isEmpty
    return hasMoved
  }
}

/// What comes from one rank.
private final class Receiver {
  let rank: Int
  var hasMoved = false
  private(set) var hasEnded = false
  private var header = MessageBytes(uninitializedCount: MessageHeader.byteCount)
  private var body: (header: MessageHeader, bytes: MessageBytes, offset: Int)?
  private var request: Int?

  init(from rank: Int) { self.rank = rank }

  /// - Returns: a message that has come whole
  func advance(
    _ transport: any RankTransport, hasMoved: inout Bool
  ) throws(RankError) -> (label: MessageLabel, bytes: MessageBytes)? {
    while !hasEnded {
      guard let request else {
        request = try unsafe transport.receive(
          body.map { unsafe $0.bytes.piece(at: $0.offset) } ?? header.memory, from: rank)
        continue
      }
      guard try transport.isDone(request) else { return nil }
      self.request = nil
      (hasMoved, self.hasMoved) = (true, true)
      if var body {
        unsafe body.offset += body.bytes.piece(at: body.offset).count
        self.body = body
      } else {
        let words = (0..<MessageHeader.byteCount / 8).map { word in
          unsafe header.memory.loadUnaligned(fromByteOffset: 8 * word, as: UInt64.self).littleEndian
        }
        guard let header = MessageHeader(words: words) else {
          throw .unexpected(
            RankName(rank: rank, host: ""), expected: "a header", found: "bytes that are none")
        }
        body = (header, MessageBytes(uninitializedCount: header.byteCount), 0)
      }
      guard let body, body.offset == body.bytes.count else { continue }
      self.body = nil
      if body.header.label.kind == .ended { hasEnded = true }
      return (body.header.label, body.bytes)
    }
    return nil
  }
}
