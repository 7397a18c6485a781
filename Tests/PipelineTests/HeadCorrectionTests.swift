import Checkpoint
import Export
import SystemIO
import TestSupport
import Testing

@testable import Pipeline

/// Heads that make up for what the layers have lost.
struct HeadCorrectionTests {
  private static let cases = [
    ResumeCase("llama") { _ in },
    ResumeCase("llama", "rotated") { $0.rotate = .residual },
    ResumeCase("llama-tied", "rotated") { $0.rotate = .residual },
    ResumeCase("mixtral") { _ in },
    ResumeCase("llama", "two formats") { $0.formats = [.dense, .compressedTensors] },
  ]

  @Test(arguments: cases)
  func `a corrected head is closer to the original's predictions`(_ test: ResumeCase) throws {
    func bench(_ correctsHead: Bool) throws -> ResumeBench {
      var test = test
      test.settings.bits = 2
      (test.settings.correctHead, test.settings.targetShare) = (correctsHead, 1)
      return try ResumeBench(test)
    }
    let (plain, corrected) = (try bench(false), try bench(true))
    for bench in [plain, corrected] { _ = try bench.uninterrupted() }
    let expected = try plain.predictions(of: test.path)
    func output(_ bench: ResumeBench) -> String {
      bench.directory.file(test.settings.formats.count > 1 ? "expected/dense" : "expected")
    }
    func error(_ bench: ResumeBench) throws -> Float { try bench.error(of: output(bench), from: expected) }
    let (before, after) = (try error(plain), try error(corrected))
    #expect(after < 0.95 * before, "\(after) for \(before)")
    #expect(try plain.report().correctedHead == nil)
    let name = try #require(try corrected.report().correctedHead)
    // It is told of the tensor that differs, and of no other: all else is as without a correction.
    func others(_ bench: ResumeBench) throws -> [String: [UInt8]] {
      try tensorBytes(of: output(bench)).filter { $0.key != name }
    }
    #expect(try others(plain) == others(corrected))
  }

  @Test(arguments: [
    ResumeCase("llama", "the layers' own outputs") { $0.target = .layer },
    ResumeCase("llama", "GPTQ") { $0.solver = .gptq },
    ResumeCase("llama-tied") { _ in },
  ])
  func `a head stays as it is where nothing is known to correct, or the embeddings are the same`(
    _ test: ResumeCase
  ) throws {
    let bench = try ResumeBench(test)
    let result = try bench.uninterrupted()
    #expect(try bench.report().correctedHead == nil)
    var other = test
    other.settings.correctHead = false
    #expect(try ResumeBench(other).uninterrupted() == result)
  }

  /// Older clients take the embeddings for the head then, whatever is stored.
  @Test(arguments: [true, nil])
  func `a head that config.json does not call the model's own stays as it is`(_ tie: Bool?) throws {
    let directory = try TemporaryDirectory(isInMemory: true)
    let source = TestFiles.model("llama")
    try FileSystem.copyFile(
      FileSystem.join(source, "model.safetensors"), to: directory.file("model.safetensors"))
    var configuration = try #require(try CheckpointReader(directory: source).configuration.object)
    #expect(configuration["tie_word_embeddings"]?.bool == false)
    configuration["tie_word_embeddings"] = tie.map { .bool($0) }
    try directory.write(JSONValue.object(configuration).compactText, to: "config.json")
    let bench = try ResumeBench(ResumeCase(directory.path) { _ in })
    _ = try bench.uninterrupted()
    #expect(try bench.report().correctedHead == nil)
  }
}
