"""What happens to a daemon from outside."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from token_file import write_tokens

from .checks import PATIENCE_SECONDS, NotReached, check, names, settle
from .spool import RunningDaemon, SpoolUnderTest
from .sweep import Sweep

# What is too little for a job, if not at once.
SOME_BYTES = {"cache": 64 << 10, "spool": 64 << 10, "state": 8 << 10}


class EventSweep:
    """SIGTERM, SIGHUP, a second daemon, a cut file, full file systems."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.mount = sweep.work / "mount"
        # Long enough to be disturbed.
        self.many_tokens = sweep.work / "many.safetensors"
        write_tokens(self.many_tokens, rows=2048, length=128)

    def spool(self, name: str, root: Path | None = None) -> SpoolUnderTest:
        spool = SpoolUnderTest(self.sweep, name, root)
        spool.clear()
        return spool

    def long_job(self, name: str) -> SpoolUnderTest:
        spool = self.spool(name)
        spool.settings |= {"calibration": str(self.many_tokens), "samples": "2048", "sequence-length": "128"}
        return spool

    def run(self) -> None:
        events = {
            "SIGTERM": self.termination,
            "SIGHUP": self.reload,
            "second daemon": self.second_daemon,
            "cut file": self.cut_file,
        }
        if may_mount(self.mount):
            for what, some in SOME_BYTES.items():
                for left in (0, some):
                    name = f"full {what}, {left} bytes left"
                    events[name] = lambda name=name, what=what, left=left: self.full(name, what, left)
        else:
            print("full file systems: left out, because nothing may be mounted here")
        for name in self.sweep.spread(list(events)):
            self.sweep.attempt("event", name, events[name])

    def await_linears(self, spool: SpoolUnderTest, count: int) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while spool.status()["counters"]["linears_quantized"] < count:
            check(time.monotonic() < until, f"there are not {count} linears")
            time.sleep(0.02)

    def termination(self) -> None:
        spool = self.long_job("termination")
        spool.drop()
        with spool.daemon() as daemon:
            spool.await_end(daemon)
            expected = spool.check_published(None)
        spool.clear()
        spool.drop()
        with spool.daemon():
            self.await_linears(spool, 2)
            started = time.monotonic()
        seconds = time.monotonic() - started
        check(seconds < 10, f"SIGTERM took {seconds:.1f} s")
        check(names(spool.root / "working"), "the job was over before SIGTERM came")
        check(not names(spool.root / "output"), "there is an output before the end")
        started = time.monotonic()
        with spool.daemon() as daemon:
            daemon.await_ready()
            readiness = time.monotonic() - started
            spool.await_end(daemon)
            spool.check_published(expected)
            check("goes on" in daemon.words(), "nothing goes on")
        check(readiness < 5, f"with a job to resume it took {readiness:.1f} s to be ready")
        print(f"  SIGTERM: over after {seconds:.2f} s, ready again after {readiness:.2f} s", flush=True)

    def reload(self) -> None:
        spool = self.spool("reload")
        with spool.daemon() as daemon:
            daemon.await_ready()
            os.kill(daemon.identifier, signal.SIGHUP)
            words = "configuration read anew"
            settle(lambda: words in daemon.words() or daemon.has_ended())
            check(not daemon.has_ended(), f"SIGHUP ended the daemon with {daemon.process.returncode}")
            check(words in daemon.words(), "SIGHUP did nothing")

    def second_daemon(self) -> None:
        spool = self.spool("second")
        with spool.daemon() as daemon:
            daemon.await_ready()
            second = subprocess.run(spool.command(), capture_output=True, timeout=PATIENCE_SECONDS)
            check(second.returncode == 69, f"it ended with {second.returncode}")
            words = second.stderr.decode()
            check(f"process {daemon.identifier}" in words, f"it does not name the holder: {words}")

    def cut_file(self) -> None:
        spool = self.long_job("cut")
        spool.drop()
        with spool.daemon() as daemon:
            self.await_linears(spool, 1)
            (model,) = spool.root.glob("working/*/model.safetensors")
            os.truncate(model, 4096)
            spool.await_end(daemon)
            reasons = spool.reasons()
            check(reasons and "model.safetensors" in reasons[0]["message"], f"no word of the file: {reasons}")
            check(not names(spool.root / "output"), "there is an output")
            print(f"  cut file: {reasons[0]['message']}", flush=True)
            spool.drop("next")
            settle(lambda: names(spool.root / "done"), PATIENCE_SECONDS)
            check(names(spool.root / "output") == ["next"], "no next job")

    def full(self, name: str, what: str, left: int) -> None:
        """On a small file system that somebody else has filled: the job waits, says for what, and goes on."""
        with mounted(self.mount):
            spool = self.spool("full", root=self.mount if what == "spool" else None)
            spool.cache = self.mount / "cache" if what == "cache" else self.sweep.work / "full.cache"
            spool.state = self.mount / "state" if what == "state" else self.sweep.work / "full.state"
            shutil.rmtree(self.sweep.work / "full.state", ignore_errors=True)
            # What a daemon needs to live is there from an earlier time.
            with spool.daemon() as daemon:
                daemon.await_ready()
            spool.drop()
            filler = self.mount / "filler"
            fill(filler, leaving=left)
            with spool.daemon() as daemon:
                reasons = self.await_reasons(spool, daemon, what)
                print(f"  {name}: {'; '.join(reasons) or 'done all the same'}", flush=True)
                filler.unlink()
                spool.await_end(daemon)
                spool.check_published(self.sweep.expected)
            if not reasons:
                # A small job may do with what is left.
                raise NotReached

    def await_reasons(self, spool: SpoolUnderTest, daemon: RunningDaemon, what: str) -> list[str]:
        """Why a job waits; nothing if it was done all the same."""
        until = time.monotonic() + 20
        while not spool.is_over() and time.monotonic() < until:
            check(not daemon.has_ended(), "the daemon is gone")
            reasons = reasons_to_wait(spool)
            if what == "state":
                # A job that cannot be entered is in no list; the log has to do.
                reasons += re.findall(r"error: (state database .*file system has space.*)", daemon.words())[:1]
            if reasons:
                return reasons
            time.sleep(0.1)
        check(spool.is_over(), "nothing says why it waits")
        return []


def may_mount(place: Path) -> bool:
    """In a container, root may not."""
    try:
        with mounted(place):
            return True
    except subprocess.CalledProcessError:
        return False


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[None]:
    """A file system of 4 MiB."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(path: Path, leaving: int) -> None:
    status = os.statvfs(path.parent)
    with path.open("wb") as file:
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - leaving)))


def reasons_to_wait(spool: SpoolUnderTest) -> list[str]:
    status = spool.status()
    paused = (status.get("current") or {}).get("paused_because")
    queued = [reason for item in status["queue"] for reason in item.get("reasons", [])]
    return [paused] * bool(paused) + queued
