import Calibration
import Devices
import Export
import Foundation
import Pipeline

/// All settings there are. File, environment and command line read the same rows, and so do the listing of what is
/// in force and the help.
enum SettingTable {
  /// What the daemon needs for itself: top-level keys of its file.
  static let daemon: [Setting<DaemonConfiguration>] = [
    .directory("spool", \.spool, "The drop folder, with incoming, working, done, failed and output."),
    .directory("state", \.stateDirectory, "Where the state of the jobs is kept. Small, and worth a backup."),
    .directory(
      "cache", \.cacheDirectory, "Where activation caches are made. A fast local disk; can be lost."),
    .value(
      "threads", \.threads, expected: "all, or a whole number from 1 to 4096",
      "Threads to compute with. The result does not depend on it.",
      parse: { text in
        if text == "all" { return ProcessInfo.processInfo.activeProcessorCount }
        return Int(text).flatMap { (1...4_096).contains($0) ? $0 : nil }
      }),
    .value(
      "device", \.device, expected: DeviceChoice.notation,
      "What computes; auto takes the GPU with the most free memory, if there is one. See quantease devices.",
      parse: DeviceChoice.init, show: \.description),
    .value(
      "memory", \.memoryGB, expected: "available, or a number of GB above 0",
      "Memory that a job may use, in GB (10^9 bytes); available: what is free when it starts.",
      parse: { text -> Double?? in
        if text == "available" { return .some(nil) }
        guard let gigabytes = Double(text), gigabytes > 0, gigabytes <= 1e6 else { return nil }
        return gigabytes
      }, show: { $0.map { "\($0)" } ?? "available" }),
    .choice(
      "states", \.states,
      "Where states stand between two layers: in memory if it has room, or in the cache, which takes longer."),
    .choice(
      "queue", \.queue,
      "Who has jobs done: the daemon, one after the other on this machine, or Slurm, each on a host of its own."
    ),
    .integer("parallel", \.parallel, 1...10_000, "Queue slurm: jobs that Slurm has at a time, at most."),
    .name("slurm-partition", \.slurm.partition, "Queue slurm: the partition; empty is Slurm's own choice."),
    .name("slurm-account", \.slurm.account, "Queue slurm: the account that jobs are charged to."),
    .name("slurm-qos", \.slurm.qos, "Queue slurm: the quality of service."),
    .name("slurm-constraint", \.slurm.constraint, "Queue slurm: features that a node must have."),
    .value(
      "slurm-minutes", \.slurm.timeLimit, expected: SlurmSettings.TimeLimit.expected,
      "Queue slurm: a job's time limit, after which it goes on in another turn; plan is three times its plan here.",
      parse: SlurmSettings.TimeLimit.init, show: \.text),
    .list(
      "slurm-options", \.slurm.options, separator: " ",
      expected:
        "a list of sbatch's options, such as [--gres=gpu:1], without those that the daemon gives itself",
      "Queue slurm: more options of sbatch, each one word that begins with a dash.",
      parse: { SlurmSettings.isPossible(option: $0) ? $0 : nil }, show: { $0 }),
    .name("slurm-mpi", \.slurm.mpi, "Queue slurm: srun's plug-in for jobs of several ranks; pmix if empty."),
    .value(
      "slurm-program", \.slurm.program, expected: "an absolute path",
      "Queue slurm: quanteased on the nodes; empty is where this one stands.",
      parse: { text -> String?? in
        if text.isEmpty { return .some(nil) }
        return text.hasPrefix("/") && !text.contains("\0") ? text : nil
      }, show: { $0.map { YAMLText.scalar($0) } ?? "null" }),
    .integer(
      "settle-seconds", \.settleSeconds, 0...86_400,
      "Seconds that a dropped checkpoint without a marker must stay unchanged before it is taken."),
    .integer("scan-seconds", \.scanSeconds, 1...86_400, "Seconds between two full scans of the drop folder."),
    .integer("attempts", \.attempts, 1...1_000, "Times that a job is begun before it counts as failed."),
    .value(
      "python", \.python, expected: "a program's name or absolute path",
      "A Python interpreter with the package tokenizers; for calibration from text.",
      parse: { $0.isEmpty || $0.contains("\0") || ($0.contains("/") && !$0.hasPrefix("/")) ? nil : $0 },
      show: { YAMLText.scalar($0) }),
    .value(
      "gguf-converter", \.ggufConverter, expected: "an absolute path",
      "llama.cpp's convert_hf_to_gguf.py, for jobs with format gguf whose model is no GGUF file; the Python above runs it.",
      parse: { text -> String?? in
        if text.isEmpty { return .some(nil) }
        return text.hasPrefix("/") && !text.contains("\0") ? text : nil
      }, show: { $0.map { YAMLText.scalar($0) } ?? "null" }),
    .list(
      "schedule", \.schedule.windows, separator: ";",
      expected: "windows such as 22:00-06:00, or mon-fri 20:00-07:30",
      "When jobs are worked on, in local time; empty is always. Outside, the job at work waits where it is.",
      parse: Schedule.Window.init, show: \.text),
    .value(
      "keep-done", \.keepDone, expected: Keeping.expected,
      "How much is kept in done/, the sources of published jobs; what is older is removed.",
      parse: Keeping.init, show: \.text),
    .value(
      "keep-failed", \.keepFailed, expected: Keeping.expected,
      "How much is kept in failed/, the sources of failed and cancelled jobs.",
      parse: Keeping.init, show: \.text),
    .directory(
      "hooks", \.hooks, "The folder of the programs on-done, on-failed, on-refused, on-paused and on-resumed."
    ),
    .integer("hook-seconds", \.hookSeconds, 1...3_600, "Seconds that such a program may take."),
  ]

  /// What a job may set in a file of its own: keys under `defaults:` in the daemon's.
  static let job: [Setting<JobSettings>] = [
    .list(
      "calibration", \.calibration.files, separator: "\n",
      expected:
        "an absolute path, or one inside the job's directory, without '..'; or a list of such, each with ':WEIGHT' behind it or not",
      "Text (.txt, .jsonl, either also .zst) or token ids (.safetensors), or a list. Relative: in the job's directory.",
      parse: { text in
        CalibrationSources.File(text).flatMap { JobSettings.isPossible(calibration: $0.path) ? $0 : nil }
      }, show: \.description),
    .integer(
      "priority", \.priority, -1_000_000...1_000_000,
      "Jobs with a greater one come first; the job at work is not interrupted."),
    .integer(
      "ranks", \.ranks, 1...1_000,
      "Queue slurm: hosts that share the job by MPI. The result is the same, to the byte."),
    .integer("bits", \.settings.bits, 2...8, "Bits per weight: 2 to 6, or 8."),
    .integer(
      "group-size", \.settings.groupSize, -1...(1 << 24),
      "Columns that share a scale; -1 is one scale for a whole row."),
    .automatic(
      "symmetric", \.settings.symmetric,
      "Without zero points: loads in more runtimes, is less exact; auto: where runtimes load nothing else."),
    .flag(
      "unsigned-scales", \.settings.unsignedScales,
      "Symmetric grids: only positive scales, for runtimes that take no others; less exact."),
    .choice(
      "gguf-type", \.settings.ggufType,
      "Format gguf, in place of bits, group-size and symmetric: the file, with llama-quantize's types."),
    .flag(
      "gguf-pure", \.settings.ggufPure,
      "Format gguf: all tensors of the one type that the file is named after."),
    .automatic(
      "average-bits", \.settings.averageBits, upTo: 16, expected: "bits a weight",
      "In place of bits, or gguf-type: what linears take on average, from 2 on, each as many as it needs; auto: all the same."
    ),
    .list(
      "bit-choices", \.settings.bitChoices, separator: ",", expected: "a list of widths, 2 to 6, or 8",
      "With average-bits: the widths to choose of, such as [4, 8]; empty for those that runtimes are known to load side by side.",
      parse: { Int($0) }, show: { "\($0)" }),
    .choice("solver", \.settings.solver, "How weights are moved onto the grid."),
    .choice(
      "preset", \.settings.preset, "quantease only: all that lowers the error, or the published algorithm."),
    .choice(
      "target", \.settings.target,
      "What linears come close to: their own output, or the original model's residual stream."
    ),
    .automatic(
      "target-share", \.settings.targetShare, upTo: 1, expected: "a share of the sequences",
      "Target original: share of the sequences that also run through the original model; auto goes by the bits."
    ),
    .automatic(
      "damping", \.settings.damping, upTo: 10, expected: "a share of the mean diagonal",
      "The ridge that speaks for inputs that the calibration set does not show; auto: by solver and bits."
    ),
    .flag(
      "correct-head", \.settings.correctHead,
      "Target original: a head that is not that of the embeddings is corrected for what the layers have lost."
    ),
    .flag(
      "tune-norms", \.settings.tuneNorms,
      "When all is quantized, norms are tuned by the gradient of the whole model's divergence from the original."
    ),
    .automatic(
      "first-token-weight", \.settings.firstTokenWeight, upTo: 10_000, expected: "how often it counts",
      "How often a sequence's first token, to which all others attend, counts where keys and values are made; auto: by bits and solver."
    ),
    .choice(
      "expert-gram", \.settings.expertGram,
      "Mixtures of experts: what gate and up are solved for, an expert's own tokens and a prior of all, or all tokens."
    ),
    .automatic(
      "expert-prior", \.settings.expertPrior, upTo: 100, expected: "a multiple of the width",
      "Mixtures of experts: tokens of the prior, as a multiple of the width; auto goes by how an expert's own differ."
    ),
    .integer("passes", \.settings.passes, 1...10_000, "quantease only: passes over all columns, at most."),
    .choice("start", \.settings.start, "Standard preset: where the descent begins."),
    .flag(
      "grid-search", \.settings.gridSearch,
      "Standard preset: search each row's grid for the least output error."),
    .flag(
      "scale-refit", \.settings.scaleRefit, "Standard preset: refit scales to the codes by least squares."),
    .flag(
      "pair-moves", \.settings.pairMoves,
      "Standard preset: move columns in pairs where single moves are stuck."),
    .value(
      "outliers", \.settings.outliers, expected: "a share of the weights, 0 to 1",
      "quantease only: share of the weights that is kept in 16-bit floats, for example 0.01.",
      parse: { Double($0).flatMap { (0...1).contains($0) ? $0 : nil } }),
    .flag(
      "structured-outliers", \.settings.structuredOutliers,
      "Keep whole columns as outliers, not single weights."),
    .list(
      "rules", \.settings.rules, separator: "\n", expected: "a list of PATTERN=SETTING,SETTING…",
      "Other settings for the linears whose name the regular expression finds; later rules win.",
      parse: { $0.isEmpty ? nil : $0 }, show: \.self),
    .list(
      "format", \.settings.formats, separator: ",",
      expected: "one or more of \(OutputFormatName.allCases.map(\.rawValue).joined(separator: ", "))",
      "Formats to write; with several, each gets a directory of its own below the job's.",
      parse: OutputFormatName.init(rawValue:), show: \.rawValue),
    .integer(
      "samples", \.settings.samples, 1...1_000_000,
      "Sequences to draw from the calibration files, all together; of a text that has fewer they are cut at several places."
    ),
    .integer("sequence-length", \.settings.sequenceLength, 2...(1 << 20), "Tokens of a sequence."),
    .value(
      "seed", \.settings.seed, expected: "a whole number from 0", "Decides which sequences are drawn.",
      parse: { UInt64($0) }),
    .choice(
      "precision", \.settings.precision,
      "auto: bfloat16 products for bfloat16 checkpoints where the processor is fast at them; exact: fp32 throughout."
    ),
    .choice(
      "rotate", \.settings.rotate,
      "residual: rotate the residual stream first, which helps most where a scale is a whole row's; auto: if a trial says so; other solvers and the paper's preset do without."
    ),
    .flag(
      "allow-requantize", \.settings.allowRequantize,
      "Take checkpoints that are quantized already, GPTQ, AWQ, compressed-tensors or GGUF, as the weights that they stand for."
    ),
    .flag(
      "strict", \.settings.strict,
      "Blocks of weights that are all zero, as after an incomplete download, fail the job; else they are a warning."
    ),
  ]

  static let all: [Setting<DaemonConfiguration>] = daemon + job.map { $0.lifted(\.defaults) }

  static func variable(_ key: String) -> String {
    variablePrefix + key.uppercased().replacing("-", with: "_")
  }

  static let variablePrefix = "QUANTEASED_"
}
