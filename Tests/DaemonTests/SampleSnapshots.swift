import Daemon
import Glibc

/// States of the daemon as they occur, and worse ones.
enum SampleSnapshots {
  static let madeAt = 1_790_000_000.0

  static let all: [(name: String, snapshot: StatusSnapshot)] = [
    ("idle", idle), ("working", working), ("paused", paused), ("failures", failures), ("hostile", hostile),
    ("stopped", stopped), ("refused", refused), ("catching up", catchingUp), ("scheduled", scheduled),
    ("standing", standing), ("cluster", cluster),
  ]

  /// Jobs that Slurm has done on hosts of its own.
  static let cluster: StatusSnapshot = {
    var snapshot = working
    snapshot.current?.place = "on node17, in Slurm as job 4711"
    snapshot.queue = [
      .init(
        name: "llama-3.3-70b", id: "20260917T221502Z-77aa-llama-3.3-70b", state: .working,
        reasons: ["layer 12/80, on node18, in Slurm as job 4712"], arrivedAt: madeAt - 9_000),
      .init(
        name: "qwen3-32b", id: "20260917T221502Z-77aa-qwen3-32b", state: .queued,
        reasons: ["in Slurm as job 4713: pending, Resources"], arrivedAt: madeAt - 8_000),
      .init(
        name: "granite-3.3-8b", id: "20260917T221502Z-77aa-granite-3.3-8b", state: .paused,
        reasons: [
          "Slurm holds job 4714 (JobHeldAdmin): 'scontrol release 4714' lets it go on",
          "in Slurm as job 4714: pending, JobHeldAdmin",
        ], arrivedAt: madeAt - 7_000),
    ]
    return snapshot
  }()

  /// An upload that stands, a drop that needs a person, a job that is held, and one that waits for space.
  static let refused: StatusSnapshot = {
    var snapshot = idle
    snapshot.stateText =
      "idle, waiting for a checkpoint in /var/spool/quantease/incoming · 1 refused · 1 arriving"
    var held = StatusSnapshot.Queued(
      name: "granite-3.3-8b", id: "20260917T221502Z-77aa-granite-3.3-8b", state: .paused,
      reasons: ["held back by 'quantease pause'; 'quantease resume' lets it go on"],
      arrivedAt: madeAt - 90_000)
    held.priority = 5
    var full = StatusSnapshot.Queued(
      name: "qwen3-32b", id: "20260917T221502Z-77aa-qwen3-32b", state: .paused,
      reasons: [
        "cannot reserve space for /var/spool/quantease/output/.partial/x (18.1 GB): No space left on device"
      ],
      arrivedAt: madeAt - 9_000)
    full.retryAt = madeAt + 320
    full.shortage = .init(path: "/var/spool/quantease", neededBytes: 18_100_000_000, freeBytes: 2_300_000_000)
    snapshot.queue = [
      held, full,
      .init(
        name: "llama-3.3-70b", state: .refused,
        reasons: [
          "the daemon may not read model-00001-of-00030.safetensors; chgrp -R quantease llama-3.3-70b && chmod -R g+rX llama-3.3-70b"
        ], arrivedAt: madeAt - 7_200),
      .init(
        name: "mistral-small", state: .arriving, reasons: ["model-00002-of-00010.safetensors is missing"],
        arrivedAt: madeAt - 300),
    ]
    return snapshot
  }()

  static let catchingUp: StatusSnapshot = {
    var snapshot = working
    snapshot.stateText =
      "falcon-180b · catching up, layer 12 of 80 · error 0.12 % · 5 h 10 min left · attempt 2 of 3"
    snapshot.current?.step = "catching up, layer 12 of 80"
    snapshot.current?.attempt = 2
    snapshot.current?.attemptLimit = 3
    snapshot.current?.breakdown = "the worker was ended by signal 9; the kernel may have run out of memory"
    snapshot.current?.lastProgressAt = madeAt - 2
    return snapshot
  }()

  static let scheduled: StatusSnapshot = {
    var snapshot = working
    snapshot.hold = .init(reason: "outside of the schedule", until: madeAt + 30_000)
    snapshot.stateText = "falcon-180b waits: outside of the schedule, until 22:00 · 1 queued"
    snapshot.current?.pausedBecause = "outside of the schedule, until 22:00"
    snapshot.current?.step = "waits where it is"
    return snapshot
  }()

  static let standing: StatusSnapshot = {
    var snapshot = working
    snapshot.current?.lastProgressAt = madeAt - 1_900
    return snapshot
  }()

  static let idle = StatusSnapshot(
    version: "0.4.0", service: .running,
    stateText: "idle, waiting for a checkpoint in /var/spool/quantease/incoming",
    cacheFreeBytes: 1_820_000_000_000, spoolFreeBytes: 3_410_000_000_000, madeAt: madeAt)

  static let stopped: StatusSnapshot = {
    var snapshot = idle
    snapshot.service = .stopped
    snapshot.stateText = "no daemon holds /var/spool/quantease"
    return snapshot
  }()

  static let working = StatusSnapshot(
    version: "0.4.0", service: .running,
    stateText: "falcon-180b layer 37/80 mlp.down_proj · error 0.12 % · ETA 04:10 · 2 queued",
    current: current, queue: queue, finished: published, cacheBytes: 5_130_000_000,
    cacheFreeBytes: 1_814_000_000_000, spoolFreeBytes: 3_110_000_000_000,
    counters: .init(published: 41, failed: 2, linearsQuantized: 11_204, workerRestarts: 1), madeAt: madeAt)

  static let paused: StatusSnapshot = {
    var snapshot = working
    snapshot.stateText = "falcon-180b paused at layer 37/80 · 2 queued"
    snapshot.current?.pausedBecause =
      "the cache's disk is full: free space on /var/cache/quantease, 7.8 GB are needed"
    snapshot.current?.attempt = 2
    snapshot.cacheFreeBytes = 12_000_000
    return snapshot
  }()

  static let failures: StatusSnapshot = {
    var snapshot = idle
    snapshot.counters = .init(published: 3, failed: 68, linearsQuantized: 430)
    snapshot.finished = (0..<68).map(unlucky) + published
    return snapshot
  }()

  private static func unlucky(_ index: Int) -> StatusSnapshot.Finished {
    let isCancelled = index % 9 == 8
    let failure = StatusSnapshot.Failure(
      message: "model-0000\(index % 7 + 1)-of-00007.safetensors ends 4,096 bytes early",
      mend: "copy the file again, then rename the folder back into incoming/", code: 65)
    return StatusSnapshot.Finished(
      id: "f\(1000 + index)", name: "checkpoint-\(index)", outcome: isCancelled ? .cancelled : .failed,
      finishedAt: madeAt - Double(index * index) * 700, seconds: Double(index) * 11,
      failure: isCancelled ? nil : failure)
  }

  static let hostileName =
    "<script>alert('x')</script>\"&" + String(repeating: "Donaudampfschifffahrtsgesellschaft", count: 8)
    + "\u{202E}gnp.exe\n# TYPE evil counter\\"

  static let hostile = StatusSnapshot(
    version: hostileName, service: .running, stateText: "\(hostileName) layer 1/2",
    current: .init(
      id: hostileName, name: hostileName, architecture: hostileName, layer: 0, layerCount: 2,
      linear: hostileName, linearsDone: 9, linearCount: 3,
      errorPerLayer: [.nan, .infinity, 0, -1, nil, 1e-12],
      secondsElapsed: .infinity, secondsRemaining: .nan, attempt: 3, step: hostileName,
      pausedBecause: hostileName, kernels: hostileName),
    queue: [
      .init(
        name: hostileName, id: hostileName, state: .arriving, reasons: [hostileName, hostileName],
        arrivedAt: .nan),
      .init(name: "from the future", state: .queued, arrivedAt: madeAt + 1e6),
    ],
    finished: [
      .init(
        id: hostileName, name: hostileName, outcome: .failed, finishedAt: -.infinity, output: hostileName,
        seconds: .infinity, meanRelativeError: .nan, bitsPerWeight: -1,
        failure: .init(message: hostileName, mend: hostileName, code: -7))
    ],
    cacheBytes: Int.max, cacheFreeBytes: Int.min, spoolFreeBytes: -1,
    counters: .init(published: Int.max, failed: Int.max, linearsQuantized: Int.max, workerRestarts: -1),
    madeAt: madeAt)

  /// They grow with depth, and the first layer's is larger than its neighbours'.
  private static let errors: [Double?] = (0..<37).map { layer in
    let depth = 1 + Double(layer) / 30
    let ripple = 1 + 0.35 * sin(Double(layer) * 1.9)
    return 0.0006 * depth * ripple + (layer == 0 ? 0.002 : 0)
  }

  private static let current = StatusSnapshot.Current(
    id: "9f31c07be2a4", name: "falcon-180b", architecture: "FalconForCausalLM", layer: 36, layerCount: 80,
    linear: "mlp.down_proj", linearsDone: 147, linearCount: 320,
    errorPerLayer: errors,
    secondsElapsed: 13_240, secondsRemaining: 15_010, attempt: 1, step: "quantizing the linears",
    kernels: "OpenBLAS SkylakeX, bfloat16 products by AMX")

  private static let queue: [StatusSnapshot.Queued] = [
    .init(name: "Meta-Llama-3.1-70B-Instruct", state: .queued, arrivedAt: madeAt - 4_300),
    .init(
      name: "qwen2.5-32b", state: .arriving,
      reasons: [
        "model-00014-of-00017.safetensors is missing",
        "model-00013-of-00017.safetensors still grows: 3.1 GB of 3.9 GB",
      ], arrivedAt: madeAt - 240),
  ]

  private static let published: [StatusSnapshot.Finished] = [
    .init(
      id: "55ab03d91c7e", name: "mistral-7b-v0.3", outcome: .published, finishedAt: madeAt - 14_000,
      output: "/var/spool/quantease/output/mistral-7b-v0.3", seconds: 2_710, meanRelativeError: 0.0041,
      bitsPerWeight: 4.13),
    .init(
      id: "0c11e9a27f30", name: "opt-66b-broken", outcome: .failed, finishedAt: madeAt - 90_000, seconds: 12,
      failure: .init(
        message: "model.decoder.layers.12.fc1.weight has a value that is not a number at [311, 9042]",
        mend: "get the checkpoint again; its shard model-00003-of-00014.safetensors is damaged", code: 65)),
    .init(
      id: "7d20ffb1a902", name: "bloom-176b", outcome: .cancelled, finishedAt: madeAt - 400_000, seconds: 800),
  ]
}
