"""Running things as PostgreSQL's user, and what they cost: time, processor time of everything
that was started, memory of everything that runs at once.

A contestant may leave a process behind that goes on working after its command has returned.
So each measurement runs in a process of its own that is a "child subreaper" (prctl(2)): what
loses its parent becomes its child. When the work is done it waits for all of them to end, and
only then reads what its children used.
"""

import ctypes
import json
import os
import pathlib
import pwd
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field

USER = "postgres" if os.geteuid() == 0 else None
SAMPLE_SECONDS = 0.025
# What is left behind may idle for a while before it ends; longer than this it is told to.
PATIENCE_SECONDS = 90
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
libc = ctypes.CDLL(None, use_errno=True)


def demote():
    """Makes this process PostgreSQL's user's, for good."""
    os.umask(0o027)
    if USER:
        entry = pwd.getpwnam(USER)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)


def give(path):
    """Gives a file or a tree to PostgreSQL's user."""
    if not USER:
        return
    entry = pwd.getpwnam(USER)
    for directory, _, names in os.walk(path):
        for each in [directory, *(os.path.join(directory, name) for name in names)]:
            os.chown(each, entry.pw_uid, entry.pw_gid)
    os.chown(path, entry.pw_uid, entry.pw_gid)


def run(*words, check=True, **options):
    """Runs a command as PostgreSQL's user; returns output, seconds, peak memory in KiB and
    processor seconds."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        options.setdefault("cwd", "/")
        process = subprocess.Popen(
            [str(word) for word in words], stdout=output, stderr=subprocess.STDOUT,
            preexec_fn=demote, **options)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        output.seek(0)
        text = output.read().decode(errors="replace")
    if check and process.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))} exited with {process.returncode}:\n{text}")
    return text, seconds, usage.ru_maxrss, usage.ru_utime + usage.ru_stime


@dataclass
class Cost:
    """What some work cost."""
    seconds: float = 0.0            # what the work itself says that it took
    calls: list = field(default_factory=list)  # seconds of each call
    processor: float = 0.0          # seconds, of every process, also those left behind
    largest: int = 0                # bytes: the peak of the largest process (see below)
    together: int = 0               # bytes: the largest sampled sum over all processes
    lingered: float = 0.0           # seconds until the last process left behind had ended
    notes: dict = field(default_factory=dict)


def measure(work, environment=None):
    """Calls `work` in a process of PostgreSQL's user and returns its Cost. `work` returns a
    dictionary with `seconds`, `calls` and what else is to be noted.

    `largest` is the kernel's own peak (ru_maxrss), which also counts what a process shared
    with this Python just before it became another program: about 15 MiB is its floor.
    `together` is the sum of the proportional sizes (Pss), sampled every 25 ms.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    driver = os.fork()
    if driver == 0:
        os.close(reading)
        in_driver(work, environment or {}, writing)
    os.close(writing)
    together, said = 0, b""
    try:
        while True:
            if select.select([reading], [], [], SAMPLE_SECONDS)[0]:
                part = os.read(reading, 1 << 16)
                if not part:
                    break
                said += part
            together = max(together, resident_below(driver))
    finally:
        os.close(reading)
        if not said:
            os.kill(driver, signal.SIGTERM)
        os.waitpid(driver, 0)
    if not said:
        sys.exit("the driver ended without a result")
    answer = json.loads(said)
    if "error" in answer:
        sys.exit(answer["error"])
    return Cost(together=together, **answer)


def in_driver(work, environment, writing):
    """The life of the measuring process."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        demote()
        # After the change of user, which would reset it.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        os.environ.update(environment)
        notes = work()
        lingered = wait_for_all()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = {
            "seconds": notes.pop("seconds"), "calls": notes.pop("calls", []),
            "processor": usage.ru_utime + usage.ru_stime, "largest": usage.ru_maxrss * 1024,
            "lingered": lingered, "notes": notes,
        }
    except BaseException as error:  # whatever it is, the parent has to say it
        said = str(error) if isinstance(error, SystemExit) else traceback.format_exc()
        answer = {"error": said}
    with os.fdopen(writing, "w") as pipe:
        json.dump(answer, pipe)
    os._exit(0)


def wait_for_all():
    """Waits until no process is left of all that descend from this one."""
    began = time.monotonic()
    told = False
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return time.monotonic() - began
        if pid:
            continue
        if not told and time.monotonic() - began > PATIENCE_SECONDS:
            told = True
            for child in children(os.getpid()):
                os.kill(child, signal.SIGTERM)
        time.sleep(0.005)


def children(pid):
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as listing:
                found += [int(word) for word in listing.read().split()]
    except OSError:
        pass
    return found


def resident_below(pid):
    """The proportional size of all processes that descend from this one, in bytes."""
    total, pending = 0, children(pid)
    while pending:
        each = pending.pop()
        pending += children(each)
        try:
            with open(f"/proc/{each}/smaps_rollup") as rollup:
                for line in rollup:
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
                        break
        except OSError:
            pass  # it has ended
    return total


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def tree_bytes(path):
    """The size of all files below a directory."""
    return sum(each.stat().st_size for each in pathlib.Path(path).rglob("*") if each.is_file())
