import Checkpoint
import SystemIO
import TestSupport
import Testing

@testable import Pipeline

/// What is made of the converter's end; a shell stands for its Python.
struct GGUFConverterTests {
  private let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  /// - Parameter script: gets the model, `--outtype auto --outfile`, and the file to write
  private func convert(by script: String) throws -> String {
    try FileSystem.removeTree(directory.file("convert.sh"))
    let program = try directory.write(script, to: "convert.sh")
    let file = directory.file("model.gguf")
    try GGUFConverter(program: program, python: "/bin/sh").convert(TestFiles.model("llama"), to: file)
    return file
  }

  private var leftovers: [String] {
    get throws { try FileSystem.names(in: directory.path).filter { $0.contains("gguf") } }
  }

  @Test func `a checkpoint becomes a file`() throws {
    let file = try convert(
      by: "test -f \"$1/config.json\" && test \"$2 $3 $4\" = '--outtype auto --outfile' && cp "
        + "\(TestFiles.gguf("llama.gguf")) \"$5\"")
    #expect(try CheckpointReader(gguf: file).gguf?.tensors.isEmpty == false)
    #expect(try leftovers == ["model.gguf"])
  }

  @Test func `code that a checkpoint brings has no place to be run from`() throws {
    let file = try convert(
      by: "test \"$HF_MODULES_CACHE $HF_HUB_OFFLINE\" = '/dev/null 1' && test -n \"$PATH\" && cp "
        + "\(TestFiles.gguf("llama.gguf")) \"$5\"")
    #expect(try FileSystem.exists(file))
  }

  @Test func `an error is told in the converter's words, and nothing is left`() throws {
    #expect(
      throws: GGUFConversionError.failed(
        model: TestFiles.model("llama"), status: 3, message: "no such architecture")
    ) { try convert(by: "echo half > \"$5\"; echo 'no such architecture' >&2; exit 3") }
    #expect(throws: GGUFConversionError.killed(model: TestFiles.model("llama"), signal: 9)) {
      try convert(by: "echo half > \"$5\"; kill -9 $$")
    }
    #expect(throws: GGUFError.self) { try convert(by: "echo no GGUF file > \"$5\"") }
    #expect(throws: FileError.self) { try convert(by: "true") }
    #expect(try leftovers == [])
  }

  @Test func `a program or an interpreter that is missing is the machine's fault`() throws {
    let file = directory.file("model.gguf")
    func code(_ converter: GGUFConverter) -> Int32? {
      do { try converter.convert(TestFiles.model("llama"), to: file) } catch { return sysexit(of: error) }
      return nil
    }
    #expect(code(GGUFConverter(program: directory.file("none.py"), python: "python3")) == 69)
    let program = try directory.write("", to: "convert.py")
    #expect(code(GGUFConverter(program: program, python: "no-such-python")) == 69)
  }

  @Test func `a plan has the file in between, and refuses none for its types`() throws {
    var settings = QuantizationSettings()
    settings.formats = [.gguf]
    let model = TestFiles.model("llama")
    let plan = try RunPlan(model: model, settings: settings, symlinks: .follow, hasConverter: true)
    let weights = try CheckpointReader(directory: model).tensors.values.reduce(0) {
      $0 + $1.shape.reduce(1, *)
    }
    #expect(plan.convertedBytes == 2 * weights && plan.resultBytes > 0)
    #expect(throws: (any Error).self) {
      try RunPlan(model: model, settings: settings, symlinks: .follow)
    }
    let file = TestFiles.gguf("llama.gguf")
    #expect(
      try RunPlan(model: file, settings: settings, symlinks: .follow, hasConverter: true).convertedBytes
        == nil)
  }
}
