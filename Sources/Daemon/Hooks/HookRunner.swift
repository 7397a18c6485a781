import SystemIO

/// Runs the programs that are to be told of events, one after the other, until no event is left.
///
/// A program that fails, says much or does not end is logged, and nothing else comes of it. An event goes when its
/// program has ended: after a power failure in between it is told again.
public struct HookRunner {
  private let spool: Spool
  private let directory: String
  private let limit: Duration
  private let environment: [String: String]
  private let log: Log

  /// - Parameters:
  ///   - directory: the folder of the programs
  ///   - limit: how long one of them may take
  ///   - environment: what they get beside the event
  public init(
    spool: Spool, directory: String, limit: Duration, environment: [String: String], log: Log
  ) {
    self.spool = spool
    self.directory = directory
    self.limit = limit
    self.environment = environment
    self.log = log
  }

  /// - Throws: ``FileError`` if the events cannot be read or removed
  public func run() throws {
    while true {
      let names = try FileSystem.names(in: spool.hookEvents).filter { !$0.hasPrefix(".") }.sorted()
      if names.isEmpty { return }
      for name in names {
        let path = FileSystem.join(spool.hookEvents, name)
        // What is no event would have the unit started without end.
        if let event = try? HookEvent(path: path) { tell(event) }
        try FileSystem.removeTree(path)
      }
    }
  }

  private func tell(_ event: HookEvent) {
    let program = FileSystem.join(directory, event.kind.program)
    let about =
      [Log.Field("hook", event.kind.program), .name(event.name)] + (event.job.map { [.job($0)] } ?? [])
    do {
      guard try FileSystem.kind(of: program) == .regular else { return }
      let process = try ChildProcess(
        program, arguments: [], environment: environment.merging(event.environment) { $1 }, isAlone: true,
        readsErrors: true)
      let deadline = ContinuousClock.now + limit
      let words = try listen(to: process, until: deadline)
      // It may have closed its output long before its end.
      let ended = try process.end(before: deadline)
      let isLate = ended == nil
      // What it left running is nobody's.
      process.killAll()
      let end = try ended ?? process.wait()
      for line in words.split(separator: UInt8(ascii: "\n")).prefix(Self.lineLimit) {
        log.write(.info, String(decoding: line, as: UTF8.self), about)
      }
      switch end {
      case _ where isLate: log.write(.warning, "ended after \(limit): it took too long", about)
      case .exited(status: 0): log.write(.info, "told", about)
      case .exited(let status): log.write(.warning, "failed", about + [.code(Int(status))])
      case .killed(let signal): log.write(.warning, "was ended by signal \(signal)", about)
      }
    } catch {
      log.write(.warning, "\(error)", about)
    }
  }

  private static let lineLimit = 100
  private static let byteLimit = 1 << 16

  /// What a process says, up to a limit, until it has closed its output or its time is over.
  private func listen(to process: ChildProcess, until deadline: ContinuousClock.Instant) throws -> [UInt8] {
    var words: [UInt8] = []
    while true {
      let left = deadline - .now
      guard left > .zero else { return words }
      guard try !DescriptorWaiting.readable(among: [process.descriptor], for: left).isEmpty else { continue }
      let bytes = try process.read()
      if bytes.isEmpty { return words }
      words += bytes.prefix(max(0, Self.byteLimit - words.count))
    }
  }
}
