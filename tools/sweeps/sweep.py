"""A sweep: points, and what has come of them."""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable

from token_file import write_tokens

from .checks import Failure, NotReached
from .spool import SpoolUnderTest

# So many points of a kind may be missed, whichever is more: threads share their work out anew every time, and
# a daemon may do without a call. If all were missed there was no sweep, however few they are.
UNREACHED_SHARE = 0.05
UNREACHED_POINTS = 2

# Programs that the daemon tells of events: one that does its work, one that fails, and those that do not end.
HOOKS = {
    "done": "echo done", "failed": "exit 1", "refused": "exec sleep 60", "paused": "sleep 60 & sleep 60",
    "resumed": "kill -9 $$",
}


class Sweep:
    """The programs, a directory for them, and what has come of it so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.daemon_path = str(options.binary.resolve())
        self.client = str((options.client or options.binary.with_name("quantease")).resolve())
        self.work = options.work.resolve()
        self.limit = options.points
        self.tried: Counter[str] = Counter()
        self.unreached: Counter[str] = Counter()
        self.failures: list[str] = []
        self.tokens = self.work / "tokens.safetensors"
        self.hooks = self.work / "hooks"
        self.order: dict[str, object] = {}
        self.expected: dict[str, str] = {}

    def prepare(self) -> None:
        """Runs the undisturbed job and keeps its result and its order."""
        self.work.mkdir(parents=True)
        self.hooks.mkdir()
        for event, script in HOOKS.items():
            hook = self.hooks / f"on-{event}"
            hook.write_text(f"#!/bin/sh\n{script}\n")
            hook.chmod(0o755)
        write_tokens(self.tokens, rows=16, length=32)
        spool = SpoolUnderTest(self, "undisturbed")
        while not self.order:
            spool.clear()
            spool.drop()
            with spool.daemon() as daemon:
                spool.await_end(daemon, seeing=self.keep_order)
                self.expected = spool.check_published(None)
        spool.remove()

    def keep_order(self, spool: SpoolUnderTest) -> None:
        for path in spool.root.glob("output/.partial/*/order.json"):
            # It goes when the job is over.
            try:
                self.order = json.loads(path.read_text())
            except FileNotFoundError:
                pass

    # MARK: Points

    def attempt(self, part: str, place: str, body: Callable[[], None]) -> None:
        """Counts a point, and notes what is wrong there."""
        self.tried[part] += 1
        try:
            body()
        except NotReached:
            self.unreached[part] += 1
        except Failure as failure:
            self.note(f"{part}, {place}: {failure}")
            for log in self.work.glob("*.log"):
                shutil.copy(log, log.with_suffix(f".failure-{len(self.failures)}"))

    def note(self, failure: str) -> None:
        self.failures.append(failure)
        print(f"  FAILED {failure}", flush=True)

    def spread(self, points: list) -> list:
        """The points to try: all of them, or as many as are wanted, from the first to the last."""
        return spread(points, self.limit) if self.limit else points

    def share_out(self, groups: list[list]) -> list:
        """The same for points in groups, of which a small one gets as many as a large one."""
        groups = [group for group in groups if group]
        if not self.limit or not groups:
            return sum(groups, [])
        each = -(-self.limit // len(groups))
        return spread(sum((spread(group, each) for group in groups), []), self.limit)

    # MARK: Outcome

    def check_reach(self) -> None:
        """A sweep that met too few of its points is a failure of its own."""
        for part, tried in self.tried.items():
            unreached = self.unreached[part]
            if unreached == tried or unreached > max(UNREACHED_POINTS, UNREACHED_SHARE * tried):
                self.note(f"{part}: {unreached} of {tried} points were not reached, which is too many")

    def summary(self) -> str:
        def line(part: str) -> str:
            unreached = self.unreached[part]
            return f"{part}: {self.tried[part]} points" + (f", {unreached} not reached" if unreached else "")

        failures = [f"{len(self.failures)} failures"] + [f"  {failure}" for failure in self.failures]
        return "\n".join([*map(line, self.tried), *failures])


def spread(points: list, count: int) -> list:
    """As many as `count` of the points, evenly; a single one from the middle."""
    if len(points) <= count:
        return points
    last = len(points) - 1
    if count == 1:
        return [points[last // 2]]
    return [points[round(index * last / (count - 1))] for index in range(count)]
