"""What the sweeps compare, and how they say that something is wrong."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_SECONDS = 180
# Keys of the report that hold times, or what a process has used.
VARYING = {
    "seconds", "seconds_per_phase", "peak_memory_bytes", "memory_bytes_per_phase", "states", "cache_bytes_raw",
    "cache_bytes_compressed", "cache_reads", "cache_reads_prefetched", "job",
}


class Failure(Exception):
    """Something that must not be."""


class NotReached(Exception):
    """Nothing happened at a point, so that all that was seen there is an undisturbed run."""


def check(condition: object, message: str) -> None:
    if not condition:
        raise Failure(message)


def digests(checkpoint: Path) -> dict[str, str]:
    """What stands in a finished checkpoint, without what differs from run to run: digest by path."""
    found = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        if path.name == "quantease_job.log":
            continue
        content = path.read_bytes()
        match path.name:
            case "quantease_report.html":
                content = b""
            case "quantease_report.json":
                content = json.dumps(without_times(json.loads(content)), sort_keys=True).encode()
            case "SHA256SUMS":
                lines = content.splitlines(keepends=True)
                content = b"".join(line for line in lines if b"  quantease_" not in line)
        found[str(path.relative_to(checkpoint))] = hashlib.sha256(content).hexdigest()
    return found


def without_times(value: object) -> object:
    if isinstance(value, dict):
        # The model's name is that of its directory, which is the job's.
        value = {key: item for key, item in value.items() if key not in VARYING | {"model"}}
        return {key: without_times(item) for key, item in value.items()}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def compare(checkpoint: Path, expected: dict[str, str]) -> None:
    found = digests(checkpoint)
    files = sorted(found.keys() | expected.keys())
    differing = [name for name in files if found.get(name) != expected.get(name)]
    check(not differing, f"{checkpoint} differs from the undisturbed one in {', '.join(differing)}")


def names(directory: Path, hidden: bool = False) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if hidden or not name.startswith("."))
    except FileNotFoundError:
        return []


def settle(condition: Callable[[], object], seconds: float = 5) -> None:
    """Gives a condition some time to come true; who needs it looks again."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
