import Foundation

/// A Python program in a process of its own, which is given nothing to read.
package struct PythonProcess {
  /// A program's name, or its path.
  package let interpreter: String

  package init(interpreter: String) { self.interpreter = interpreter }

  /// How it ended.
  package enum End {
    case exit(status: Int32, message: String)
    case killed(signal: Int32)
    /// There is no such program.
    case missing(reason: String)
  }

  /// Runs the interpreter to its end.
  /// - Parameters:
  ///   - arguments: its own
  ///   - environment: what is set besides this process's own
  ///   - output: takes what the program prints; what it complains of is the message that comes back
  ///   - heard: called whenever it says something there
  package func run(
    _ arguments: [String], environment: [String: String] = [:], output: FileHandle = .nullDevice,
    heard: () -> Void = {}
  ) -> End {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [interpreter] + arguments
    process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = output
    let errors = Pipe()
    process.standardError = errors
    do { try process.run() } catch { return .missing(reason: error.localizedDescription) }
    var said = Data()
    while case let part = errors.fileHandleForReading.availableData, !part.isEmpty {
      said.append(part)
      heard()
    }
    process.waitUntilExit()
    let message = String(decoding: said, as: UTF8.self)
    if process.terminationReason == .uncaughtSignal { return .killed(signal: process.terminationStatus) }
    // By env(1).
    if process.terminationStatus == 126 {
      return .missing(reason: "no program that this user may run; the service sees no home directories")
    }
    if process.terminationStatus == 127 { return .missing(reason: "no such program") }
    return .exit(
      status: process.terminationStatus, message: message.trimmingCharacters(in: .whitespacesAndNewlines))
  }
}
