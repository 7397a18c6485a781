"""One layer of a large model's true widths, with weights by chance: made, quantized, and compared with the plan."""

import argparse
import contextlib
import json
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from token_file import write_tokens

TOLERANCE = 0.1
BYTES_AT_ONCE = 1 << 24
# The high bytes of bfloat16 numbers of either sign from 2⁻⁷ to 2⁻⁵: of a size that a layer's outputs stay in.
HIGH_BYTES = bytes([0x3C, 0xBC] * 128)
# The most linears whose times are worth a line each.
MOST_LINES = 16

# A model of a part of the width: its config.json, and the shapes of its tensors.
Model = Callable[[int], tuple[dict, dict[str, list[int]]]]


def numbers_by_chance(count: int, chance: random.Random):
    """So many bfloat16 numbers, in pieces."""
    for start in range(0, count, BYTES_AT_ONCE):
        size = min(BYTES_AT_ONCE, count - start)
        piece = bytearray(2 * size)
        piece[0::2] = chance.randbytes(size)
        piece[1::2] = chance.randbytes(size).translate(HIGH_BYTES)
        yield piece


def numbers_again(count: int, chance: random.Random, block: memoryview):
    """So many bfloat16 numbers, in pieces of one block from anywhere on: as fast as they can be written."""
    while count > 0:
        start = chance.randrange(len(block) // 4)
        size = min(len(block) // 2 - start, count)
        yield block[2 * start : 2 * (start + size)]
        count -= size


def write_model(directory: Path, configuration: dict, shapes: dict[str, list[int]], is_fast: bool = False) -> None:
    """config.json and model.safetensors. A fast one repeats its numbers, in seconds instead of a minute."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(configuration))
    header, end = {}, 0
    for name, shape in shapes.items():
        start = end
        end += 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    chance = random.Random(180)
    block = memoryview(b"".join(numbers_by_chance(BYTES_AT_ONCE, chance))) if is_fast else None
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values():
            start, end = entry["data_offsets"]
            count = (end - start) // 2
            for piece in numbers_again(count, chance, block) if block else numbers_by_chance(count, chance):
                file.write(piece)


def program() -> Path:
    """`quantease` as the tools build it."""
    path = Path(__file__).resolve().parent.parent / ".build/release/quantease"
    if not path.exists():
        sys.exit(f"{Path(sys.argv[0]).name}: {path} does not exist; mend: swift build -c release")
    return path


def show(report: dict, title: str) -> bool:
    """Prints what a run cost; tells whether every peak that the plan is made of is as planned."""
    totals = report["totals"]
    print(f"{title}, {totals['tokens']} tokens, target {report['settings']['target']}")
    print(f"{'':12}{'planned':>10}{'peak':>10}")
    phases = totals["memory_bytes_per_phase"]
    for name, memory in sorted(phases.items()):
        print(f"{name:12}{memory['planned'] / 1e9:>7.2f} GB{memory['peak'] / 1e9:>7.2f} GB")
    planned = max(memory["planned"] for memory in phases.values())
    share = totals["peak_memory_bytes"] / planned
    print(f"{'whole':12}{planned / 1e9:>7.2f} GB{totals['peak_memory_bytes'] / 1e9:>7.2f} GB  {share:.3f} of the plan")
    for name, seconds in sorted(totals["seconds_per_phase"].items(), key=lambda item: -item[1]):
        print(f"{name:12}{seconds:>8.1f} s")
    for linear in report["linears"][:MOST_LINES]:
        print(f"{linear['seconds']:>20.1f} s  {linear['name']} {linear['shape']}, error {linear['relative_error']:.5f}")
    if len(report["linears"]) > MOST_LINES:
        print(f"{'':>22}… {len(report['linears'])} in all")
    return abs(share - 1) <= TOLERANCE


def main(name: str, documentation: str, title: str, model: Model) -> None:
    parser = argparse.ArgumentParser(
        prog=f"tools/{name}", description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=int, choices=[1, 2, 4, 8], default=1, help="one part in so many of the width")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--check", action="store_true", help="fail if the peak is not as planned")
    parser.add_argument("--directory", type=Path, help="where files of several gigabytes have room; default: a temporary one")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR",
        help="where the checkpoint and the job stay: the same command goes on with a run that was ended")
    parser.add_argument("options", nargs="*", help="of `quantease quantize`")
    arguments = parser.parse_args()
    configuration, shapes = model(arguments.scale)
    with contextlib.ExitStack() as stack:
        if arguments.keep:
            scratch = arguments.keep.resolve() / f"scale-{arguments.scale}"
            scratch.mkdir(parents=True, exist_ok=True)
        else:
            temporary = tempfile.TemporaryDirectory(dir=arguments.directory, prefix=f"{name}-")
            scratch = Path(stack.enter_context(temporary))
        source, tokens, output, job = (scratch / part for part in ("model", "tokens.safetensors", "output", "job"))
        if not tokens.exists():
            shutil.rmtree(source, ignore_errors=True)
            write_model(source, configuration, shapes)
            write_tokens(tokens, arguments.samples, arguments.sequence_length, configuration["vocab_size"])
        # As little memory as there can be is what this is about, and the time of one run without a trial before.
        work = ["--samples", str(arguments.samples), "--sequence-length", str(arguments.sequence_length),
                "--states", "cache", "--rotate", "off"]
        work += arguments.options
        plan = json.loads(subprocess.check_output([program(), "plan", source, "--json", *work]))
        command = [program(), "quantize", source, "--output", output, "--calibration", tokens]
        if arguments.keep:
            shutil.rmtree(output, ignore_errors=True)
            command += ["--resume", job]
        status = subprocess.run(command + work, stdout=subprocess.DEVNULL).returncode
        if status:
            again = "; the same command goes on with it" if arguments.keep else ""
            sys.exit(f"{name}: quantize ended with {status}{again}")
        report = json.loads((output / "quantease_report.json").read_text())
    is_as_planned = show(report, f"{title}, 1/{arguments.scale} of its width")
    seconds = report["totals"]["seconds"]
    planned = plan.get("seconds")
    if planned:
        print(f"whole time  {planned:>7.1f} s planned, {seconds:.1f} s taken, {seconds / planned:.2f} of the plan")
    else:
        print(f"whole time  {seconds:.1f} s")
    if arguments.check and not is_as_planned:
        sys.exit(f"{name}: the peak is further than {TOLERANCE:.0%} from the plan")
