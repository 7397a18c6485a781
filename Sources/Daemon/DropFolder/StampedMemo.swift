import SystemIO

/// What was read from files, for as long as they do not change.
struct StampedMemo<Value> {
  private struct Entry {
    let stamp: FileStamp
    let firstRead: ContinuousClock.Instant
    var isConfirmed: Bool
    var value: Value
  }

  /// A few ticks of the kernel's clock for files: a change within the tick of the one before leaves the
  /// stamp as it was. So what was read that soon is read once more.
  private static var clockUncertainty: Duration { .milliseconds(100) }

  private var entries: [String: Entry] = [:]

  /// The value for the file at `path`, read again only if its stamp is new.
  mutating func value(
    _ path: String, _ stamp: FileStamp, now: ContinuousClock.Instant, read: () -> Value
  ) -> Value {
    guard let entry = entries[path], entry.stamp == stamp else {
      let value = read()
      entries[path] = Entry(stamp: stamp, firstRead: now, isConfirmed: false, value: value)
      return value
    }
    if entry.isConfirmed { return entry.value }
    let value = read()
    entries[path]?.value = value
    entries[path]?.isConfirmed = now - entry.firstRead >= Self.clockUncertainty
    return value
  }

  /// Forgets files that are no longer there.
  mutating func prune(keeping stamps: [String: FileStamp]) {
    if entries.count > stamps.count { entries = entries.filter { stamps[$0.key] != nil } }
  }
}
