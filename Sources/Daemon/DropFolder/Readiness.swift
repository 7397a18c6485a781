import SystemIO

/// What is known of one drop from the scans so far, and the decision whether it is complete.
struct Readiness {
  static let markerName = ".ready"

  /// What holds for all drops of a scan.
  struct Circumstances {
    let now: ContinuousClock.Instant
    let settleTime: Duration
    let scansToSettle: Int
    let isNetworked: Bool
    let verifier: ManifestVerifier
    let hasNoWriter: (String) -> Bool?
  }

  /// What the next step waits for.
  enum Pace {
    case somethingToHappen, settling, verifying
  }

  let name: String
  let directory: String
  private(set) var contents: DropContents?
  private(set) var pace = Pace.somethingToHappen
  /// Whether the directory came by a rename; holds for the first decision only, because a directory that is
  /// not complete then is evidently still being filled.
  var cameByRename = false

  private var unchangedSince: ContinuousClock.Instant?
  private var unchangedScans = 0
  private var memo = CheckpointParts.Memo()
  private var manifests = StampedMemo<Manifest.Reading>()
  private var verifyAgainAt: ContinuousClock.Instant?
  /// Whether it was refused because it may not be read; holds until it may.
  private var isClosed = false

  init(name: String, directory: String) {
    self.name = name
    self.directory = directory
  }

  /// Looks at the drop and decides.
  mutating func decide(_ circumstances: Circumstances) -> Drop.State {
    pace = .somethingToHappen
    defer { cameByRename = false }
    do {
      let contents = try DropContents(directory: directory)
      note(contents, circumstances.now)
      return try decide(contents, circumstances)
    } catch let fault as DropContents.Fault {
      // What was not seen may have changed.
      contents = nil
      switch fault {
      case .unreadable(let error): return .waiting(reasons: [error.description])
      case .refused(let refusal): return refusal.state
      }
    } catch let refusal as DropRefusal {
      return refusal.state
    } catch {
      return .waiting(reasons: ["\(error)"])
    }
  }

  private mutating func note(_ found: DropContents, _ now: ContinuousClock.Instant) {
    if contents != found || unchangedSince == nil {
      unchangedSince = now
      unchangedScans = 0
    }
    unchangedScans += 1
    contents = found
  }

  /// The rules, the surest first.
  private mutating func decide(_ contents: DropContents, _ circumstances: Circumstances) throws -> Drop.State
  {
    let stamps = contents.stamps
    if let file = contents.unreadable {
      // Uploads close their files to others until they are complete; then they should not be any more.
      isClosed = isClosed || cameByRename || stamps[Self.markerName] != nil || hasSettled(circumstances)
      pace = .settling
      guard isClosed else {
        return .waiting(reasons: ["\(file.path.isEmpty ? name : file.path) may not be read yet"])
      }
      throw DropRefusal.unreadable(path: file.path, drop: name, mend: Self.mend(unreadable: directory))
    }
    isClosed = false
    let parts = try CheckpointParts(stamps, in: directory, memo: &memo, now: circumstances.now)
    if stamps[Self.markerName] != nil {
      // Whoever set the marker is not looking any more, so waiting for the rest would strand the drop
      // silently.
      guard parts.gaps.isEmpty else { throw DropRefusal.markedButIncomplete(Self.shortened(parts.gaps)) }
      return .ready(.marker)
    }
    var reasons = parts.gaps + contents.partialPaths.map { "\($0) has the name of an incomplete file" }
    let verdict = try manifestVerdict(stamps, parts, isComplete: reasons.isEmpty, circumstances)
    switch verdict {
    case .verified: return .ready(.manifest)
    case .waiting(let more): return .waiting(reasons: Self.shortened(reasons + more))
    case .none: break
    }
    if circumstances.isNetworked {
      reasons.append(
        "on a network file system only \(Self.markerName) or a \(Manifest.name) that lists every shard "
          + "shows that an upload is complete")
    }
    guard reasons.isEmpty else { return .waiting(reasons: Self.shortened(reasons)) }
    return settled(contents, circumstances)
  }

  private func hasSettled(_ circumstances: Circumstances) -> Bool {
    let age = unchangedSince.map { circumstances.now - $0 } ?? .zero
    return unchangedScans >= circumstances.scansToSettle && age >= circumstances.settleTime
  }

  /// The commands that open a directory to this process, for its owner or root.
  private static func mend(unreadable directory: String) -> String {
    let place = "'\(directory.replacing("'", with: "'\\''"))'"
    let open = "chmod -R g+rX \(place)"
    guard let group = UserDatabase.ownGroupName else {
      return "\(open), and give it to a group of user id \(UserDatabase.userIdentifier)"
    }
    return "chgrp -R \(group) \(place) && \(open); or remove it and use 'quantease submit', which copies"
  }

  private mutating func settled(_ contents: DropContents, _ circumstances: Circumstances) -> Drop.State {
    pace = .settling
    if hasSettled(circumstances) || cameByRename {
      let written = contents.files.first {
        circumstances.hasNoWriter(FileSystem.join(directory, $0.path)) == false
      }
      if let written { return .waiting(reasons: ["\(written.path) is open for writing"]) }
      return .ready(cameByRename ? .renamed : .settled)
    }
    return .waiting(reasons: ["complete, waits until nothing has changed for \(circumstances.settleTime)"])
  }

  // MARK: Manifest

  private enum ManifestVerdict {
    case verified
    case waiting([String])
    /// There is no manifest, or it does not speak of every shard: other rules decide.
    case none
  }

  private mutating func manifestVerdict(
    _ stamps: [String: FileStamp], _ parts: CheckpointParts, isComplete: Bool,
    _ circumstances: Circumstances
  ) throws(DropRefusal) -> ManifestVerdict {
    guard let stamp = stamps[Manifest.name] else { return .none }
    let path = FileSystem.join(directory, Manifest.name)
    let manifest: Manifest
    switch manifests.value(Manifest.name, stamp, now: circumstances.now, read: { Manifest.read(path) }) {
    case .manifest(let found): manifest = found
    case .unreadable(let reason): return .waiting([reason])
    case .refused(let refusal): throw refusal
    }
    let missing = manifest.entries.filter { stamps[$0.path] == nil }
    if !missing.isEmpty {
      return .waiting(missing.map { "\($0.path) is missing, \(Manifest.name) lists it" })
    }
    guard isComplete else { return .waiting([]) }
    let files = manifest.entries.compactMap { entry in
      stamps[entry.path].map {
        ManifestVerifier.Task.File(path: entry.path, digest: entry.digest, stamp: $0)
      }
    }
    switch outcome(.init(directory: directory, files: files), circumstances) {
    case nil: return .waiting(["verifying \(Manifest.name)"])
    case .unreadable(let reason): return .waiting([reason])
    case .differs(let paths):
      return .waiting(paths.map { "\($0) differs from its digest in \(Manifest.name)" })
    case .verified:
      let listed = Set(files.map(\.path))
      return parts.shards.allSatisfy(listed.contains) ? .verified : .none
    }
  }

  private mutating func outcome(
    _ task: ManifestVerifier.Task, _ circumstances: Circumstances
  ) -> ManifestVerifier.Outcome? {
    // Files that change between two scans are not worth hashing yet.
    guard unchangedScans >= 2 else {
      pace = .settling
      return nil
    }
    if let time = verifyAgainAt, circumstances.now >= time {
      verifyAgainAt = nil
      circumstances.verifier.forget(name)
    }
    let outcome = circumstances.verifier.outcome(of: name, task)
    if outcome == nil { pace = .verifying }
    // A fault of the disk or of permissions may pass without a change of the files.
    if case .unreadable = outcome, verifyAgainAt == nil { verifyAgainAt = circumstances.now + .seconds(300) }
    return outcome
  }

  /// As many reasons as a person reads.
  static func shortened(_ reasons: [String]) -> [String] {
    let limit = 8
    guard reasons.count > limit else { return reasons }
    return reasons.prefix(limit) + ["and \(reasons.count - limit) more"]
  }
}
