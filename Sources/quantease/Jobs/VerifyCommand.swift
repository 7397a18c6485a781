import ArgumentParser
import Daemon
import Export

struct VerifyCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify",
    abstract: "Checks a finished output: every byte, and that it opens as a checkpoint; says what loads it.")

  @Argument(
    help: ArgumentHelp("A directory in the spool's output folder.", valueName: "output"),
    completion: .directory)
  var output: String

  func run() throws {
    let problems = try OutputVerification.problems(of: output)
    guard problems.isEmpty else {
      for problem in problems { Console.note(problem) }
      throw SpoolError.problems(output, count: problems.count)
    }
    try Console.line("\(output): every file is what was written, and opens")
    for runtime in try Report(directory: output).loadsIn { try Console.line("loads    \(runtime)") }
  }
}
