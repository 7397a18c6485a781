import ArgumentParser
import Collective
import Pipeline
import SystemIO

struct RankOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      """
      Share the work among so many processes, one a host, that mpirun or srun has started: all of them this very command. The \
      result is the same, to the byte. See docs/CLUSTER.md; tools/build-mpi makes the library that it takes.
      """, valueName: "count"))
  var ranks = 1

  @Option(
    help: ArgumentHelp(
      "Give up when another rank has not been heard of for so long; one that computes is heard of every few seconds.",
      valueName: "seconds"))
  var rankSilence = Ranks.patience

  func validate() throws {
    guard rankSilence >= 1 else { throw ValidationError("--rank-silence must be at least 1") }
    guard ranks > 0 else { throw ValidationError("--ranks must be at least 1") }
  }

  /// Runs a job as one of its ranks. What stops one stops all, with the same reason.
  func run(_ body: (Ranks) throws -> Void) throws {
    let ranks = try Ranks.mpi(
      ranks, patience: rankSilence, library: ProcessEnvironment.process.value("QUANTEASE_MPI"))
    do {
      try body(ranks)
      try ranks.end()
    } catch {
      // What was heard of another rank is said by that one.
      if let error = error as? RankError, case .failed = error { throw error }
      ranks.abandon(reason: "\(error)", status: sysexit(of: error) ?? sysexit(ofDaemon: error) ?? 70)
      if !ranks.isAlone { Console.note("\(ranks.name(ranks.rank)): gives up") }
      throw error
    }
  }
}
