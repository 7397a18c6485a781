#!/usr/bin/env python3
"""What tools/live-test does on the machine that it boots. It changes the machine; run it nowhere else.

Says on the serial console what it finds, a line each that begins with LIVE: `ok`, `FAILED`, and at the end the two
counts. `LIVE POWER CUT` asks for the power to be cut; what had been found by then is gone on with after the next boot.
"""

import json
import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path

PROJECT = Path("/srv/quantease")
PROGRAMS = "/srv/programs"
MODELS = Path("/srv/models")
SPOOL = Path("/var/spool/quantease")
INCOMING, OUTPUT = SPOOL / "incoming", SPOOL / "output"
CONFIGURATION = Path("/etc/quantease/quanteased.yaml")
PROGRESS = Path("/srv/live-progress.json")
UNIT = "quanteased.service"
# A job of the small model takes some seconds in an emulator, and there are nearly twenty of them.
PATIENCE_SECONDS = 300
# The long job takes some minutes where the processor is emulated.
LONG_JOB_SECONDS = 900
# The first words of what the daemon has to say on such a day.
OURS = (
    "ready", "queued", "begun", "quantized", "published", "stopped", "refused", "recovered", "goes on",
    "configuration read anew", "reading", "checking", "embedding", "layer", "writing", "verifying", "computing",
    "the job needs", "paused", "pause as asked", "resume as asked", "no job is worked on", "jobs are worked on again",
)


class Failure(Exception):
    """Something that must not be."""


def check(condition: object, message: str) -> None:
    if not condition:
        raise Failure(message)


def say(text: str) -> None:
    with open("/dev/ttyS0", "w") as console:
        console.write(f"LIVE {text}\n")


class Findings:
    """What has come of the checks, over a power cut as well."""

    def __init__(self) -> None:
        known = json.loads(PROGRESS.read_text()) if PROGRESS.exists() else {}
        self.passed: int = known.get("passed", 0)
        self.failed: int = known.get("failed", 0)
        self.notes: dict = known.get("notes", {})

    def attempt(self, what: str, body) -> None:
        started = time.monotonic()
        try:
            body()
        except (Failure, OSError, subprocess.SubprocessError, ValueError, KeyError, StopIteration) as error:
            self.failed += 1
            return say(f"FAILED {what}: {error}")
        self.passed += 1
        say(f"ok {what} ({time.monotonic() - started:.0f} s)")

    def keep(self) -> None:
        with PROGRESS.open("w") as file:
            json.dump(vars(self), file)
            file.flush()
            os.fsync(file.fileno())


findings = Findings()


# MARK: Commands


def shell(command: str, user: str = "root", umask: str = "022", fails: bool = False, **options: object) -> str:
    """What a person types at a prompt."""
    line = f"umask {umask}; {command}"
    arguments = ["bash", "-c", line] if user == "root" else ["runuser", "-u", user, "--", "bash", "-c", line]
    result = subprocess.run(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_SECONDS, **options)
    said = result.stdout.strip()
    check((result.returncode != 0) == fails, f"{user}: '{command}' ended with {result.returncode}: {said[-400:]}")
    return said


def systemctl(command: str) -> str:
    return shell(f"systemctl {command}")


def unit(key: str) -> str:
    return shell(f"systemctl show --property={key} --value {UNIT}")


def status() -> dict:
    return json.loads(shell("sudo -u quantease quantease status --json"))


def why(name: str) -> str:
    return shell(f"sudo -u quantease quantease why {name}")


def await_that(what: str, condition, seconds: float = PATIENCE_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < until, f"after {seconds:.0f} s not yet: {what}")
        # Looking costs an emulated machine more than the work that is looked at.
        time.sleep(1.5)


def journal(*arguments: str) -> list[dict]:
    said = subprocess.run(
        ["journalctl", "--unit", UNIT, "--output", "json", "--no-pager", *arguments],
        capture_output=True, text=True).stdout
    return [json.loads(line) for line in said.splitlines()]


def messages(*arguments: str) -> list[str]:
    """What the daemon itself has said."""
    return [entry["MESSAGE"] for entry in journal(*arguments) if entry.get("_TRANSPORT") == "stdout"]


# MARK: Models


def make(name: str, owner: str, directory: int = 0o755, files: int = 0o644, model: str = "short") -> Path:
    """A checkpoint of somebody's, which no other job is the same as."""
    path = Path("/srv/people") / owner / name
    shell(f"mkdir -p {path.parent} && cp -r {MODELS / model} {path} && echo {name} > {path}/note.txt")
    shell(f"chown {owner}: {path.parent} && chown -R {owner}: {path}")
    for file in path.iterdir():
        file.chmod(files)
    path.chmod(directory)
    return path


def digests(name: str) -> dict[str, str]:
    """The result's files, without those that hold times or the drop's name."""
    lines = (OUTPUT / name / "SHA256SUMS").read_text().splitlines()
    found = {path: digest for digest, path in (line.split("  ", 1) for line in lines)}
    return {path: digest for path, digest in found.items() if not re.match(r"quantease_(report|job)|note\.txt", path)}


def outcome(name: str) -> dict | None:
    return next((job for job in status()["finished"] if job["name"] == name), None)


def linears_done() -> int:
    return (status().get("current") or {}).get("linears_done", 0)


# MARK: Drops

# name, who drops it, how, with which umask, whose the original is, modes of directory and files, what comes of it
DROPS = [
    ("root-cp", "root", "cp -r {source} {incoming}/", "022", "root", 0o755, 0o644, "published"),
    ("root-mv", "root", "mv {source} {incoming}/", "022", "root", 0o755, 0o644, "published"),
    ("root-rsync", "root", "rsync -r {source} {incoming}/", "022", "root", 0o755, 0o644, "published"),
    ("root-submit", "root", "quantease submit {source}", "022", "root", 0o755, 0o644, "published"),
    ("root-0600", "root", "cp -r {source} {incoming}/", "022", "root", 0o755, 0o600, "refused"),
    ("alice-cp-002", "alice", "cp -r {source} {incoming}/", "002", "alice", 0o755, 0o644, "published"),
    ("alice-cp-022", "alice", "cp -r {source} {incoming}/", "022", "alice", 0o755, 0o644, "published"),
    # The default access control list of incoming/ stands above the umask.
    ("alice-cp-077", "alice", "cp -r {source} {incoming}/", "077", "alice", 0o755, 0o644, "published"),
    ("alice-mv", "alice", "mv {source} {incoming}/", "022", "alice", 0o755, 0o644, "published"),
    ("alice-mv-setgid", "alice", "mv {source} {incoming}/", "022", "alice", 0o2755, 0o644, "published"),
    ("alice-mv-0700", "alice", "mv {source} {incoming}/", "022", "alice", 0o700, 0o600, "refused"),
    ("alice-rsync", "alice", "rsync -a {source} {incoming}/", "022", "alice", 0o755, 0o644, "published"),
    ("alice-submit", "alice", "quantease submit {source}", "077", "alice", 0o700, 0o600, "published"),
    ("bob-owned", "root", "cp -a {source} {incoming}/", "022", "bob", 0o755, 0o644, "published"),
    ("bob-0700", "root", "mv {source} {incoming}/", "022", "bob", 0o700, 0o600, "refused"),
    ("read-only", "root", "mkdir {incoming}/{name} && mount --bind -o ro {source} {incoming}/{name}",
     "022", "root", 0o755, 0o644, "published"),
]


def drop_all() -> None:
    for name, user, command, umask, owner, directory, files, _ in DROPS:
        source = make(name, owner, directory, files)
        shell(command.format(source=source, incoming=INCOMING, name=name), user, umask)


def look_at(name: str, end: str, user: str) -> None:
    if end == "published":
        await_that(f"{name} is over", lambda: outcome(name))
        job = outcome(name)
        check(job["outcome"] == "published", f"it is {job['outcome']}: {job.get('failure')}")
        check(Path(job["output"]) == OUTPUT / name, f"it stands in {job['output']}")
        shell(f"sudo -u quantease quantease verify {OUTPUT / name}")
        source = re.search(r"source +(\S+)", why(name))
        check(source and Path(source[1]).is_dir(), f"nothing says where its source is: {why(name)}")
        check(
            source[1].startswith(str(SPOOL / "done")) or source[1].endswith(f"{job['id']}.done")
            or name == "read-only", f"its source stands in {source[1]}")
        return
    def refusals() -> list[dict]:
        return [entry for entry in journal()
                if entry["MESSAGE"].startswith("refused") and f"name={name} " in entry["MESSAGE"] + " "]
    await_that(f"{name} is refused", refusals)
    entry = refusals()[0]
    check(entry["PRIORITY"] == "4", f"a refusal has priority {entry['PRIORITY']}")
    command = re.search(r'mend="([^"]*)"', entry["MESSAGE"])[1]
    check("refused" in why(name), f"why says {why(name)}")
    # As the person would: the line as it stands, up to what else it offers.
    line = re.match(r"([^;]*)", command)[1]
    shell(f"sudo systemctl is-active {UNIT}")
    time.sleep(3)
    check(len(refusals()) == 1, f"it is logged {len(refusals())} times")
    shell(line, user if user != "root" else "root")
    look_at(name, "published", user)


def outsider() -> None:
    source = make("bob-submit", "bob")
    said = shell(f"quantease submit {source}", "bob", fails=True)
    check("ermission" in said and "usermod" in said, f"it says {said}")


def unreadable_source() -> None:
    """As root finds files on a network mount that squashes root; here alice those of bob."""
    source = make("squashed", "bob", 0o755, 0o600)
    said = shell(f"quantease submit {source}", "alice", fails=True)
    check("ermission" in said and str(source) in said, f"it says {said}")
    left = [path.name for path in INCOMING.iterdir() if path.name.startswith(".squashed")]
    check(not left, f"it left {left}")


# MARK: The service


def install() -> None:
    shell("useradd --create-home alice && useradd --create-home bob")
    shell(f"./tools/install --binaries {PROGRAMS}", cwd=PROJECT)
    text = CONFIGURATION.read_text()
    for key, value in (("calibration", "/srv/calibration.safetensors"), ("samples", "8"), ("sequence-length", "32")):
        text, count = re.subn(rf"(?m)^  #{key}:.*$", f"  {key}: {value}", text)
        check(count == 1, f"the example has {count} lines for {key}")
    CONFIGURATION.write_text(text)
    shell("sudo -u quantease quanteased --check-config")
    shell("sudo usermod --append --groups quantease alice")
    # Ten minutes are too long for a test, and so many starts in so short a time are its own.
    drop_in = Path("/etc/systemd/system/quanteased.service.d/live-test.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=20\nTimeoutAbortSec=5\nRestartSec=1\n")
    systemctl("daemon-reload")
    systemctl("enable --now quanteased.service")


def units() -> None:
    for name in (UNIT, "quanteased.socket"):
        check(shell(f"systemctl is-active {name}") == "active", f"{name} is not active")
        check(shell(f"systemctl is-enabled {name}") == "enabled", f"{name} is not enabled")
    exposure = shell(f"systemd-analyze security --no-pager {UNIT}").splitlines()[-1]
    check(re.search(r"0\.[012] ", exposure), exposure)
    check("idle" in unit("StatusText"), f"its status is {unit('StatusText')}")


def page() -> None:
    def fetch(path: str) -> str:
        return urllib.request.urlopen(f"http://127.0.0.1:8188{path}", timeout=20).read().decode()
    check("<html" in fetch("/"), "the page is none")
    check("quantease_jobs_published_total" in fetch("/metrics"), "there are no metrics")
    check("state_text" in json.loads(fetch("/status.json")), "there is no status.json")


def everybody() -> None:
    """Who may do nothing here may ask, and members of the group may have the daemon wait."""
    check("quanteased is running" in shell("quantease status", "bob"), "bob gets no status")
    shell("quantease pause", "bob", fails=True)
    shell("quantease pause", "alice")
    said = shell("quantease status", "bob")
    check("no job is worked on: held back" in said, f"bob sees {said}")
    check("held back" in unit("StatusText"), f"systemd sees {unit('StatusText')}")
    shell("quantease resume", "alice")
    check("no job is worked on" not in shell("quantease status", "bob"), "it is held back still")


def told() -> None:
    """Programs of a unit of their own are told, and can write nothing into the spool."""
    hook = Path("/etc/quantease/hooks/on-done")
    hook.parent.mkdir()
    hook.write_text(
        "#!/bin/sh\n"
        'echo "told of $QUANTEASE_EVENT $QUANTEASE_NAME, report $QUANTEASE_REPORT"\n'
        f"touch {OUTPUT}/mine && echo the spool is open\n"
        "python3 -c 'import socket; socket.socket()' && echo there is a network\n")
    hook.chmod(0o755)
    systemctl("enable --now quanteased-hooks.path")
    shell(f"quantease submit {make('hooked', 'root')}")

    def said() -> str:
        return shell("journalctl --unit quanteased-hooks.service --output cat --no-pager")
    await_that("the program is told", lambda: "told of done hooked" in said())
    check(f"report {OUTPUT}/hooked/quantease_report.html" in said(), f"it says {said()}")
    await_that("it has ended", lambda: not list((SPOOL / ".hooks").iterdir()))
    check("there is a network" in said() and "the spool is open" not in said(), f"it says {said()}")
    hook.unlink()


def kernels() -> None:
    """The service computes with all that the processor has: the unit takes none of it away."""
    flags = set(re.search(r"flags\s*: (.*)", Path("/proc/cpuinfo").read_text())[1].split())
    check("avx2" in flags, "the processor that was booted has no AVX2: take a newer emulator, or KVM")
    shell(f"quantease submit {make('half', 'root', model='half')}")
    await_that("the job is over", lambda: outcome("half"))
    taken = json.loads((OUTPUT / "half/quantease_report.json").read_text())["settings"]["kernels"]
    say(f"the service computes by {taken}")
    name = re.match(r"OpenBLAS (\w+)", taken)[1]
    is_wide = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags
    check(name in (("SkylakeX", "Cooperlake", "SapphireRapids") if is_wide else ("Haswell", "Zen")), taken)
    check(("amx_bf16" in flags) == taken.endswith("bfloat16 products by AMX"), taken)
    free = json.loads(shell("quantease inspect /srv/models/half --json"))["kernels"]
    check(free == taken, f"outside the unit they are {free}, and {taken} in it")


def pipes() -> None:
    """A reader that goes, and a full disk: neither ends in a trap."""
    said = shell("set -o pipefail; quantease --help | true; sudo -u quantease quantease status | head -n 1")
    check(re.fullmatch("quanteased is running", said), f"it says {said}")
    said = shell("quantease inspect /srv/models/short > /dev/full", fails=True)
    check("No space left" in said and "Fatal" not in said, f"it says {said}")


def memory_limit() -> None:
    # Less than the 33 MB of the job's plan beside what the daemon itself has.
    systemctl(f"set-property --runtime {UNIT} MemoryMax=40M")
    try:
        source = make("limited", "root")
        shell(f"quantease submit {source}")
        await_that("the job waits for memory",
                   lambda: "memory" in ((status().get("current") or {}).get("paused_because") or ""), 60)
        check(unit("ActiveState") == "active", "the daemon is gone")
    finally:
        systemctl(f"set-property --runtime {UNIT} MemoryMax=infinity")
    await_that("the job is over", lambda: outcome("limited"), 120)
    check(outcome("limited")["outcome"] == "published", f"it came to {outcome('limited')}")


# MARK: The long job


def drop_long(name: str) -> None:
    source = make(name, "root", model="long")
    (source / "quantease.yaml").write_text("calibration: /srv/more.safetensors\nsamples: 128\nsequence-length: 64\n")
    shell(f"quantease submit {source}")


def undisturbed() -> None:
    drop_long("undisturbed")
    await_that("the long job has begun", lambda: linears_done() > 0)
    current = status()["current"]
    check(current["seconds_elapsed"] > 0, "it says that no time has gone by")
    check(status().get("cache_bytes", 1) > 0, "it says that the cache is empty")
    await_that("the long job is over", lambda: outcome("undisturbed"), LONG_JOB_SECONDS)
    check(outcome("undisturbed")["outcome"] == "published", f"it came to {outcome('undisturbed')}")
    findings.notes["undisturbed"] = digests("undisturbed")


def further(count: int = 3) -> None:
    """The job at work gets further."""
    before = linears_done()
    await_that("the job gets further", lambda: linears_done() >= before + count, 120)


def restarts_after(disturbance, what: str) -> None:
    further()
    before = unit("MainPID")
    disturbance(int(before))
    await_that(f"another daemon runs after {what}", lambda: unit("MainPID") not in (before, "0"), 90)
    further()


def killed(process: int) -> None:
    os.kill(process, 9)


def stopped(process: int) -> None:
    os.kill(process, 19)
    await_that("the watchdog ends it", lambda: not Path(f"/proc/{process}").exists(), 90)


def stop_and_start() -> None:
    further()
    started = time.monotonic()
    systemctl(f"stop {UNIT} quanteased.socket")
    check(time.monotonic() - started < 15, f"stopping took {time.monotonic() - started:.0f} s")
    check(status()["service"] == "stopped", "status says that it runs")
    systemctl(f"start {UNIT}")
    further()


def reload() -> None:
    before = unit("MainPID")
    systemctl(f"reload {UNIT}")
    await_that("the configuration is read", lambda: any("read anew" in text for text in messages()), 30)
    check(unit("MainPID") == before, "it was started anew")


def power_cut() -> None:
    further()
    findings.notes["linears"] = linears_done()


def resumed() -> None:
    await_that("the daemon runs", lambda: unit("ActiveState") == "active", 120)
    await_that("the job goes on", lambda: any("goes on" in text for text in messages("--boot")), 120)
    await_that("the disturbed job is over", lambda: outcome("disturbed"), LONG_JOB_SECONDS)
    check(outcome("disturbed")["outcome"] == "published", f"it came to {outcome('disturbed')}")
    found, wanted = digests("disturbed"), findings.notes["undisturbed"]
    check(found == wanted, f"it differs: {found} {wanted}")


def log_is_ours() -> None:
    foreign = [text for text in messages() if not text.startswith(OURS)]
    check(not foreign, f"{len(foreign)} lines are not: {foreign[:3]}")
    errors = [entry["MESSAGE"] for entry in journal("--priority", "err") if entry.get("_TRANSPORT") == "stdout"]
    check(not errors, f"{len(errors)} errors: {errors[:3]}")


def first_boot() -> None:
    findings.attempt("tools/install and systemctl enable --now, as in the README", install)
    if findings.failed:
        return
    findings.attempt("units are active, exposure is at most 0.2", units)
    findings.attempt("page, metrics and status.json through the socket unit", page)
    findings.attempt("every user may ask, and members of the group may pause", everybody)
    findings.attempt("programs are told of events", told)
    findings.attempt("the processor's kernels are used under the unit's restrictions", kernels)
    findings.attempt("commands end well when nobody reads, and when nothing fits", pipes)
    findings.attempt("drops of all owners and modes", drop_all)
    for name, user, *_, end in DROPS:
        findings.attempt(f"drop {name} is {end}", lambda: look_at(name, end, user))
    findings.attempt("an outsider's submit is refused with the mend", outsider)
    findings.attempt("a source that cannot be read is refused by name", unreadable_source)
    findings.attempt("MemoryMax is heeded", memory_limit)
    findings.attempt("the journal holds our lines alone", log_is_ours)
    findings.attempt("the long job, undisturbed", undisturbed)
    drop_long("disturbed")
    findings.attempt("kill -9", lambda: restarts_after(killed, "a kill"))
    findings.attempt("SIGSTOP until the watchdog", lambda: restarts_after(stopped, "the watchdog"))
    findings.attempt("systemctl stop, start", stop_and_start)
    findings.attempt("systemctl reload", reload)
    findings.attempt("systemctl restart", lambda: restarts_after(lambda _: systemctl(f"restart {UNIT}"), "it"))
    findings.attempt(
        "an upgrade by tools/install",
        lambda: restarts_after(
            lambda _: shell(f"./tools/install --binaries {PROGRAMS}", cwd=PROJECT), "the upgrade"))
    findings.attempt("the job is still at work", power_cut)
    findings.keep()
    say("POWER CUT")
    time.sleep(60)


def main() -> None:
    if PROGRESS.exists():
        findings.attempt("after the power cut the job goes on, to the bytes of an undisturbed one", resumed)
    else:
        first_boot()
    say(f"{findings.passed} passed, {findings.failed} failed")
    shell("systemctl poweroff --force --force")


main()
