#!/usr/bin/env python3
"""Prints what tools/bench has measured.

    benchmark-table.py parts DIRECTORY                  samples of the benchmarks
    benchmark-table.py run DIRECTORY MODEL [OPTION...]  whole runs of quantease, and sgemm before and after them
"""

import json
import re
import sys
from pathlib import Path
from statistics import median

# Seconds of others on two Zen 4 cores where cblas_sgemm did 200 GF/s: whole run, and solver alone.
REFERENCES = {
    "QuantEase, authors' code, torch": (412, 337),
    "GPTQ, torch": (95, 20),
}
REFERENCE_RATE = 200e9

GROUPS = {
    "sgemm": "cblas_sgemm",
    "linear": "linear, 4,096 tokens",
    "layer": "decoder layer of SmolLM2-135M, forward",
    "gram": "Gram matrix, 4,096 tokens",
    "solver": "solver, 3 bits, one grid per row",
    "cache": "activation cache, bfloat16 hidden states",
    "pack": "pack, bytes of codes",
    "unpack": "unpack, bytes of codes",
}


def read_samples(directory: Path) -> dict[str, dict[str, list[int]]]:
    """Benchmark → metric → samples, from files named <run>.<target>.<benchmark>.<metric>.histogram.samples.tsv."""
    benchmarks: dict[str, dict[str, list[int]]] = {}
    for file in directory.glob("*.histogram.samples.tsv"):
        name = file.name.removesuffix(".histogram.samples.tsv").split(".", 2)[2]
        benchmark, metric = name.rsplit(".", 1)
        samples = [int(line) for line in file.read_text().splitlines()[1:] if line.strip()]
        if samples:
            benchmarks.setdefault(benchmark, {})[metric] = samples
    if not benchmarks:
        sys.exit(f"benchmark-table: no samples in {directory}; mend: is there a benchmark of that name?")
    return benchmarks


def natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def describe(metrics: dict[str, float]) -> tuple[str, str]:
    """Rate, and its ratio to sgemm."""
    elapsed = metrics["microseconds"] / 1e6
    if "kilobytes" in metrics:
        stored = metrics.get("stored_per_thousand")
        note = f"{stored / 10:.1f} % stored" if stored is not None else ""
        return f"{metrics['kilobytes'] / 1e6 / elapsed:.2f} GB/s", note
    share = metrics["millionths_of_sgemm"] / 1e6
    if "dense_pass_kilooperations" in metrics:
        return "", f"{1 / share:.2f} dense passes"
    return f"{metrics['kilooperations'] / 1e6 / elapsed:.1f} GF/s", f"{share:.1%} of sgemm"


def print_parts(directory: Path) -> None:
    benchmarks = read_samples(directory)
    rates = [rate for metrics in benchmarks.values() for rate in metrics["sgemm_megaflops"]]
    width = max(len(name) for name in benchmarks) + 2
    print(
        f"cblas_sgemm beside every measurement: median {median(rates) / 1e3:.1f} GF/s, "
        f"{min(rates) / 1e3:.1f} to {max(rates) / 1e3:.1f}"
    )
    for group, title in GROUPS.items():
        members = sorted((name for name in benchmarks if name.split(".")[0] == group), key=natural)
        if not members:
            continue
        print(f"\n{title}")
        for name in members:
            metrics = {metric: median(samples) for metric, samples in benchmarks[name].items()}
            rate, ratio = describe(metrics)
            elapsed = seconds(metrics["microseconds"] / 1e6)
            print(f"  {name.split('.', 1)[1]:<{width}}{elapsed:>12}{rate:>14}{ratio:>20}".rstrip())
    if any("dense_pass_kilooperations" in metrics for metrics in benchmarks.values()):
        print("\nA dense pass: 2 · out · in² operations at the rate of sgemm.")


def count_operations(config: dict, settings: dict) -> dict[str, float]:
    """Operations of the staged run, a multiplication and an addition counting as two."""
    samples, length = (settings["calibration"][key] for key in ("samples", "sequence_length"))
    if "intermediate_size" not in config or "num_attention_heads" not in config:
        sys.exit(
            f"benchmark-table: the operations of {config.get('model_type')} are not counted; "
            "mend: measure a llama, mistral or qwen"
        )
    layers, hidden, inner = (config[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    context, key = heads * size, (config.get("num_key_value_heads") or heads) * size
    tokens = samples * length
    parameters = hidden * (2 * context + 2 * key + 3 * inner)
    stages = [hidden, context, hidden, inner]
    # Nobody reads what the last linear gives, so it does not run.
    forward = 2 * tokens * (layers * (parameters + length * context) - hidden * inner)
    squares = sum(width * width for width in stages)
    counted = {"forward": forward, "Gram matrices": tokens * layers * squares}
    if both := settings.get("target_samples"):
        counted["original"] = forward * both / samples
        # Of o and down: what they make of the inputs' difference, and its product with the inputs.
        counted["drift"] = 2 * both * length * layers * 2 * hidden * (context + inner)
    return counted


def is_reference_run(config: dict, calibration: dict) -> bool:
    """Whether REFERENCES tells of the same model and as many tokens."""
    shape = tuple(config[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    return shape == (30, 576, 1536) and (calibration["samples"], calibration["sequence_length"]) == (32, 512)


def print_peers(directory: Path, elapsed: float) -> None:
    """What ran in turn with us: their calibration and solver alone, against our whole process."""
    seconds_of: dict[str, list[float]] = {}
    for path in sorted(directory.glob("*.peer")):
        seconds_of.setdefault(path.stem.rsplit("-", 1)[0], []).append(float(path.read_text()))
    if seconds_of:
        print("\nin turn with it: their calibration and solver, without loading and writing; ours, the whole process")
    for peer, seconds_each in seconds_of.items():
        theirs = median(seconds_each)
        print(f"  {peer:<36}{theirs:>12.1f} s  ours {elapsed / theirs:.2f} of it")


def print_run(directory: Path, model: Path, options: list[str]) -> None:
    rates = [
        rate
        for folder in directory.glob("sgemm-*")
        for metrics in read_samples(folder).values()
        for rate in metrics["sgemm_megaflops"]
    ]
    rate = median(rates) * 1e6
    wall = {
        run: float(run.with_suffix(".seconds").read_text()) for run in directory.glob("run-*.json")
    }
    middle = sorted(wall, key=wall.__getitem__)[(len(wall) - 1) // 2]
    elapsed = wall[middle]
    report = json.loads(middle.read_text())
    totals, calibration = report["totals"], report["settings"]["calibration"]
    config = json.loads((model / "config.json").read_text())
    counted = count_operations(config, report["settings"])
    operations = sum(counted.values())
    solver = totals["seconds_per_phase"]["solver"]

    print(
        f"\n{report['model']['name']}, {report['settings']['bits']} bits, "
        f"{calibration['samples']} x {calibration['sequence_length']} tokens"
        + (f", {' '.join(options)}" if options else "")
    )
    rows = [
        ("wall time", f"{elapsed:.2f} s", f"median of {len(wall)}" if len(wall) > 1 else ""),
        ("cblas_sgemm", f"{rate / 1e9:.1f} GF/s", "before and after"),
        *((name, f"{count / 1e12:.2f} TFLOP", "") for name, count in counted.items()),
        ("counted operations ÷ sgemm rate", f"{operations / rate:.2f} s", ""),
        ("wall time ÷ that", f"{elapsed / (operations / rate):.2f}", ""),
        ("mean relative error", f"{totals['mean_relative_error']:.3%}", ""),
        ("peak memory", f"{totals['peak_memory_bytes'] / 1e6:.0f} MB", ""),
    ]
    for name, value, note in rows:
        print(f"  {name:<36}{value:>14}  {note}".rstrip())

    print("\nseconds per phase")
    for phase, duration in sorted(totals["seconds_per_phase"].items(), key=lambda item: -item[1]):
        print(f"  {phase:<36}{duration:>14.2f}{duration / elapsed:>8.0%}")

    print_peers(directory, elapsed)

    if not is_reference_run(config, calibration):
        print("\nOther implementations were measured on SmolLM2-135M with 32 x 512 tokens: no comparison here.")
        return
    scale = REFERENCE_RATE / rate
    print(f"\nagainst others, whose seconds are scaled by {scale:.2f}, this machine's sgemm rate")
    print(f"  {'':<36}{'whole':>10}{'ours':>8}{'solver':>12}{'ours':>8}")
    for name, (whole, its_solver) in REFERENCES.items():
        print(
            f"  {name:<36}{whole * scale:>8.0f} s{elapsed / (whole * scale):>8.3f}"
            f"{its_solver * scale:>10.0f} s{solver / (its_solver * scale):>8.3f}"
        )


match sys.argv[1:]:
    case ["parts", directory]:
        print_parts(Path(directory))
    case ["run", directory, model, *options]:
        print_run(Path(directory), Path(model), options)
    case _:
        sys.exit(__doc__)
