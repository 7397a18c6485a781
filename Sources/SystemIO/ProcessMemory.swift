import CLinux
import Glibc
import Synchronization
import SystemPackage

/// This process's resident memory, as `/proc/self/status` has it.
public struct ProcessMemory: Sendable {
  /// RssAnon: memory that the process allocated.
  public let anonymousBytes: Int
  /// RssFile: pages of mapped files, which the kernel takes back whenever it needs them.
  public let mappedFileBytes: Int
  /// VmHWM: the highest sum of both since the process began.
  public let peakResidentBytes: Int

  /// - Throws: ``FileError`` if `/proc` is not mounted.
  public static func current() throws(FileError) -> ProcessMemory {
    let path = "/proc/self/status"
    let bytes = try figures(path)
    guard let anonymous = bytes["RssAnon"], let file = bytes["RssFile"], let peak = bytes["VmHWM"]
    else { throw FileError(path: path, operation: .read, errno: .notSupported) }
    return ProcessMemory(
      anonymousBytes: anonymous, mappedFileBytes: file, peakResidentBytes: peak)
  }
}

extension ProcessMemory {
  /// What this process could allocate now without pushing others out: MemAvailable, or what the control group that it
  /// is in has left, as of a service with `MemoryMax=`, if that is less.
  ///
  /// A service with `ProcSubset=pid` sees no `/proc/meminfo`. There the figures of the memory nodes in `/sys` stand in,
  /// of which the kernel's own estimate is made, too: what is free, and what only caches hold, less a reserve. Without
  /// those, memory that nothing uses at all is a lower bound.
  /// - Parameters:
  ///   - meminfo: the kernel's account of the machine's memory
  ///   - nodes: the directory with a `node<N>/meminfo` for each memory node
  public static func availableBytes(
    meminfo: String = "/proc/meminfo", nodes: String = "/sys/devices/system/node",
    controlGroup: String = "/proc/self/cgroup", controlGroups: String = "/sys/fs/cgroup"
  ) throws(FileError) -> Int {
    let machine = try machineBytes(meminfo: meminfo, nodes: nodes)
    return min(machine, controlGroupBytes(controlGroup, below: controlGroups) ?? machine)
  }

  /// What the limits of a control group and of those above it leave; nil where there are none.
  private static func controlGroupBytes(_ file: String, below root: String) -> Int? {
    guard let text = try? FileSystem.contents(of: file, limit: 1 << 16) else { return nil }
    // The second version's line; the first has one for each kind of limit.
    let lines = String(decoding: text, as: UTF8.self).split(separator: "\n")
    guard let line = lines.first(where: { $0.hasPrefix("0::/") }) else { return nil }
    var directory = root
    var least: Int?
    for name in line.dropFirst(4).split(separator: "/") {
      directory = FileSystem.join(directory, String(name))
      let limits = ["memory.max", "memory.high"].compactMap { number(FileSystem.join(directory, $0)) }
      guard let limit = limits.min(), let used = number(FileSystem.join(directory, "memory.current")) else {
        continue
      }
      // What only caches hold is given up before the limit is felt.
      let statistics =
        (try? FileSystem.contents(of: FileSystem.join(directory, "memory.stat"), limit: 1 << 16)) ?? []
      let caches = String(decoding: statistics, as: UTF8.self).split(separator: "\n").reduce(0) { sum, line in
        let fields = line.split(separator: " ")
        let isCache = fields.first == "active_file" || fields.first == "inactive_file"
        return sum + (isCache ? fields.last.flatMap { Int($0) } ?? 0 : 0)
      }
      let left = max(0, limit - max(0, used - caches))
      least = min(least ?? left, left)
    }
    return least
  }

  /// The number that a file of a control group holds; nil for `max`, which is no limit.
  private static func number(_ path: String) -> Int? {
    guard let text = try? FileSystem.contents(of: path, limit: 64) else { return nil }
    return Int(String(decoding: text, as: UTF8.self).filter { !$0.isWhitespace })
  }

  private static func machineBytes(meminfo: String, nodes: String) throws(FileError) -> Int {
    if let bytes = try? figures(meminfo)["MemAvailable"] { return bytes }
    if let bytes = nodeBytes(nodes) { return bytes }
    return try FileError.attempt(.read, meminfo) { () throws(Errno) in try SystemCall.freeMemoryBytes() }
  }

  private static func nodeBytes(_ directory: String) -> Int? {
    guard let names = try? FileSystem.names(in: directory) else { return nil }
    var sum: Int?
    for name in names where name.hasPrefix("node") && Int(name.dropFirst(4)) != nil {
      guard let node = try? figures(FileSystem.join(directory, "\(name)/meminfo")),
        let total = node["MemTotal"], let free = node["MemFree"]
      else { return nil }
      let caches = ["Active(file)", "Inactive(file)", "SReclaimable"].reduce(0) { $0 + node[$1, default: 0] }
      // The kernel keeps some free for itself and lets caches not shrink to nothing; how much it does not show here.
      let reserve = max(total / 32, 256 << 20)
      sum = (sum ?? 0) + max(0, min(total, free + caches) - reserve)
    }
    return sum
  }

  /// The lines `Name: 123 kB` of a file, in bytes. In a node's file `Node 0` stands before the name.
  private static func figures(_ path: String) throws(FileError) -> [Substring: Int] {
    let text = String(decoding: try FileSystem.contents(of: path, limit: 1 << 20), as: UTF8.self)
    var bytes: [Substring: Int] = [:]
    // A process's file has sixty lines, and is read fifty times a second during a run.
    for line in text.split(separator: "\n") where line.hasSuffix("kB") {
      let fields = line.split { $0 == ":" || $0 == " " || $0 == "\t" }.suffix(3)
      guard fields.count == 3, fields.last == "kB", let name = fields.first,
        let kibibytes = Int(fields[fields.startIndex + 1]), kibibytes >= 0, kibibytes <= Int.max >> 20
      else { continue }
      bytes[name] = kibibytes * 1024
    }
    return bytes
  }
}

extension ProcessMemory {
  /// Blocks of at least this size go back to the kernel when they are freed.
  private static let largeBlock: Int32 = 1 << 17

  /// Has large blocks of the C library's allocator go back when they are freed, in the whole process and from now on.
  ///
  /// By itself it takes ever larger ones from its heap once some have been freed, and what lies between them keeps the
  /// heap from shrinking: a run of a small model held a hundred megabytes that nobody used.
  public static func returnLargeBlocks() {
    map_blocks_from(largeBlock)
  }
}

/// Watches the memory that the process has allocated, mapped files aside, and keeps the maximum.
///
/// The kernel keeps a peak only of the sum with mapped files; so a thread looks every 20 milliseconds.
public final class PeakMemorySampler: Sendable {
  private let state = SamplerState()

  public init() {
    state.sample()
    let context = unsafe Unmanaged.passRetained(state).toOpaque()
    var thread = pthread_t()
    let failure = unsafe pthread_create(
      &thread, nil,
      { context in
        guard let context = unsafe context else { return nil }
        let state = unsafe Unmanaged<SamplerState>.fromOpaque(context).takeRetainedValue()
        while !state.isStopped.load(ordering: .relaxed) {
          state.sample()
          usleep(20_000)
        }
        return nil
      }, context)
    if failure == 0 {
      pthread_detach(thread)
    } else {
      // No thread to spare: what remains are the samples at the beginning and the end.
      unsafe Unmanaged<SamplerState>.fromOpaque(context).release()
    }
  }

  deinit { state.isStopped.store(true, ordering: .relaxed) }

  /// The highest figure so far, in bytes.
  public var peakAnonymousBytes: Int {
    state.sample()
    return state.peak.load(ordering: .relaxed)
  }

  /// The highest figure since the last lap, or the beginning, in bytes; 0 without `/proc`.
  public func lap() -> Int {
    state.sample()
    return state.lap.exchange(0, ordering: .relaxed)
  }

  /// Ends the watch.
  /// - Returns: The highest figure seen, in bytes; 0 without `/proc`.
  @discardableResult
  public func stop() -> Int {
    defer { state.isStopped.store(true, ordering: .relaxed) }
    return state.isStopped.load(ordering: .relaxed)
      ? state.peak.load(ordering: .relaxed) : peakAnonymousBytes
  }
}

/// What the sampler and its thread share, so that the thread does not keep the sampler alive.
private final class SamplerState: Sendable {
  let peak = Atomic<Int>(0)
  let lap = Atomic<Int>(0)
  let isStopped = Atomic<Bool>(false)

  func sample() {
    guard let memory = try? ProcessMemory.current() else { return }
    peak.max(memory.anonymousBytes, ordering: .relaxed)
    lap.max(memory.anonymousBytes, ordering: .relaxed)
  }
}
