import ArgumentParser
import ComputeOpenBLAS
import Daemon
import Foundation
import SystemIO

/// Hands one job to Slurm for the daemon, which starts it as a process of its own.
struct EnqueueCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "enqueue", abstract: "Hands one job to Slurm; the daemon starts it.", shouldDisplay: false)

  @Argument(help: "The job's order.")
  var order: String

  @Argument(help: "The program that the job's host runs.")
  var program: String

  @Option(help: "The plug-in of srun that starts a job's ranks.")
  var mpi = SlurmSettings.standardMPI

  @Flag(help: "Tell Slurm how long it may take.")
  var planTime = false

  @Argument(parsing: .postTerminator, help: "Options of sbatch.")
  var options: [String] = []

  func run() throws {
    ThisProcess.endWithParent()
    if planTime { KernelSet.useBest() }
    func send(_ event: WorkerEvent) { try? StandardOutput.write(event.line()) }
    do {
      try SlurmSubmission(
        order: order, arguments: options, program: program, mpi: mpi, plansTime: planTime, send: send
      ).run()
    } catch {
      let failure = JobFailure(error)
      send(.failed(failure))
      throw ExitCode(failure.code)
    }
  }
}
