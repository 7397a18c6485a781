"""System calls: which ones a program makes, and what strace makes of them."""

import re
from collections import Counter
from pathlib import Path

# What changes files or the kernel's memory of them. `?`: not every architecture has the call.
MUTATING = (
    "write,pwrite64,pwritev,?pwritev2,writev,ftruncate,fallocate,fsync,fdatasync,msync,"
    "?rename,?renameat,renameat2,?unlink,unlinkat,?mkdir,mkdirat,?link,linkat,?chmod,fchmod,fchmodat,flock"
)
# Calls that may fail, each as it is called on one architecture or another.
FALLIBLE = (
    "write", "pwrite64", "fsync", "fdatasync", "fallocate", "?rename,?renameat,renameat2", "?mkdir,mkdirat"
)

# A call, and the how-manyeth of that name in its thread.
Point = tuple[str, int]


def strace(log: Path, what: str, following: bool = False) -> list[str]:
    """The beginning of a command that notes calls in `log`.

    `what` names the calls, or is an injection into one: `fsync:error=EIO:when=3`.
    """
    command = ["strace", "-qq", "-s", "512", "-o", str(log), "-e", f"trace={what.split(':')[0]}"]
    command += ["-e", "signal=STOP"] + (["-f"] if following else [])
    return command + (["-e", f"inject={what}"] if ":" in what else [])


def has_failed_a_call(log: Path) -> bool:
    """Whether an error was injected: a run in which none was proves nothing."""
    return "(INJECTED)" in log.read_text(errors="replace")


def numbered_calls(log: Path, following: bool) -> list[tuple[str, int, str]]:
    """The calls noted: name, number and line. Numbers are as strace counts, by thread and name."""
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        thread, text = line.split(maxsplit=1) if following else ("", line)
        if match := re.match(r"([a-z0-9_]+)\(", text):
            counts[thread, match[1]] += 1
            found.append((match[1], counts[thread, match[1]], text))
    return found


def calls_in(log: Path, following: bool) -> list[Point]:
    """The points at which a program can be met; of threads that get to the same number, the first is."""
    return list(dict.fromkeys((name, number) for name, number, _ in numbered_calls(log, following)))


def words_in(log: Path) -> list[tuple[int, str]]:
    """What a worker has told its daemon: the number of the `write`, and the event in words.

    Its standard output is for nothing else, and the daemon writes nothing there.
    """
    events = []
    for name, number, text in numbered_calls(log, following=True):
        if name == "write" and (match := re.match(r'write\(1, "\{\\"(\w+)\\"', text)):
            detail = re.search(r'\\"(?:name|_0)\\":\\"((?:[^\\"]|\\\\)*)', text)
            # JSON's way of writing a slash, and strace's of writing a backslash.
            words = f"{match[1]} {detail[1]}" if detail else match[1]
            events.append((number, words.replace("\\\\/", "/")))
    return events


def stops_in(log: Path) -> list[int]:
    """The threads that were stopped by SIGSTOP, in order; a process has its first thread's number."""
    pattern = r"^(\d+) +--- stopped by SIGSTOP ---$"
    return [int(thread) for thread in re.findall(pattern, log.read_text(), re.MULTILINE)]
