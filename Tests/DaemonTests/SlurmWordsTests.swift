import Testing

@testable import Daemon

/// What Slurm's commands are told, and what they print.
struct SlurmWordsTests {
  @Test func `a name is one that Slurm's lists can hold, and no other job's`() {
    let id = "20261123T231502Z-00a7-my|model\nof ünusual name"
    let name = SlurmJob(of: id, spool: "/spool", earlierAttempts: 0).name
    #expect(name.hasPrefix("quantease-20261123T231502Z-00a7-"))
    #expect(name.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "-") })
    #expect(name != SlurmJob(of: id, spool: "/other", earlierAttempts: 0).name)
    #expect(name != SlurmJob(of: id + "2", spool: "/spool", earlierAttempts: 0).name)
  }

  @Test func `an option that would hide a job from the daemon, or make several of it, is refused`() {
    for option in [
      "--gres=gpu:1", "--nodes=1", "-C", "--nice", "--mem-per-cpu=2G", "-q", "--wait-all-nodes=1",
    ] {
      #expect(SlurmSettings.isPossible(option: option), "\(option)")
    }
    for option in [
      "gpu", "--clusters=a", "--clus=a", "-M", "-Mall", "--array=0-3", "-a0-3", "--job-name=x", "-J",
      "--output=x",
      "--dependency=singleton", "--no-requeue", "-", "--", "-Ha1-9", "--quiet", "-Q", "--test-only",
    ] { #expect(!SlurmSettings.isPossible(option: option), "\(option)") }
  }

  @Test func `what squeue prints is read, and what is over is told from what waits`() throws {
    let listing = SlurmListing(
      """
      12|RUNNING|None|node7|quantease-a
      13|PENDING|Dependency||quantease-a
      11|FAILED|BadConstraints||quantease-a
      14|PENDING|Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions||b
      slurm_load_jobs error: what nobody expects
      """)
    #expect(listing.entries.count == 4)
    #expect(listing.active(named: "quantease-a").map(\.number) == ["12", "13"])
    #expect(listing.entries.first { $0.number == "11" }?.isOver == true)
    #expect(listing.entries[0].reason == nil && listing.entries[0].node == "node7")
    #expect(listing.entries[3].obstacle == nil)
    for reason in ["JobHeldAdmin", "launch failed requeued held", "job requeued in held state"] {
      let held = try #require(SlurmListing("5|PENDING|\(reason)||c").entries.first?.obstacle)
      #expect(held.contains("'scontrol release 5'"))
    }
    let limit = try #require(SlurmListing("5|PENDING|PartitionTimeLimit||c").entries.first?.obstacle)
    #expect(limit.contains("slurm-minutes"))
    // Others' jobs end, and then it starts.
    for reason in ["QOSMaxCpuPerUserLimit", "AssocGrpCpuLimit", "QOSGrpNodeLimit", "AssocMaxJobsLimit"] {
      #expect(SlurmListing("5|PENDING|\(reason)||c").entries.first?.obstacle == nil, "\(reason)")
    }
    #expect(SlurmListing("5|PENDING|QOSMaxMemoryPerJob||c").entries.first?.obstacle != nil)
  }

  @Test func `a warning that sbatch prints before the number is none`() {
    let said =
      "sbatch: warning: can't run 1 processes on 2 nodes, setting nnodes to 1\nsbatch: lua: ok\n4711;lab\n"
    #expect(SlurmSubmission.number(in: said) == "4711")
    #expect(SlurmSubmission.number(in: "12\n") == "12")
    #expect(
      SlurmSubmission.number(in: "sbatch: error: Batch job submission failed: 12 is no partition\n") == nil)
  }
}
