import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Daemon

@Suite struct UploadTests {
  /// Uploads under way, those that wait for their name to be free, and what was claimed.
  private struct Uploads {
    struct Active {
      var upload: SimulatedUpload
      var nextStep: Duration
    }

    var waiting: [SimulatedUpload]
    var active: [String: Active] = [:]
    var claimed: [(id: String, upload: SimulatedUpload, rule: Drop.Rule)] = []

    mutating func startSome(limit: Int, at time: Duration) {
      var index = 0
      while active.count < limit, index < waiting.count {
        if active[waiting[index].name] == nil {
          let upload = waiting.remove(at: index)
          active[upload.name] = Active(upload: upload, nextStep: time)
        } else {
          index += 1
        }
      }
    }

    mutating func advance(to time: Duration, _ fixture: DropFolderFixture) throws {
      for name in active.keys.sorted() {
        while let current = active[name], !current.upload.isDone, current.nextStep <= time {
          let pause = try active[name]?.upload.advance(fixture) ?? .zero
          active[name]?.nextStep = max(time, current.nextStep) + pause
        }
      }
    }
  }

  @Test func `of 1000 uploads none starts early, none is stranded, none starts twice`() throws {
    let fixture = try DropFolderFixture(isInMemory: true, hasNoWriter: { FileSystem.hasNoWriter($0) })
    var generator = SeededGenerator(seed: 20_240_914)
    // Names come again: an upload waits until the one before it under its name is claimed.
    var uploads = Uploads(
      waiting: (0..<1000).map { number in
        SimulatedUpload(name: "model-\(number % 613)", number: number, using: &generator)
      })
    var time = Duration.zero
    var idleScans = 0
    while !(uploads.waiting.isEmpty && uploads.active.isEmpty), idleScans < 500 {
      uploads.startSome(limit: 200, at: time)
      let pause = Duration.milliseconds(Int.random(in: 100...2_500, using: &generator))
      time += pause
      try uploads.advance(to: time, fixture)
      let before = uploads.claimed.count
      try claimWhatIsReady(fixture, after: pause, &uploads)
      idleScans = uploads.claimed.count == before ? idleScans + 1 : 0
      // What is left may be waiting for the thread that hashes, in real time.
      if idleScans > 50 { Pause.milliseconds(1) }
    }
    #expect(uploads.active.keys.sorted() == [], "stranded")
    #expect(uploads.claimed.count == 1000)
    #expect(try FileSystem.names(in: fixture.spool.incoming) == [])
    try check(uploads, fixture)
  }

  private func claimWhatIsReady(
    _ fixture: DropFolderFixture, after pause: Duration, _ uploads: inout Uploads
  ) throws {
    for drop in fixture.scan(after: pause) {
      guard let upload = uploads.active[drop.name]?.upload else {
        Issue.record("\(drop.name) is nobody's upload")
        continue
      }
      switch drop.state {
      case .waiting: continue
      case .refused(let refusal): Issue.record("\(drop.name), \(upload.manner): \(refusal.reason)")
      case .ready(let rule):
        #expect(upload.isComplete, "\(drop.name), \(upload.manner), starts early by \(rule)")
        // The uploader's last step, a marker, may not find its directory any more.
        if upload.manner == .marker, rule != .marker { continue }
        let id = "\(uploads.claimed.count)"
        try fixture.claim(drop.name, as: id)
        uploads.claimed.append((id, upload, rule))
        uploads.active[drop.name] = nil
      }
    }
  }

  private func check(_ uploads: Uploads, _ fixture: DropFolderFixture) throws {
    for (id, upload, rule) in uploads.claimed {
      let directory = FileSystem.join(fixture.spool.working, id)
      for (name, bytes) in upload.files {
        let found = try FileSystem.contents(of: FileSystem.join(directory, name), limit: 1 << 20)
        #expect(found == bytes)
      }
      let expected: [Drop.Rule] =
        switch upload.manner {
        case .plain, .partialNames: [.settled]
        case .renamedIn: [.renamed]
        // The late shard may come before anybody looks.
        case .renamedInTooEarly: [.settled, .renamed]
        case .marker: [.marker]
        case .manifest: [.manifest]
        }
      #expect(expected.contains(rule), "\(upload.name), \(upload.manner), \(rule)")
    }
    #expect(try FileSystem.names(in: fixture.spool.working).count == uploads.claimed.count)
  }

  @Test func `a scan of 1000 drops in which nothing happens takes little time`() throws {
    let fixture = try DropFolderFixture(isInMemory: true)
    for number in 0..<1000 {
      try fixture.append("{}", to: "model-\(number)/config.json")
      try fixture.append("x", to: "model-\(number)/model.safetensors")
    }
    for _ in 0..<3 { #expect(fixture.scan().count == 1000) }
    // This thread's own, whatever else the machine does.
    func processorSeconds() -> Double {
      var time = timespec()
      unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
      return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
    }
    let begin = processorSeconds()
    _ = fixture.scan()
    let seconds = processorSeconds() - begin
    // Four system calls and some text for each; a hundred times that would be felt.
    #expect(seconds < 1, "\(seconds)")
  }
}
