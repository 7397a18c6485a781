import Calibration
import Foundation
import SystemIO
import TestSupport
import Testing

/// The interpreter that tokenizes.
private enum Python {
  static func has(_ packages: String) -> Bool { (try? run("import \(packages)")) != nil }

  static func run(_ program: String) throws {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [Tokenizer().interpreter, "-c", program]
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    if process.terminationStatus != 0 { throw Failure() }
  }

  struct Failure: Error {}
}

/// The helper process, with a tokenizer of whole words.
@Suite(
  .enabled(if: Python.has("tokenizers, zstandard"), "needs a Python with tokenizers; set QUANTEASE_PYTHON"))
struct TokenizerTests {
  private let model: TemporaryDirectory

  init() throws {
    model = try TemporaryDirectory()
    // It puts `<s>` first, truncates and pads: the first is the tokenizer's own, the others are no good here.
    try model.write(
      """
      {"version":"1.0",
      "truncation":{"direction":"Right","max_length":3,"strategy":"LongestFirst","stride":0},
      "padding":{"strategy":{"Fixed":20},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,
      "pad_type_id":0,"pad_token":"<s>"},
      "added_tokens":[{"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,
      "normalized":false,"special":true}],
      "normalizer":null,"pre_tokenizer":{"type":"Split","pattern":{"String":" "},"behavior":"Removed","invert":false},
      "post_processor":{"type":"TemplateProcessing",
      "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
      "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],
      "special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}},
      "decoder":null,
      "model":{"type":"WordLevel","vocab":{"<s>":0,"one":1,"two":2,"three":3,"two\\n\\none":4,"one\\r\\n":5,"?":6},
      "unk_token":"?"}}
      """, to: "tokenizer.json")
  }

  @Test func `a text is tokenized whole, with the tokenizer's own special tokens`() throws {
    #expect(try tokenize("three two one two three", as: "text.txt") == [0, 3, 2, 1, 2, 3])
  }

  @Test func `line ends stay as they are`() throws {
    #expect(try tokenize("two one\r\n", as: "text.txt") == [0, 2, 5])
  }

  @Test func `documents of a jsonl file are joined by an empty line`() throws {
    let lines = """
      {"text": "one two", "id": 7}

      {"text": "one three"}

      """
    #expect(try tokenize(lines, as: "text.jsonl") == [0, 1, 4, 3])
  }

  @Test func `a byte order mark is no part of a text, and half a character is a question mark`() throws {
    #expect(try tokenize("\u{FEFF}one two", as: "text.txt") == [0, 1, 2])
    #expect(try tokenize("\u{FEFF}{\"text\": \"one \\ud800 two\"}", as: "text.jsonl") == [0, 1, 6, 2])
  }

  @Test func `a compressed text is decompressed`() throws {
    let text = Array("one two three".utf8)
    // A zstd frame by hand: one raw block, its size in the header, no checksum.
    let size = UInt8(text.count)
    let frame = [0x28, 0xB5, 0x2F, 0xFD, 0x20, size, 1 | size << 3, 0, 0] + text
    let path = try model.write(frame, to: "text.txt.zst")
    #expect(try Tokenizer().tokenize(text: path, model: model.path).rows == [[0, 1, 2, 3]])
    let cut = try model.write(Array(frame.dropLast(2)), to: "cut.txt.zst")
    try expectFailure(65, cut) { try Tokenizer().tokenize(text: cut, model: model.path) }
  }

  @Test func `an empty text has no tokens but the special ones`() throws {
    #expect(try tokenize("", as: "text.txt") == [0])
  }

  @Test func `without a tokenizer.json, GPT-2's files are read`() throws {
    let other = try TemporaryDirectory()
    try other.write(
      ##"{"<s>":0,"o":1,"n":2,"e":3,"Ġ":4,"on":5,"one":6,"Ġone":7,"Ċ":8}"##, to: "vocab.json")
    try other.write("#version: 0.2\no n\non e\nĠ one\n", to: "merges.txt")
    let text = try other.write("one one\non", to: "text.txt")
    func ids() throws -> [Int32] {
      try Tokenizer().tokenize(text: text, model: other.path).rows.flatMap { $0 }
    }
    #expect(try ids() == [6, 7, 8, 5])
    try other.write(
      ##"{"add_bos_token": true, "bos_token": {"content": "<s>"}}"##, to: "tokenizer_config.json")
    #expect(try ids() == [0, 6, 7, 8, 5])
    try FileSystem.removeTree(other.file("tokenizer_config.json"))
    try other.write(##"{"add_bos_token": true, "bos_token": "</s>"}"##, to: "tokenizer_config.json")
    try expectFailure(65, "tokenizer_config.json", "bos_token") { try ids() }
  }

  @Test(.enabled(if: Python.has("sentencepiece"), "needs a Python with sentencepiece"))
  func `a tokenizer.model is read by sentencepiece`() throws {
    let other = try TemporaryDirectory()
    let lines = (0..<200).map { "the \($0) houses of the town are \($0 * 7) feet high" }
    let corpus = try other.write(lines.joined(separator: "\n"), to: "corpus.txt")
    try Python.run(
      """
      import sentencepiece
      sentencepiece.SentencePieceTrainer.train(
          input="\(corpus)", model_prefix="\(other.file("tokenizer"))", vocab_size=60, minloglevel=2)
      """)
    let text = try other.write("the town of the houses", to: "text.txt")
    func ids() throws -> [Int32] {
      try Tokenizer().tokenize(text: text, model: other.path).rows.flatMap { $0 }
    }
    let withFirst = try ids()
    #expect(withFirst.first == 1 && withFirst.count > 3)
    try other.write(##"{"add_bos_token": false}"##, to: "tokenizer_config.json")
    #expect(try ids() == Array(withFirst.dropFirst()))
    try FileSystem.removeTree(other.file("tokenizer.model"))
    try other.write("no model", to: "tokenizer.model")
    try expectFailure(65, "tokenizer.model", "get the file anew") { try ids() }
  }

  // MARK: Conversations

  private static let template = """
    {{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}
    {{ message.content }}{% if not loop.last %} {% endif %}
    {% if message.role == 'assistant' %}{% generation %}two{% endgeneration %}{% endif %}
    {% endfor %}
    """

  private func chat(_ lines: String, template: String? = Self.template, named name: String = "chat.jsonl")
    throws
    -> [Int32]
  {
    var settings: [String: Any] = ["bos_token": ["content": "<s>"]]
    settings["chat_template"] = template
    try AtomicFile.write(
      Array(try JSONSerialization.data(withJSONObject: settings)), to: model.file("tokenizer_config.json"))
    try FileSystem.removeTree(model.file(name))
    return try tokenize(lines, as: name)
  }

  @Test(.enabled(if: Python.has("jinja2"), "needs a Python with jinja2"))
  func `conversations become text by the model's chat template, with its special tokens alone`() throws {
    let lines = """
      {"messages": [{"role": "system", "content": "three"}, {"role": "user", "content": "one"}]}
      {"conversations": [{"from": "human", "value": "three"}, {"from": "gpt", "value": "one "}]}
      """
    #expect(try chat(lines) == [0, 1, 0, 3, 1, 2])
    try model.write("{{ messages[0].role | length }}{% if tools %}one{% endif %}?", to: "chat_template.jinja")
    // In place of the settings'; what is no word of the vocabulary is an unknown one.
    #expect(try chat(lines).count == 2)
  }

  @Test func `a text is one, whatever stands beside it`() throws {
    let lines = ##"{"text": "one two", "messages": [{"role": "user", "content": "three"}]}"##
    #expect(try chat(lines) == [0, 1, 2])
  }

  @Test(.enabled(if: Python.has("jinja2"), "needs a Python with jinja2"))
  func `templates have what transformers gives them`() throws {
    let line = ##"{"messages": [{"role": "user", "content": "one"}], "tools": "[{\"b\": 2, \"a\": 1}]"}"##
    // `{"a":1,"b":2}` has 13 characters, and a variable of a generation block ends with it.
    let template = """
      {% set word = 'one' %}{% generation %}{% set word = 'two' %}{% endgeneration %}{{ word }} \
      {% if tools[0] | tojson(separators=(',', ':'), sort_keys=true) | length == 13 %}three{% endif %}
      """
    #expect(try chat(line, template: template) == [1, 3])
  }

  @Test(.enabled(if: Python.has("jinja2"), "needs a Python with jinja2"))
  func `what is no conversation, or has no template, is told with its line`() throws {
    let good = ##"{"messages": [{"role": "user", "content": "one"}]}"##
    for bad in [
      ##"{"text": "one"}"##, ##"{"conversations": [{"from": ["gpt"], "value": "one"}]}"##,
      ##"{"messages": []}"##, ##"{"messages": ["one"]}"##, "no object",
    ] {
      try expectFailure(65, "chat.jsonl, line 2", "messages") { try chat("\(good)\n\(bad)") }
    }
    try expectFailure(65, "no chat template", "`text`") { try chat(good, template: nil) }
    try expectFailure(65, "cannot be read") { try chat(good, template: "{% if %}") }
    try expectFailure(65, "chat.jsonl, line 1", "roles must alternate") {
      try chat(good, template: "{{ raise_exception('roles must alternate') }}")
    }
    let other = try TemporaryDirectory()
    for name in ["vocab.json", "merges.txt"] { try other.write("", to: name) }
    try other.write(##"{"chat_template": "{{ messages }}"}"##, to: "tokenizer_config.json")
    try AtomicFile.write(Array(##"{"o":1}"##.utf8), to: other.file("vocab.json"))
    try AtomicFile.write(Array("#version: 0.2\n".utf8), to: other.file("merges.txt"))
    let lines = try other.write(good, to: "lines.jsonl")
    try expectFailure(65, "take a tokenizer.json", "save_pretrained") {
      try Tokenizer().tokenize(text: lines, model: other.path)
    }
    // A template is of whoever made the model.
    try expectFailure(65, "chat.jsonl, line 1", "unsafe") {
      try chat(good, template: "{{ messages.__class__.__mro__ }}")
    }
  }

  @Test func `a missing tokenizer is named, with a way to make it`() throws {
    let other = try TemporaryDirectory()
    let text = try other.write("one", to: "text.txt")
    try expectFailure(66, "tokenizer.json", "save_pretrained") {
      try Tokenizer().tokenize(text: text, model: other.path)
    }
  }

  @Test(arguments: [
    ("text.md", "one", 65, "text.md"),
    ("text.jsonl", "{\"text\": \"one\"}\n{\"body\": \"two\"}", 65, "line 2"),
    ("text.jsonl", "{\"text\": 3}", 65, "line 1"),
    ("text.jsonl", "plain text", 65, "line 1"),
  ])
  func `a text that cannot be read is named`(
    _ name: String, _ content: String, _ status: Int32, _ mention: String
  ) throws {
    try expectFailure(status, name, mention) { try tokenize(content, as: name) }
  }

  @Test func `bytes that are no UTF-8 are counted`() throws {
    let path = try model.write([0x6F, 0x6E, 0xFF], to: "latin.txt")
    try expectFailure(65, "byte 2") { try Tokenizer().tokenize(text: path, model: model.path) }
  }

  @Test func `a missing text is named`() throws {
    try expectFailure(66, "nowhere.txt") {
      try Tokenizer().tokenize(text: model.file("nowhere.txt"), model: model.path)
    }
  }

  private func tokenize(_ text: String, as name: String) throws -> [Int32] {
    let path = try model.write(text, to: name)
    let rows = try Tokenizer().tokenize(text: path, model: model.path)
    #expect(rows.name == path)
    return rows.rows.flatMap { $0 }
  }

  private func expectFailure(
    _ status: Int32, _ mentions: String..., sourceLocation: SourceLocation = #_sourceLocation,
    _ body: () throws -> Any
  ) throws {
    let error = try #require(throws: CalibrationError.self, sourceLocation: sourceLocation) { _ = try body() }
    #expect(error.exitCode == status, sourceLocation: sourceLocation)
    for mention in mentions {
      #expect("\(error)".contains(mention), "\(error)", sourceLocation: sourceLocation)
    }
  }
}

struct MissingInterpreterTests {
  @Test func `a missing interpreter is named, with a way around it`() throws {
    let tokenizer = Tokenizer(environment: ["QUANTEASE_PYTHON": "/nowhere/python3"])
    let error = try #require(throws: CalibrationError.self) {
      try tokenizer.tokenize(text: "text.txt", model: "model")
    }
    #expect(error == .tokenizerUnavailable(interpreter: "/nowhere/python3", reason: "no such program"))
    #expect(error.exitCode == 69)
    #expect("\(error)".contains("token ids"))
  }

  @Test func `an interpreter that the kernel ended is said to be`() throws {
    let directory = try TemporaryDirectory()
    let script = try directory.write("#!/bin/sh\nkill -9 $$\n", to: "python")
    try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: script)
    let error = try #require(throws: CalibrationError.self) {
      try Tokenizer(interpreter: script).tokenize(text: "text.txt", model: "model")
    }
    #expect(error.exitCode == 70)
    #expect("\(error)".contains("\(script) was ended by signal 9") && "\(error)".contains("memory"))
  }

  @Test func `the interpreter is python3 unless the environment names one`() {
    #expect(Tokenizer(environment: [:]).interpreter == "python3")
    #expect(Tokenizer(environment: ["QUANTEASE_PYTHON": "/opt/python"]).interpreter == "/opt/python")
  }
}

/// The tokenizer that a GGUF file carries.
@Suite(.enabled(if: Python.has("tokenizers"), "needs a Python with tokenizers; set QUANTEASE_PYTHON"))
struct GGUFTokenizerTests {
  private let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  /// A value of a key, as the file has it.
  private enum Value {
    case text(String)
    case texts([String])
    case numbers([Int32])
    case scores([Float])
    case number(UInt32)
    case flag(Bool)
  }

  private func file(_ keys: [(String, Value)]) throws -> String {
    var file = GGUFBytes(tensors: 0, keys: keys.count)
    func append(array kind: UInt32, _ count: Int) {
      file.append(UInt32(9))
      file.append(kind)
      file.append(UInt64(count))
    }
    for (key, value) in keys {
      file.append(key)
      switch value {
      case .text(let text):
        file.append(UInt32(8))
        file.append(text)
      case .texts(let texts):
        append(array: 8, texts.count)
        for text in texts { file.append(text) }
      case .numbers(let numbers):
        append(array: 5, numbers.count)
        for number in numbers { file.append(number) }
      case .scores(let scores):
        append(array: 6, scores.count)
        for score in scores { file.append(score.bitPattern) }
      case .number(let number):
        file.append(UInt32(4))
        file.append(number)
      case .flag(let flag):
        file.append(UInt32(7))
        file.append(UInt8(flag ? 1 : 0))
      }
    }
    return try directory.write(
      file.bytes, to: "model-\(keys.count)-\(UInt64.random(in: 0...UInt64.max)).gguf")
  }

  private func ids(_ text: String, by model: String) throws -> [Int32] {
    try TokenRows(
      file: directory.write(text, to: "text-\(UInt64.random(in: 0...UInt64.max)).txt"), model: model
    ).rows[0]
  }

  private static let tokens = ["a", "b", "Ġ", "ab", "Ġab", "1", "11", "<s>", "<x>"]
  private func byteLevel(_ pre: String) -> [(String, Value)] {
    [
      ("tokenizer.ggml.model", .text("gpt2")), ("tokenizer.ggml.pre", .text(pre)),
      ("tokenizer.ggml.tokens", .texts(Self.tokens)),
      ("tokenizer.ggml.token_type", .numbers([1, 1, 1, 1, 1, 1, 1, 3, 4])),
      ("tokenizer.ggml.merges", .texts(["a b", "Ġ ab", "1 1"])), ("tokenizer.ggml.bos_token_id", .number(7)),
      ("tokenizer.ggml.add_bos_token", .flag(true)), ("general.architecture", .text("llama")),
    ]
  }

  @Test func `pairs are merged, special tokens stand for themselves, and the first token is put first`()
    throws
  {
    #expect(try ids("ab ab<x>ba", by: file(byteLevel("gpt-2"))) == [7, 3, 4, 8, 1, 0])
  }

  @Test func `a text is cut as the file's name for it says`() throws {
    // Words of digits, one digit at a time, or three.
    #expect(try ids("11", by: file(byteLevel("gpt-2"))) == [7, 6])
    #expect(try ids("11", by: file(byteLevel("qwen2"))) == [7, 5, 5])
    #expect(try ids("11", by: file(byteLevel("llama-bpe"))) == [7, 6])
  }

  @Test func `sentencepiece's pairs are merged by their scores, and what is unknown is bytes`() throws {
    let tokens = ["<unk>", "<s>", "</s>", "<0x63>", "▁", "a", "b", "ab", "▁a", "▁ab"]
    let keys: [(String, Value)] = [
      ("tokenizer.ggml.model", .text("llama")), ("tokenizer.ggml.tokens", .texts(tokens)),
      ("tokenizer.ggml.token_type", .numbers([2, 3, 3, 6, 1, 1, 1, 1, 1, 1])),
      ("tokenizer.ggml.scores", .scores([0, 0, 0, 0, -9, -8, -7, -2, -1, -3])),
    ]
    #expect(try ids("ab abc", by: file(keys)) == [1, 9, 9, 3])
    let joined =
      keys + [
        ("tokenizer.ggml.add_space_prefix", .flag(false)), ("tokenizer.ggml.add_bos_token", .flag(false)),
      ]
    #expect(try ids("ab", by: file(joined)) == [7])
  }

  @Test func `the files of llama.cpp's converter are read, and the first part has the tokenizer of all`()
    throws
  {
    #expect(try ids("ABBA", by: TestFiles.gguf("llama.gguf")) == [0, 1, 1, 0])
    #expect(try ids("ABBA", by: TestFiles.gguf("gemma.gguf")) == [1, 3, 4, 4, 3])
  }

  @Test func `an unknown tokenizer is an error that says so, unless there is another one beside the file`()
    throws
  {
    let model = try file(byteLevel("some-new-one"))
    #expect { try ids("ab", by: model) } throws: { error in
      "\(error)".contains("some-new-one") && "\(error)".contains("tokenizer.json")
    }
    try directory.write(
      """
      {"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,
      "post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"ab":5,"?":6},"unk_token":"?"}}
      """, to: "tokenizer.json")
    #expect(try ids("ab", by: model) == [5])
  }

  @Test(arguments: [20, 40, 150])
  func `a header that ends too early is an error`(_ count: Int) throws {
    let bytes = try FileSystem.contents(of: file(byteLevel("gpt-2")), limit: 1 << 20)
    let model = try directory.write(Array(bytes.prefix(count)), to: "cut.gguf")
    #expect { try ids("ab", by: model) } throws: { "\($0)".contains("damaged") }
  }
}
