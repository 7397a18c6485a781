import Glibc
import SystemPackage

/// News of what happens in directories, by inotify. News may get lost (``Kind/overflow``) and some writers
/// make none; a look at the directory decides, and the watch only says when to look.
public struct DirectoryWatch: ~Copyable {
  public enum Kind: Sendable, Equatable {
    case created, movedIn, movedOut, closedAfterWrite, deleted
    /// News were lost, of any directory; the event names none.
    case overflow
    /// The watched directory itself is removed or moved away, and no longer watched.
    case gone
  }

  public struct Event: Sendable, Equatable {
    /// The watched directory, as it was given to ``add(_:)``.
    public let directory: String
    /// A name in it; empty for an overflow or a directory that is gone.
    public let name: String
    public let kind: Kind
    /// Whether the name is that of a directory.
    public let isDirectory: Bool

    public init(directory: String, name: String, kind: Kind, isDirectory: Bool) {
      self.directory = directory
      self.name = name
      self.kind = kind
      self.isDirectory = isDirectory
    }
  }

  private let queue: Descriptor
  private var directories: [Int32: String] = [:]

  /// - Throws: ``FileError``, EMFILE if the user has too many watches.
  public init() throws(FileError) {
    queue = try FileError.attempt(.watch, "directories") { () throws(Errno) in try SystemCall.makeWatch() }
  }

  /// Readable whenever ``read()`` has something to give; for a poll loop.
  public var descriptor: Int32 { queue.number }

  /// Watches the names in `directory`, not those in directories below it. Adding it again changes nothing.
  public mutating func add(_ directory: String) throws(FileError) {
    let watch = try FileError.attempt(.watch, directory) { () throws(Errno) in
      try SystemCall.watch(directory, with: queue)
    }
    directories[watch] = directory
  }

  /// Takes what has happened since the last call, in order; does not wait.
  public mutating func read() throws(FileError) -> [Event] {
    var events: [Event] = []
    // Room for a few hundred events; one needs 272 bytes at most.
    var buffer = [UInt8](repeating: 0, count: 65_536)
    while true {
      let count: Int
      do {
        count = try SystemCall.read(queue, into: &buffer)
      } catch .wouldBlock {
        return events
      } catch {
        throw FileError(path: "directories", operation: .watch, errno: error)
      }
      for news in WatchNews.parse(buffer[..<count]) {
        if let event = event(news) { events.append(event) }
      }
    }
  }

  private mutating func event(_ news: WatchNews) -> Event? {
    if news.mask & UInt32(IN_Q_OVERFLOW) != 0 {
      return Event(directory: "", name: "", kind: .overflow, isDirectory: false)
    }
    guard let directory = directories[news.watch] else { return nil }
    if news.mask & UInt32(IN_MOVE_SELF) != 0 {
      // It would go on telling what happens there, under a path that is no longer right.
      SystemCall.unwatch(news.watch, with: queue)
      return nil
    }
    if news.mask & UInt32(IN_IGNORED) != 0 {
      directories[news.watch] = nil
      return Event(directory: directory, name: "", kind: .gone, isDirectory: true)
    }
    let kinds: [(Int32, Kind)] = [
      (IN_CREATE, .created), (IN_MOVED_TO, .movedIn), (IN_MOVED_FROM, .movedOut),
      (IN_CLOSE_WRITE, .closedAfterWrite), (IN_DELETE, .deleted),
    ]
    guard let kind = kinds.first(where: { news.mask & UInt32($0.0) != 0 })?.1 else { return nil }
    let isDirectory = news.mask & UInt32(IN_ISDIR) != 0
    return Event(directory: directory, name: news.name, kind: kind, isDirectory: isDirectory)
  }
}

/// One `struct inotify_event`: four words (watch, mask, cookie, length of the name) and the padded name.
private struct WatchNews {
  let watch: Int32
  let mask: UInt32
  let name: String

  static func parse(_ bytes: ArraySlice<UInt8>) -> [WatchNews] {
    var news: [WatchNews] = []
    var rest = bytes
    while rest.count >= 16 {
      let words = (0..<4).map { word in
        rest.dropFirst(4 * word).prefix(4).reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
      }
      let name = rest.dropFirst(16).prefix(Int(words[3])).prefix { $0 != 0 }
      news.append(
        WatchNews(
          watch: Int32(bitPattern: words[0]), mask: words[1],
          name: String(decoding: name, as: UTF8.self)))
      rest = rest.dropFirst(16 + Int(words[3]))
    }
    return news
  }
}

extension SystemCall {
  static func makeWatch() throws(Errno) -> Descriptor {
    Descriptor(owning: try retrying { inotify_init1(Int32(IN_NONBLOCK | IN_CLOEXEC)) })
  }

  static func watch(_ directory: String, with queue: borrowing Descriptor) throws(Errno) -> Int32 {
    let number = queue.number
    let mask =
      IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_CLOSE_WRITE | IN_DELETE | IN_MOVE_SELF
      | Int32(bitPattern: UInt32(IN_ONLYDIR))
    return try retrying { unsafe inotify_add_watch(number, directory, UInt32(bitPattern: mask)) }
  }

  static func unwatch(_ watch: Int32, with queue: borrowing Descriptor) {
    _ = inotify_rm_watch(queue.number, watch)
  }
}
