import Calibration
import Collective
import Pipeline
import SystemIO
import Testing

@testable import Daemon

/// What an error asks for: space, a mended machine, another try, or another checkpoint.
struct JobFailureTests {
  private func kind(_ error: any Error) -> JobFailure.Kind { JobFailure(error).kind }

  @Test func `what the machine lacks is waited for, and what the job lacks fails it`() {
    let lacking: [any Error] = [
      CalibrationError.tokenizerUnavailable(interpreter: "python3", reason: "no such program"),
      CalibrationError.tokenizerFailed(status: 69, message: "python3: no module named tokenizers"),
      PipelineError.notEnoughMemory(needed: 2, available: 1, phase: .descending, mend: "free memory"),
      FileError(path: "/output", operation: .create, errno: .permissionDenied),
      ResumableJobError.networkedCache("/nfs/cache"),
    ]
    for error in lacking { #expect(kind(error) == .blocked, "\(error)") }
    #expect(kind(CalibrationError.tokenizerFailed(status: 65, message: "tokenizer.json: broken")) == .job)
    #expect(kind(FileError(path: "/output/x", operation: .write, errno: .noSpace)) == .noSpace)
    #expect(kind(FileError(path: "/output/x", operation: .synchronize, errno: .ioError)) == .broken)
  }

  /// Through however many ranks the first one hears of it.
  @Test func `what ends another rank ends the job as it would by itself`() {
    let errors: [(any Error, JobFailure.Kind)] = [
      (FileError(path: "/cache/x", operation: .write, errno: .noSpace), .blocked),
      (ResumableJobError.networkedCache("/nfs/cache"), .blocked),
      (
        PipelineError.notEnoughMemory(needed: 2, available: 1, phase: .descending, mend: "free memory"),
        .blocked
      ),
      (PipelineError.zeroWeights(tensor: "x.weight", rows: 0..<16), .job),
      (CalibrationError.tokenizerFailed(status: 65, message: "tokenizer.json: broken"), .job),
      (RankError.silent(RankName(rank: 2, host: "node2"), missing: "input 1", seconds: 120), .broken),
      (RankError.gone(RankName(rank: 2, host: "node2")), .broken),
      (FileError(path: "/output/x", operation: .synchronize, errno: .ioError), .broken),
    ]
    for (error, expected) in errors {
      var failure = JobFailure(error)
      for rank in [3, 1] {
        let told = RankError.failed(
          RankName(rank: rank, host: "node\(rank)"), reason: "\(error)", status: failure.statusAmongRanks)
        failure = JobFailure(told)
        #expect(failure.kind == expected, "\(error)")
      }
    }
  }

  @Test(arguments: [
    (
      "ask for --samples 3 or a shorter --sequence-length",
      "ask for 'samples: 3' in quantease.yaml or a shorter 'sequence-length'"
    ),
    ("take --target layer, which needs 3 GB", "take 'target: layer' in quantease.yaml, which needs 3 GB"),
    ("take --sequence-length 512", "take 'sequence-length: 512' in quantease.yaml"),
    ("python3 --version says nothing of --output", "python3 --version says nothing of --output"),
    (
      "and set QUANTEASE_PYTHON to its interpreter",
      "and set 'python' in the daemon's configuration to its interpreter"
    ),
  ])
  func `a job's failure speaks of settings, and not of a command's options`(text: String, words: String) {
    #expect(JobFailure.inJobWords(text) == words)
  }
}
