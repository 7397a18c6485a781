import Daemon
import SystemIO
import TestSupport
import Testing

/// The configuration file that is installed must say what the program does.
struct ExampleFileTests {
  private let example = TestFiles.repositoryFile("config/quanteased.yaml")

  @Test func `the example file as it is installed changes nothing`() throws {
    let configuration = try DaemonConfiguration.load(file: example)
    #expect(configuration == DaemonConfiguration())
    #expect(configuration.origins.isEmpty)
  }

  @Test func `the example file's commented settings are all there are, with their defaults`() throws {
    let text = String(decoding: try FileSystem.contents(of: example, limit: 1 << 20), as: UTF8.self)
    // A setting follows its "#" at once, a comment after a space.
    let lines = text.split(separator: "\n", omittingEmptySubsequences: false).map { line in
      let indent = line.prefix { $0 == " " }
      let rest = line.dropFirst(indent.count)
      return rest.hasPrefix("#") && rest.dropFirst().first?.isLetter == true
        ? indent + rest.dropFirst() : line
    }
    let directory = try TemporaryDirectory()
    let file = try directory.write(lines.joined(separator: "\n"), to: "quanteased.yaml")
    let configuration = try DaemonConfiguration.load(file: file)
    #expect(configuration.changedKeys(since: DaemonConfiguration()) == ["calibration"])
    let keys = DaemonConfiguration().describe().split(separator: "\n").map { line in
      String(line.drop { $0 == " " }.prefix { $0 != ":" })
    }
    #expect(Set(configuration.origins.keys) == Set(keys).subtracting(["defaults"]))
  }
}
