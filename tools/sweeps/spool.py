"""A daemon with a spool of its own."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .checks import PATIENCE_SECONDS, check, compare, digests, names, settle

if TYPE_CHECKING:
    from .sweep import Sweep

MODEL = Path(__file__).resolve().parents[2] / "Tests/Fixtures/models/llama"
NAME = "llama"


class SpoolUnderTest:
    """A spool, the drops in it, and what comes of them."""

    def __init__(self, sweep: "Sweep", name: str, root: Path | None = None) -> None:
        self.sweep = sweep
        self.root = root or sweep.work / name
        self.state = self.root / "state"
        self.cache = self.root / "cache"
        self.log = sweep.work / f"{name}.log"
        self.settings = {
            # In the cache there is more to damage, and more calls that can fail.
            "states": "cache",
            "calibration": str(sweep.tokens), "samples": "8", "sequence-length": "32",
            # What operators have switched on, and what must not touch a job.
            "schedule": "00:00-24:00", "keep-done": "7d", "keep-failed": "7d",
            "hooks": str(sweep.hooks), "hook-seconds": "1",
        }

    def clear(self) -> None:
        self.remove()
        self.root.mkdir(exist_ok=True)

    def remove(self) -> None:
        for path in self.root.glob("*") if self.root.is_mount() else [self.root]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)

    def drop(self, name: str = NAME) -> None:
        """A whole checkpoint, renamed in with its marker."""
        (self.root / "incoming").mkdir(parents=True, exist_ok=True)
        staging = self.root / f"{name}.staging"
        shutil.copytree(MODEL, staging)
        (staging / ".ready").touch()
        staging.rename(self.root / "incoming" / name)

    def command(self) -> list[str]:
        settings = {"settle-seconds": "1", "threads": "1"} | self.settings
        places = ["--spool", str(self.root), "--state", str(self.state), "--cache", str(self.cache)]
        return [self.sweep.daemon_path, *places, *(f"--set={key}={value}" for key, value in settings.items())]

    def daemon(self, before: Sequence[str] = ()) -> "RunningDaemon":
        return RunningDaemon(self, before)

    def is_over(self) -> bool:
        """The last of a job's moves: its source goes to done/ or failed/."""
        held = [self.root / "incoming", self.root / "working"]
        ended = [self.root / "done", self.root / "failed"]
        return not any(map(names, held)) and any(map(names, ended))

    def await_end(
        self,
        daemon: "RunningDaemon",
        seeing: Callable[["SpoolUnderTest"], None] = lambda _: None,
    ) -> bool:
        """Waits for the job's end, looking at the output all the while; False if the daemon ended before."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not self.is_over():
            seeing(self)
            self.check_nothing_partial()
            if daemon.has_ended():
                return False
            check(time.monotonic() < until, f"the job is not over after {PATIENCE_SECONDS} s")
            time.sleep(0.005)
        return True

    def check_nothing_partial(self) -> None:
        for name in names(self.root / "output"):
            check((self.root / "output" / name / "SHA256SUMS").exists(), f"output/{name} is not complete")

    def status(self) -> dict:
        places = ["--spool", str(self.root), "--state", str(self.state)]
        process = subprocess.run(
            [self.sweep.client, "status", "--json", *places], capture_output=True, timeout=PATIENCE_SECONDS
        )
        check(process.returncode == 0, f"status ends with {process.returncode}: {process.stderr.decode()}")
        return json.loads(process.stdout)

    def reasons(self) -> list[dict]:
        """Why jobs have failed."""
        return [json.loads(path.read_text()) for path in self.root.glob("failed/*/reason.json")]

    def check_published(self, expected: dict[str, str] | None) -> dict[str, str]:
        """The job was published, once, and nothing else is left of it."""
        check(not self.reasons(), f"the job has failed: {self.reasons()}")
        check(names(self.root / "output") == [NAME], f"output/ holds {names(self.root / 'output')}")
        # The source has been moved by now; a moment later the daemon is done with the job.
        settle(lambda: not names(self.root / "working", hidden=True))
        check(len(names(self.root / "done")) == 1, f"done/ holds {names(self.root / 'done')}")
        self.check_nothing_left("working", "failed", "output/.partial", "incoming")
        # Counted once the source is out of the way.
        settle(lambda: self.status()["counters"]["published"] == 1)
        published = self.status()["counters"]["published"]
        check(published == 1, f"published counts {published}")
        output = self.root / "output" / NAME
        if expected is None:
            return digests(output)
        compare(output, expected)
        return expected

    def check_nothing_left(self, *places: str) -> None:
        """Nothing in these places of the spool, and no activation cache."""
        for place in places:
            left = names(self.root / place, hidden=True)
            check(not left, f"{place} holds {left}")
        cached = names(self.cache, hidden=True)
        check(not cached, f"the cache directory holds {cached}")


class RunningDaemon:
    """A daemon that is ended with SIGTERM, which has to end it well."""

    def __init__(self, spool: SpoolUnderTest, before: Sequence[str] = ()) -> None:
        with spool.log.open("ab") as log:
            self.log_start = log.tell()
            self.process = subprocess.Popen([*before, *spool.command()], stdout=log, stderr=log)
        self.spool = spool
        self.is_traced = bool(before)
        # Whether it may end before, and otherwise than well; who says so looks at its status.
        self.may_end = False

    @property
    def identifier(self) -> int:
        """The daemon's process, which may be strace's child."""
        return children(self.process.pid)[0] if self.is_traced else self.process.pid

    def words(self) -> str:
        """What it has logged: a spool's log goes on from one daemon to the next."""
        return self.spool.log.read_bytes()[self.log_start:].decode(errors="replace")

    def await_ready(self) -> None:
        """Until then it cannot know of a signal, and SIGTERM ends it as it ends any program."""
        settle(lambda: "ready path" in self.words() or self.has_ended())
        check("ready path" in self.words(), f"the daemon is not ready: {self.words()[-300:]}")

    def rest(self) -> None:
        """Lets it do what it does after a job's last move, unless it ends there."""
        settle(self.has_ended, seconds=0.3)

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def __enter__(self) -> "RunningDaemon":
        return self

    def __exit__(self, kind, *_: object) -> None:
        has_obeyed = self.ends_by(signal.SIGTERM)
        if not has_obeyed:
            self.ends_by(signal.SIGKILL)
        if kind is None:
            check(has_obeyed, "SIGTERM did not end the daemon")
            status = self.process.returncode
            message = f"the daemon ended with {status}, and not with 0 after SIGTERM"
            check(self.may_end or status == 0, message)

    def ends_by(self, end: signal.Signals) -> bool:
        # What strace traces is found anew each time: it begins with a child of another kind.
        for process in [self.process.pid] if not self.is_traced else children(self.process.pid):
            if not self.has_ended():
                os.kill(process, end)
        settle(self.has_ended, seconds=15)
        return self.has_ended()


def children(process: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything.
            if int(path.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found
