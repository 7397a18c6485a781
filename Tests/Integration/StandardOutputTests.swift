import Foundation
import TestSupport
import Testing

/// Commands whose output nobody reads to its end, or does not fit where it goes.
struct StandardOutputTests {
  private static let commands = [
    "quantease --help", "quantease --version", "quantease help quantize", "quantease inspect MODEL",
    "quantease inspect MODEL --json", "quantease status --config CONFIGURATION",
    "quantease status --json --config CONFIGURATION", "quanteased --help",
    "quanteased --check-config --config CONFIGURATION",
  ]

  /// Runs a command in a shell, in a place of its line.
  private func run(_ command: String, in line: String) throws -> Quantease {
    let bench = try DaemonBench()
    try bench.spool.create()
    let directory = URL(fileURLWithPath: try Quantease.binary).deletingLastPathComponent().path
    let command = command.replacing("MODEL", with: TestFiles.model("llama"))
      .replacing("CONFIGURATION", with: bench.configuration)
    // A child of a program that ignores SIGPIPE, as many do, gets an error in place of the signal.
    return try Quantease(
      [
        "-c",
        "trap '' PIPE; unset OPENBLAS_CORETYPE; "
          + line.replacing("COMMAND", with: "\(directory)/\(command)"),
      ],
      program: "/bin/bash")
  }

  @Test(arguments: commands) func `a reader that has gone ends a command quietly`(_ command: String) throws {
    let run = try run(command, in: "{ sleep 0.2; COMMAND; } | true; exit ${PIPESTATUS[0]}")
    #expect(run.status == 0 && run.errors == "", "\(run.status) \(run.errors)")
  }

  @Test(arguments: commands) func `an output that does not fit is an error with a message`(_ command: String)
    throws
  {
    let run = try run(command, in: "COMMAND > /dev/full")
    #expect(run.status == 74, "\(run.status) \(run.errors)")
    #expect(run.errors.contains("cannot write to standard output: No space left on device"), "\(run.errors)")
    #expect(!run.errors.contains("Fatal"), "\(run.errors)")
  }
}
