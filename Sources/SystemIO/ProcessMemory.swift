import Glibc
import Synchronization

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
    let text = String(decoding: try FileSystem.contents(of: path, limit: 1 << 20), as: UTF8.self)
    var bytes: [Substring: Int] = [:]
    for line in text.split(separator: "\n") {
      let fields = line.split { $0 == ":" || $0 == " " || $0 == "\t" }
      if fields.count == 3, fields[2] == "kB", let kibibytes = Int(fields[1]) {
        bytes[fields[0]] = kibibytes * 1024
      }
    }
    guard let anonymous = bytes["RssAnon"], let file = bytes["RssFile"], let peak = bytes["VmHWM"]
    else { throw FileError(path: path, operation: .read, errno: .notSupported) }
    return ProcessMemory(
      anonymousBytes: anonymous, mappedFileBytes: file, peakResidentBytes: peak)
  }
}

extension ProcessMemory {
  /// MemAvailable: what a process could allocate now without pushing others out.
  /// - Throws: ``FileError`` if `/proc` is not mounted.
  public static func availableBytes() throws(FileError) -> Int {
    let path = "/proc/meminfo"
    let text = String(decoding: try FileSystem.contents(of: path, limit: 1 << 20), as: UTF8.self)
    for line in text.split(separator: "\n") where line.hasPrefix("MemAvailable:") {
      if let kibibytes = line.split(separator: " ").dropFirst().first.flatMap({ Int($0) }) {
        return kibibytes * 1024
      }
    }
    throw FileError(path: path, operation: .read, errno: .notSupported)
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
  let isStopped = Atomic<Bool>(false)

  func sample() {
    guard let memory = try? ProcessMemory.current() else { return }
    peak.max(memory.anonymousBytes, ordering: .relaxed)
  }
}
