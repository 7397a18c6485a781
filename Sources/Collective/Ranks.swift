import Synchronization
import SystemIO

/// The processes that work on one job together, as one of them sees them.
///
/// All follow one schedule, which each computes from the plan: who has which batches, tiles, rows and experts follows from a
/// number and the count of ranks alone. Nothing is ever added up by the transport: sums are made by one rank each, in the
/// order of one machine, so that any number of ranks comes to the same bytes.
public final class Ranks: Sendable {
  /// A job of one process.
  public static let alone = Ranks()

  public let rank: Int
  public let count: Int
  private let courier: Courier?
  private let sent = Mutex<[MessageLabel.Kind: Int]>([:])

  /// Seconds that a rank may be silent before the others give up.
  public static let patience = 120

  private init() {
    (rank, count) = (0, 1)
    courier = nil
  }

  /// Joins the others.
  /// - Parameters:
  ///   - patience: seconds that a rank may be silent
  ///   - connect: makes the transport, on the thread that uses it
  /// - Throws: ``RankError``
  public init(
    patience: Int = Ranks.patience,
    _ connect: @escaping @Sendable () throws(RankError) -> any RankTransport
  ) throws(RankError) {
    let courier = try Courier(patience: .seconds(patience), connect)
    (rank, count) = (courier.rank, courier.count)
    self.courier = courier
    let own = RankName(rank: rank, host: Self.hostName)
    let hosts = try gather(Array(own.host.utf8), MessageLabel(.opening))
    courier.rename(
      hosts.enumerated().map { RankName(rank: $0.offset, host: String(decoding: $0.element, as: UTF8.self)) })
  }

  /// Joins the others of an MPI job, or is alone where one rank is asked for.
  /// - Parameters:
  ///   - asked: how many there are to be
  ///   - patience: seconds that a rank may be silent
  ///   - library: what `tools/build-mpi` made; looked for where it is installed, if nil
  /// - Throws: ``RankError``
  public static func mpi(
    _ asked: Int, patience: Int = Ranks.patience, library: String? = nil
  ) throws(RankError) -> Ranks {
    if asked == 1 { return .alone }
    let path: String
    if let library { path = library } else { path = try installedLibrary() }
    let ranks = try Ranks(patience: patience) { () throws(RankError) in try MPITransport(library: path) }
    guard ranks.count == asked else {
      throw .wrongCount(asked: asked, found: ranks.count, library: ranks.courier?.library ?? "")
    }
    return ranks
  }

  private static let libraryName = "libquantease-mpi.so"

  /// Beside the program, or in the `lib` of its `bin`.
  private static func installedLibrary() throws(RankError) -> String {
    let directory = FileSystem.parent(of: ThisProcess.program)
    let places = [directory, FileSystem.join(FileSystem.parent(of: directory), "lib/quantease")]
      .map { FileSystem.join($0, libraryName) }
    guard let path = places.first(where: { (try? FileSystem.exists($0)) == true }) else {
      throw .noLibrary(path: nil, reason: "there is no \(places.joined(separator: " and no "))")
    }
    return path
  }

  private static var hostName: String {
    let text = try? FileSystem.contents(of: "/proc/sys/kernel/hostname", limit: 1 << 10)
    return String(decoding: (text ?? []).prefix { $0 > 32 }, as: UTF8.self)
  }

  public var isAlone: Bool { count == 1 }
  /// The first one, who reads and writes what the job keeps.
  public var isChief: Bool { rank == 0 }
  public var others: [Int] { (0..<count).filter { $0 != rank } }

  public func name(_ rank: Int) -> RankName { courier?.name(rank) ?? RankName(rank: rank, host: "") }

  /// Who has the thing of a number: a batch, a tile, a panel of rows, an expert.
  public func owner(of number: Int) -> Int { number % count }
  public func owns(_ number: Int) -> Bool { owner(of: number) == rank }

  /// Bytes that this rank has sent so far, by what they were, without headers.
  public var bytesSent: [MessageLabel.Kind: Int] { sent.withLock { $0 } }

  // MARK: One to one

  /// Sends to another rank without waiting.
  public func post(_ bytes: [UInt8], _ label: MessageLabel, to rank: Int) {
    post(MessageBytes(bytes), label, to: rank)
  }

  public func post(_ bytes: MessageBytes, _ label: MessageLabel, to rank: Int) {
    guard let courier else { preconditionFailure("there is nobody else") }
    sent.withLock { $0[label.kind, default: 0] += bytes.count }
    courier.post(label, bytes, to: rank)
  }

  /// Waits for the next message of another rank.
  /// - Throws: ``RankError``
  public func receive(_ label: MessageLabel, from rank: Int) throws(RankError) -> [UInt8] {
    try receiveMessage(label, from: rank).array
  }

  public func receiveMessage(_ label: MessageLabel, from rank: Int) throws(RankError) -> MessageBytes {
    guard let courier else { preconditionFailure("there is nobody else") }
    return try courier.receive(label, from: rank)
  }

  // MARK: All

  /// Sends to all others without waiting.
  public func postToAll(_ bytes: [UInt8], _ label: MessageLabel) { postToAll(MessageBytes(bytes), label) }

  public func postToAll(_ bytes: MessageBytes, _ label: MessageLabel) {
    for other in others { post(bytes, label, to: other) }
  }

  /// What every rank gives, in their order, on all ranks.
  /// - Throws: ``RankError``
  public func gather(_ own: [UInt8], _ label: MessageLabel) throws(RankError) -> [[UInt8]] {
    postToAll(own, label)
    var all: [[UInt8]] = []
    for other in 0..<count { all.append(other == rank ? own : try receive(label, from: other)) }
    return all
  }

  /// What one rank makes, on all ranks.
  /// - Throws: ``RankError``, or what `make` throws
  public func share(
    from source: Int = 0, _ label: MessageLabel, _ make: () throws -> [UInt8]
  ) throws -> [UInt8] {
    if source != rank { return try receive(label, from: source) }
    let bytes = try make()
    postToAll(bytes, label)
    return bytes
  }

  /// Makes sure that a value is the first rank's on all of them.
  /// - Throws: ``RankError/differs(_:what:value:chief:chiefValue:)`` on all ranks, of the first one that differs
  public func agree(on what: String, _ value: String) throws(RankError) {
    let values = try gather(Array(value.utf8), MessageLabel(.opening)).map {
      String(decoding: $0, as: UTF8.self)
    }
    guard let other = values.firstIndex(where: { $0 != values[0] }) else { return }
    throw .differs(
      name(other), what: what, value: values[other], chief: name(0), chiefValue: values[0])
  }

  // MARK: Ends

  /// Leaves once every rank has got this far.
  /// - Throws: ``RankError``
  public func end() throws(RankError) { try courier?.end() }

  /// Has a function called once another rank tells that it gives up, however long this one computes: it may be ended with the
  /// other before it would hear of that.
  public func whenOneFails(_ body: @escaping @Sendable (RankError) -> Void) { courier?.whenOneFails(body) }

  /// Tells the others that this rank gives up, and why: they give up with the same reason.
  public func abandon(reason: String, status: Int32) {
    courier?.abandon(reason: reason, status: status)
  }
}
