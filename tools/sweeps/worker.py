"""A worker, alone with its order: what it leaves behind has to do for the next one."""

import json
import shutil
import signal
import subprocess
from collections.abc import Sequence

from .checks import PATIENCE_SECONDS, NotReached, check, compare
from .spool import MODEL, NAME
from .strace import FALLIBLE, MUTATING, Point, calls_in, has_failed_a_call, strace
from .sweep import Sweep

# Errors, and what a worker may call them: never the job's fault. LMDB says EIO when a disk is full.
ERRORS = {
    "ENOSPC": {"noSpace", "blocked"},
    "EIO": {"broken", "noSpace", "blocked"},
    "EINTR": {"blocked"},
}


class WorkerSweep:
    """Kills and faults of the worker, without a daemon."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.root = sweep.work / "worker"
        self.directory = self.root / "partial"
        self.order = self.directory / "order.json"
        self.trace = self.root / "trace"
        source = self.root / "working" / NAME
        shutil.copytree(MODEL, source, dirs_exist_ok=True)
        self.description = sweep.order | {
            "model": str(source),
            # Other files than those that the daemon claimed.
            "source": None,
            "directory": str(self.directory),
            "cacheDirectory": str(self.root / "cache"),
        }
        self.reset()
        self.run_to_end()
        self.check_result()

    def reset(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.root / "cache", ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.order.write_text(json.dumps(self.description))

    def run(self, before: Sequence[str] = ()) -> tuple[int, list[str]]:
        """Its status, and the events that it told of."""
        command = [*before, self.sweep.daemon_path, "worker", str(self.order)]
        process = subprocess.run(command, capture_output=True, timeout=PATIENCE_SECONDS)
        return process.returncode, process.stdout.decode(errors="replace").splitlines()

    def run_to_end(self) -> None:
        status, events = self.run()
        check(status == 0, f"the next worker ended with {status}: {events[-1] if events else 'no word'}")

    def check_result(self) -> None:
        compare(self.directory / "result", self.sweep.expected)

    def points(self, calls: str) -> list[Point]:
        self.reset()
        self.run(strace(self.trace, calls, following=True))
        return calls_in(self.trace, following=True)

    def kills(self) -> None:
        for states in ("cache", "auto"):
            self.description["states"] = states
            points = self.points(MUTATING)
            print(f"worker, states: {states}: {len(points)} mutating calls", flush=True)
            for call, number in self.sweep.spread(points):
                place = f"{call} {number}, states: {states}"
                self.sweep.attempt("worker killed", place, lambda: self.kill_at(call, number))

    def kill_at(self, call: str, number: int) -> None:
        self.reset()
        status, _ = self.run(strace(self.trace, f"{call}:signal=KILL:when={number}", following=True))
        if status == 0:
            self.check_result()
            raise NotReached
        check(status == -signal.SIGKILL, f"it ended with {status} and was not killed")
        self.run_to_end()
        self.check_result()

    def faults(self) -> None:
        # What it writes with `write` are its words to the daemon, through a pipe.
        points = {calls: self.points(calls) for calls in FALLIBLE if calls != "write"}
        groups = [[(*point, error) for point in points[calls]] for calls in points for error in ERRORS]
        for call, number, error in self.sweep.share_out(groups):
            place = f"{call} {number} {error}"
            self.sweep.attempt("worker fault", place, lambda: self.fault_at(call, number, error))

    def fault_at(self, call: str, number: int, error: str) -> None:
        self.reset()
        status, events = self.run(strace(self.trace, f"{call}:error={error}:when={number}", following=True))
        has_failed = has_failed_a_call(self.trace)
        if status != 0:
            # Of a kind that the daemon tries again: nobody's checkpoint is at fault.
            last = json.loads(events[-1]) if events and "failed" in events[-1] else {}
            failure = last.get("failed", {}).get("_0", {})
            kind, message = failure.get("kind"), failure.get("message", f"no word, status {status}")
            check(has_failed, f"no call has failed, and the worker ends as '{kind}': {message}")
            check(kind in ERRORS[error], f"a passing fault ends the worker as '{kind}': {message}")
            self.run_to_end()
        self.check_result()
        if not has_failed:
            raise NotReached
