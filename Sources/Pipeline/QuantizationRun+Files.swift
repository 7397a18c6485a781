import ActivationCache
import Checkpoint
import Export
import SystemIO

// What a run has on the disk until its output is published.
extension QuantizationRun {
  /// What an unfinished run has on the disk.
  struct Unpublished {
    var output: StagingDirectory?
    var cache: HiddenStatesStore?
    /// The right to a rank's cache.
    var lock: FileLock?
    /// Nothing is made or published any more.
    var isDiscarded = false
    /// The output stands in its place.
    var isPublished = false
  }

  /// Publishes the file alone, and the report beside it.
  func publishFile(of staging: StagingDirectory) throws {
    let place = Report.Place(beside: request.output)
    let files = try GGUFFiles.models(among: FileSystem.names(in: staging.path))
    precondition(files.count == 1, "the output has one model")
    try staging.publish([
      (Report.fileName, place.fileName), (ReportPage.fileName, place.pageName),
      (files[0], FileSystem.name(of: request.output)),
    ])
  }

  func makeFiles() throws -> (StagingDirectory?, HiddenStatesStore) {
    try unpublished.withLock { files in
      guard !files.isDiscarded else { throw PipelineError.interrupted }
      let staging = ranks.isChief ? try StagingDirectory(for: request.output) : nil
      let path = request.resume?.cache ?? cachePath
      let own = ranks.isChief ? path : opening.cache(path, of: ranks.rank)
      // A rank of before may be at work still, on a host that was cut off.
      if !ranks.isChief {
        try FileSystem.createDirectories(FileSystem.parent(of: own))
        files.lock = try FileLock(path: "\(own).lock", purpose: "working on \(path)")
      }
      let store = try HiddenStatesStore(
        path: own, elementType: request.cacheType ?? modelType,
        threads: backend.threads, isKept: request.resume != nil)
      (files.output, files.cache) = (staging, store)
      return (staging, store)
    }
  }

  /// Removes what an unfinished run has on the disk, for a process that is about to end; any thread may call it.
  /// - Returns: false if the output was published before
  public func discard() -> Bool {
    unpublished.withLock { files in
      if files.isPublished { return false }
      files.isDiscarded = true
      // The process ends whether or not its files could be removed.
      try? files.cache?.destroy()
      _ = files.output?.abandon()
      return true
    }
  }

  /// A cache that is damaged as often as this lies on a device that will not get better.
  private static let cacheAttempts = 4

  /// Runs `body`, and again if a value of the cache turns out to be damaged: it is deleted, and what its batch lacks by that
  /// is computed from the journal. Before the last attempt all goes, as whatever else is damaged would take one more.
  func mendingCache(
    _ store: HiddenStatesStore, _ progress: (ProgressEvent) -> Void, _ body: () throws -> Void
  ) throws {
    for attempt in 1..<Self.cacheAttempts where journal != nil || !ranks.isChief {
      do { return try body() } catch let error as CacheError {
        guard let key = error.damaged else { throw error }
        // The others are elsewhere: all begin again, and go on with what they have.
        if !ranks.isAlone {
          if request.resume != nil { try store.remove(key) }
          throw error
        }
        progress(.warning("\(error); what it held is computed again"))
        if attempt + 1 < Self.cacheAttempts { try store.remove(key) } else { try store.removeAll() }
      }
    }
    try body()
  }
}
