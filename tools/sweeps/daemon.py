"""A daemon with a drop. Only its main thread is traced, so that nothing happens to the worker."""

import signal

from .checks import NotReached, check
from .spool import SpoolUnderTest
from .strace import FALLIBLE, MUTATING, Point, calls_in, has_failed_a_call, strace
from .sweep import Sweep
from .worker import ERRORS


class DaemonSweep:
    """Kills and faults of the daemon, from its start to its end by SIGTERM."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.spool = SpoolUnderTest(sweep, "daemon")
        self.trace = sweep.work / "trace"

    def reset(self) -> None:
        self.spool.clear()
        self.spool.drop()

    def points(self, calls: str) -> list[Point]:
        self.run(strace(self.trace, calls))
        return calls_in(self.trace, following=False)

    def run(self, before: list[str]) -> int:
        """A daemon that does the job and ends, or is kept from either: its status."""
        self.reset()
        with self.spool.daemon(before) as daemon:
            daemon.may_end = True
            if self.spool.await_end(daemon):
                daemon.rest()
        return daemon.process.returncode

    def run_to_end(self) -> None:
        """What a daemon makes of what another one left."""
        with self.spool.daemon() as daemon:
            daemon.await_ready()
            self.spool.await_end(daemon)
            self.spool.check_published(self.sweep.expected)

    def kills(self) -> None:
        points = self.points(MUTATING)
        print(f"daemon: {len(points)} mutating calls in the main thread", flush=True)
        for call, number in self.sweep.spread(points):
            self.sweep.attempt("daemon killed", f"{call} {number}", lambda: self.kill_at(call, number))

    def kill_at(self, call: str, number: int) -> None:
        status = self.run(strace(self.trace, f"{call}:signal=KILL:when={number}"))
        check(status in (0, -signal.SIGKILL), f"it ended with {status} and was not killed")
        self.run_to_end()
        if status == 0:
            # A call that the daemon did without this time.
            raise NotReached

    def faults(self) -> None:
        points = {calls: self.points(calls) for calls in FALLIBLE}
        groups = [[(*point, error) for point in points[calls]] for calls in points for error in ERRORS]
        for call, number, error in self.sweep.share_out(groups):
            place = f"{call} {number} {error}"
            self.sweep.attempt("daemon fault", place, lambda: self.fault_at(call, number, error))

    def fault_at(self, call: str, number: int, error: str) -> None:
        self.reset()
        with self.spool.daemon(strace(self.trace, f"{call}:error={error}:when={number}")) as daemon:
            is_over = self.spool.await_end(daemon)
            daemon.may_end = not is_over
            if is_over:
                self.spool.check_published(self.sweep.expected)
        if not is_over:
            # Before it has its spool, a daemon may refuse to start, with a word and a status for it.
            status, words = daemon.process.returncode, daemon.words()
            check(status in (69, 71, 73, 74, 75), f"the daemon ended with {status}")
            check("ready path" not in words, f"the daemon gave up with {status}: {words[-300:]}")
            self.run_to_end()
        if not has_failed_a_call(self.trace):
            raise NotReached
