import ArgumentParser
import Foundation
import SystemIO

extension ParsableCommand {
  /// Runs the command that the process was started with, and ends the process.
  ///
  /// Whatever the command is, it ends quietly when the reader of its output has gone, and with 74 and a message when
  /// the output does not fit.
  /// - Parameters:
  ///   - report: says an error
  ///   - status: of an error, by sysexits(3); nil for errors of the command line itself
  public static func runProgram(report: (String) -> Void, status: (any Error) -> Int32?) -> Never {
    StandardOutput.ignoreBrokenPipes()
    do {
      do {
        var command = try parseAsRoot()
        try command.run()
      } catch let error where !(error is StandardOutputError) {
        if !(error is ExitCode), let status = status(error) {
          report("\(error)")
          Foundation.exit(status)
        }
        // Help, the version, or what is wrong with the command line.
        let (text, code) = (fullMessage(for: error), exitCode(for: error))
        if !text.isEmpty {
          if code.isSuccess {
            try StandardOutput.write(text + "\n")
          } else {
            StandardError.write(Array((text + "\n").utf8))
          }
        }
        Foundation.exit(code.rawValue)
      }
      Foundation.exit(0)
    } catch let error as StandardOutputError where error.isReaderGone {
      Foundation.exit(0)
    } catch {
      report("\(error)")
      Foundation.exit(74)
    }
  }
}
