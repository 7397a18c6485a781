"""What lies on the disk changes while a job runs: its activation cache, or the checkpoint that it reads.

The worker is stopped where it tells its daemon of something, which is at the same place every time, and goes
on when the damage is done.
"""

import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .checks import PATIENCE_SECONDS, NotReached, check, names, settle
from .lmdb import overwrite_values
from .spool import NAME, RunningDaemon, SpoolUnderTest, children
from .strace import stops_in, strace, words_in
from .sweep import Sweep


class Moment(NamedTuple):
    """A word of a worker's. With number 0 it is the moment before its start."""

    is_resumed: bool
    number: int
    words: str

    @property
    def is_linear(self) -> bool:
        return self.words.startswith("linear ")

    def __str__(self) -> str:
        return f"{'resumed' if self.is_resumed else 'first'} worker, {self.words}"


class StoppingDaemon(RunningDaemon):
    """A daemon whose worker stops at a word; whatever else stops, having said as much, goes on at once."""

    def __init__(self, spool: SpoolUnderTest, trace: Path, number: int) -> None:
        trace.unlink(missing_ok=True)
        super().__init__(spool, strace(trace, f"write:signal=STOP:when={number}", following=True))
        self.trace = trace
        self.stops_seen = 0

    def await_worker(self) -> int:
        """Waits until the worker is stopped: its process."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not (worker := self.stopped_worker()):
            if self.spool.is_over() or super().has_ended():
                raise NotReached
            check(time.monotonic() < until, "the worker neither stops nor ends")
            time.sleep(0.005)
        return worker

    def stopped_worker(self) -> int | None:
        """A worker that was stopped since the last call."""
        stops = stops_in(self.trace) if self.trace.exists() else []
        fresh, self.stops_seen = stops[self.stops_seen:], len(stops)
        workers = []
        for process in children(self.process.pid) if fresh else []:
            workers += children(process)
            if process in fresh:
                resume(process)
        return next((worker for worker in workers if worker in fresh), None)

    def has_ended(self) -> bool:
        if worker := self.stopped_worker():
            resume(worker)
        return super().has_ended()


def resume(process: int) -> None:
    # Its end may have come before.
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


class DamageSweep:
    """Damage at every moment of a job's first worker, and of one that goes on after half of the linears."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.spool = SpoolUnderTest(sweep, "damage")
        # strace would stop them, too, and wait for them.
        self.spool.settings["hooks"] = "/nowhere"
        self.trace = sweep.work / "damage.trace"
        first = self.moments_of_a_worker(False)
        linears = [moment for moment in first if moment.is_linear]
        self.middle, self.last = linears[len(linears) // 2], linears[-1]
        self.moments = first + [Moment(True, 0, "before its start")] + self.moments_of_a_worker(True)
        self.noticed = 0

    # MARK: Running

    def moments_of_a_worker(self, is_resumed: bool) -> list[Moment]:
        """Up to the last linear: what comes behind it has no need of the cache, or of all of the source."""
        self.begin(is_resumed)
        with self.spool.daemon(strace(self.trace, "write", following=True)) as daemon:
            self.spool.await_end(daemon)
            self.spool.check_published(self.sweep.expected)
        moments = [Moment(is_resumed, *words) for words in words_in(self.trace)]
        last = max(index for index, moment in enumerate(moments) if moment.is_linear)
        return moments[:last + 1]

    def begin(self, is_resumed: bool) -> None:
        """A drop, of which a worker that had to end has done half if there is to be one that goes on."""
        self.spool.clear()
        self.spool.drop()
        if is_resumed:
            with StoppingDaemon(self.spool, self.trace, self.middle.number) as daemon:
                daemon.await_worker()

    def run(
        self, moment: Moment, damage: Callable[[], None], outcome: Callable[[RunningDaemon], None]
    ) -> None:
        """A job that is damaged at a moment, and what has come of it."""
        self.begin(moment.is_resumed)
        if moment.number == 0:
            damage()
            with self.spool.daemon() as daemon:
                self.spool.await_end(daemon)
                outcome(daemon)
            return
        with StoppingDaemon(self.spool, self.trace, moment.number) as daemon:
            worker = daemon.await_worker()
            damage()
            resume(worker)
            self.spool.await_end(daemon)
            outcome(daemon)

    # MARK: The activation cache

    def cache(self) -> None:
        """Whatever becomes of the cache's values, the result is the same, and a warning tells of it."""
        # A first worker has none before, and nobody reads it after the last linear.
        full = [moment for moment in self.moments if moment.is_resumed or moment.is_linear]
        for moment in self.sweep.spread([moment for moment in full if moment.words != self.last.words]):
            self.sweep.attempt("cache damage", str(moment), lambda: self.damage_cache(moment))
        reached = self.sweep.tried["cache damage"] - self.sweep.unreached["cache damage"]
        print(f"cache damage: {self.noticed} of {reached} noticed", flush=True)
        if self.noticed <= reached / 2:
            self.sweep.note(f"cache damage: only {self.noticed} of {reached} were noticed")

    def damage_cache(self, moment: Moment) -> None:
        def damage() -> None:
            (path,) = self.spool.cache.glob("*.activations.mdb")
            count = overwrite_values(path, random.Random(str(moment)))
            check(count > 0, "the cache holds nothing to be damaged")

        def outcome(daemon: RunningDaemon) -> None:
            self.spool.check_published(self.sweep.expected)
            self.noticed += re.search(r"warning: .*activation cache: .* is damaged", daemon.words()) is not None

        self.run(moment, damage, outcome)

    # MARK: The source

    def source(self) -> None:
        """Whatever becomes of the checkpoint, its job fails by the file's name."""
        # A group each, so that few points are of several kinds.
        groups = [[(moment, change) for moment in self.moments] for change in CHANGES]
        for moment, change in self.sweep.share_out(groups):
            place = f"{moment}, {change}"
            self.sweep.attempt("source damage", place, lambda: self.damage_source(moment, *CHANGES[change]))

    def damage_source(self, moment: Moment, file: str, change: Callable[[Path], None]) -> None:
        def damage() -> None:
            (path,) = self.spool.root.glob(f"working/*/{file}")
            change(path)

        def outcome(_: RunningDaemon) -> None:
            reasons = self.spool.reasons()
            check(reasons and f"{NAME}/{file}" in reasons[0]["message"], f"no word of {file}: {reasons}")
            settle(lambda: not names(self.spool.cache, hidden=True))
            self.spool.check_nothing_left("output/.partial", "working", "incoming", "done")
            check(not names(self.spool.root / "output"), f"output/ holds {names(self.spool.root / 'output')}")

        self.run(moment, damage, outcome)


def write_into(path: Path) -> None:
    """As by `dd conv=notrunc`: the length stays."""
    with path.open("r+b") as file:
        middle = path.stat().st_size // 2
        os.pwrite(file.fileno(), random.Random(1).randbytes(64), middle)


def write_into_and_hide_it(path: Path) -> None:
    times = path.stat()
    write_into(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES = {
    "shard written to": ("model.safetensors", write_into),
    "shard written to, its time set back": ("model.safetensors", write_into_and_hide_it),
    "config.json written to": ("config.json", write_into),
    "shard cut": ("model.safetensors", cut),
}
