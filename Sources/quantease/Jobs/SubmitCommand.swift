import ArgumentParser
import Checkpoint
import Daemon
import Foundation
import Pipeline
import SystemIO

struct SubmitCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "submit", abstract: "Puts a checkpoint into the drop folder, complete in one step.",
    discussion: """
      Looks first whether the daemon would take it: that the weights are whole, the architecture is known, the recipe \
      has no unknown key and the calibration text exists. Then it copies the files, through links as model caches have \
      them, and lets them appear all at once. --move takes the directory itself, which must be on the drop folder's \
      file system.

      Example:
        quantease submit ~/models/llama --recipe w4.yaml --wait
      """)

  @Argument(
    help: ArgumentHelp("The checkpoint's directory, or a GGUF file.", valueName: "model"), completion: .file()
  )
  var model: String

  @Option(help: "The name of the drop and of the result. Default: the directory's, or the file's.")
  var name: String?

  @Option(
    help: ArgumentHelp("A file of settings for this job: it becomes its quantease.yaml.", valueName: "file"),
    completion: .file())
  var recipe: String?

  @Flag(help: "Move the checkpoint instead of copying it.")
  var move = false

  @Flag(help: "Only look whether the job would be taken, and say what it would need.")
  var dryRun = false

  @Flag(
    help:
      "Follow the job to its end. The exit code is 0 if it is published, and else what the job failed with.")
  var wait = false

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func validate() throws {
    if dryRun && wait { throw ValidationError("--dry-run makes no job to wait for") }
    if let name, name.isEmpty || name.contains("/") || name.hasPrefix(".") {
      throw ValidationError("--name is one name, and not hidden")
    }
  }

  func run() throws {
    let configuration = try options.configuration()
    let spool = Spool(root: configuration.spool)
    let source = URL(fileURLWithPath: model).standardizedFileURL.path
    let isFile = try CheckpointReader.ggufFile(of: source) == source
    guard let kind = try FileSystem.kind(of: source), isFile || kind == .directory else {
      let isThere = try FileSystem.exists(source)
      throw FileError(path: source, operation: .list, errno: isThere ? .notDirectory : .noSuchFileOrDirectory)
    }
    let files = isFile ? GGUFFiles.parts(of: FileSystem.name(of: source)) : nil
    let name = name ?? files.map { GGUFFiles.stem(of: $0[0]) } ?? FileSystem.name(of: source)
    let drop = FileSystem.join(spool.incoming, name)
    if try FileSystem.exists(drop) { throw SpoolError.alreadyThere(drop) }
    guard FileSystem.isWritable(spool.incoming) else {
      throw SpoolError.mayNotDrop(spool.incoming, group: FileSystem.groupName(of: spool.incoming))
    }
    let submission = try Submission(source: source, recipe: recipe, configuration: configuration)
    if dryRun { return try Self.show(submission, configuration) }
    if move, let files {
      try moveFiles(files, from: FileSystem.parent(of: source), to: drop)
    } else if move {
      if let recipe { try FileSystem.copyFile(recipe, to: FileSystem.join(source, JobFile.name)) }
      try AtomicFile.write("", to: FileSystem.join(source, ".ready"))
      try FileSystem.move(source, to: drop)
    } else {
      let staging = try StagingDirectory(for: drop)
      let interruption = try Interruption { staging.abandon() }
      do {
        try withExtendedLifetime(interruption) {
          try copy(files, from: files == nil ? source : FileSystem.parent(of: source), to: staging.path)
          try finish(staging)
        }
      } catch {
        // The process may end without this object's.
        _ = staging.abandon()
        throw error
      }
    }
    try Console.line(
      "\(name) is in \(spool.incoming); 'quantease why \(name)\(options.asTyped)' tells what becomes of it")
    if wait { try JobWatch(name, options).follow() }
  }

  /// What the job would need.
  private static func show(_ submission: Submission, _ configuration: DaemonConfiguration) throws {
    Console.useBestKernels()
    let budget = try configuration.memoryGB.map { Int($0 * 1e9) } ?? ProcessMemory.availableBytes()
    let needs = try Needs(
      submission.plan,
      backend: configuration.device.backend(
        threads: configuration.threads, isExact: submission.plan.settings.precision == .exact
      ) { Console.note("quantease: warning: \($0)") },
      budgetBytes: budget, states: configuration.states,
      places: Needs.Places(
        output: configuration.spool, journal: configuration.spool, cache: configuration.cacheDirectory))
    for line in needs.lines { try Console.line(line) }
    try Console.line("nothing was copied")
  }

  /// Gathers files in a directory beside them, which nobody else touches, and moves that: whatever ends this, they are in
  /// one of the three places.
  private func moveFiles(_ files: [String], from directory: String, to drop: String) throws {
    for file in files {
      let path = FileSystem.join(directory, file)
      // A link moved is no file moved.
      guard try FileSystem.kind(of: path, symlinks: .refuse) == .regular else { throw SpoolError.link(path) }
    }
    let gathering = FileSystem.join(directory, ".\(FileSystem.name(of: drop)).submitting")
    try FileSystem.createDirectories(gathering)
    do {
      for file in files {
        try FileSystem.move(FileSystem.join(directory, file), to: FileSystem.join(gathering, file))
      }
      if let recipe { try FileSystem.copyFile(recipe, to: FileSystem.join(gathering, JobFile.name)) }
      try AtomicFile.write("", to: FileSystem.join(gathering, ".ready"))
      try FileSystem.move(gathering, to: drop)
    } catch {
      for file in files where try FileSystem.exists(FileSystem.join(gathering, file)) {
        try FileSystem.move(FileSystem.join(gathering, file), to: FileSystem.join(directory, file))
      }
      try FileSystem.removeTree(gathering)
      throw error
    }
  }

  private func finish(_ staging: StagingDirectory) throws {
    if let recipe {
      let place = FileSystem.join(staging.path, JobFile.name)
      try FileSystem.removeTree(place)
      try FileSystem.copyFile(recipe, to: place)
    }
    // Complete by its marker, should no daemon see the renaming.
    try AtomicFile.write("", to: FileSystem.join(staging.path, ".ready"))
    try staging.publish()
  }

  /// - Parameter files: those that are copied; all that are not hidden if nil
  private func copy(_ files: [String]?, from source: String, to target: String) throws {
    for name in try files ?? FileSystem.names(in: source).filter({ !$0.hasPrefix(".") }) {
      let path = FileSystem.join(source, name)
      guard try FileSystem.kind(of: path) == .regular else { continue }
      Console.note("copying \(name), \(Console.bytes(try FileSystem.fileSize(path)))")
      try FileSystem.copyFile(path, to: FileSystem.join(target, name))
    }
  }
}

/// Follows a job that has just been dropped.
private struct JobWatch {
  private let name: String
  private let options: SpoolOptions
  private let start = Date().timeIntervalSince1970

  init(_ name: String, _ options: SpoolOptions) {
    self.name = name
    self.options = options
  }

  private static let interval: TimeInterval = 1
  /// A daemon that starts, or takes up a drop, needs a moment.
  private static let patience: TimeInterval = 10

  /// Returns when the result is published.
  /// - Throws: ``SpoolError`` if it comes to nothing, or nobody is there to do it
  func follow() throws {
    var said = ""
    var withoutDaemonSince: Date?
    while true {
      let view = try SpoolView(options)
      if let drop = view.drops.first(where: { $0.name == name }), case .refused(let refusal) = drop.state {
        throw SpoolError.refused(name, refusal.reason, mend: refusal.mend)
      }
      // The newest of the name; one that was over before is another.
      if let job = view.jobs.last(where: { $0.name == name && ($0.finishedAt ?? .infinity) >= start }) {
        switch job.phase {
        case .published: return try Console.line("\(job.id) is published: \(job.output ?? view.spool.output)")
        case .failed:
          throw SpoolError.failed(job.id, job.failure?.message ?? "", code: job.failure?.code ?? 70)
        case .cancelled: throw SpoolError.failed(job.id, "it was cancelled", code: 75)
        case .queued, .running, .publishing: say(Self.text(job), after: &said)
        }
      }
      if view.snapshot.service == .running {
        withoutDaemonSince = nil
      } else {
        let since = withoutDaemonSince ?? Date()
        withoutDaemonSince = since
        if Date().timeIntervalSince(since) > Self.patience { throw SpoolError.noDaemon(name) }
      }
      Thread.sleep(forTimeInterval: Self.interval)
    }
  }

  private static func text(_ job: JobRecord) -> String {
    if let reason = job.pausedBecause { return "paused, and tried again by itself: \(reason)" }
    if job.phase == .queued { return "waits for its turn" }
    guard let count = job.plan?.linearCount, !job.linears.isEmpty else { return job.step }
    let left = job.secondsRemaining.map { ", \(Console.time($0)) left" } ?? ""
    return "\(job.linears.count) of \(count) linears\(left)"
  }

  private func say(_ text: String, after said: inout String) {
    if text != said { Console.note(text) }
    said = text
  }
}
