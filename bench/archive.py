"""Archiving: the archive_command called as PostgreSQL's archiver calls it, and plain zstd over
the same segments as the limit.
"""

import os
import pathlib
import time

from contestants import Arena, Copy, peers, seawalls
from measure import measure, tree_bytes

# How long the archiver waits before it tries a file again, and how often it does.
RETRY_SECONDS, RETRIES = 1.0, 3
# In a paced run: longer than it takes to do one more segment ahead.
PACE_SECONDS = 0.15


def archiver(data, command, pause=0.0):
    """What pgarch.c does: working directory = data directory; the oldest .ready first; system(3),
    so `sh -c`; one file at a time; .ready becomes .done after 0; a failure is tried again after
    a second. With a pause before each call but the first.

    Times from the first call to the last acknowledgement.
    """
    os.chdir(data)
    status = pathlib.Path("pg_wal/archive_status")
    ready = sorted(name[:-6] for name in os.listdir(status) if name.endswith(".ready"))
    calls, failures = [], 0
    began = time.monotonic()
    for name in ready:
        if pause and calls:
            time.sleep(pause)
        words = command.replace("%p", f"pg_wal/{name}").replace("%f", name)
        for attempt in range(RETRIES):
            called = time.monotonic()
            code = os.waitstatus_to_exitcode(os.system(words))
            if code == 0:
                calls.append(time.monotonic() - called)
                break
            failures += 1
            time.sleep(RETRY_SECONDS)
        else:
            raise SystemExit(f"{words}\nexited with {code}, {RETRIES} times")
        os.rename(status / f"{name}.ready", status / f"{name}.done")
    return {"seconds": time.monotonic() - began, "calls": calls, "failures": failures}


def plain_zstd(wal, segments, out, options, processes, one_process_each):
    """`xargs -P` over the segments: one zstd for each, or few that take many."""
    at_once = 1 if one_process_each else -(-len(segments) // processes)
    words = (f"cd {wal} && printf '%s\\n' {' '.join(segments)} | xargs -P{processes} -n{at_once} "
             f"zstd {' '.join(options)} -q --output-dir-flat {out}")
    began = time.monotonic()
    code = os.waitstatus_to_exitcode(os.system(words))
    if code != 0:
        raise SystemExit(f"zstd over the segments exited with {code}")
    return {"seconds": time.monotonic() - began}


def limits(corpus, scratch, levels):
    """Plain zstd at each level: by name, its Cost."""
    found = {}
    for options in levels:
        for processes, each in [(1, True), (2, True), (2, False)]:
            name = zstd_name(options, processes, each)
            arena = Arena(scratch / "zstd")
            out = arena.repository
            found[name] = measure(
                lambda: plain_zstd(corpus.wal, corpus.segments, out, options, processes, each))
            found[name].notes["stored"] = tree_bytes(out)
            arena.close()
    return found


def zstd_name(options, processes, one_process_each):
    return (f"zstd {' '.join(options)}, {'one' if processes == 1 else 'two'} at a time"
            + (", a process for each segment" if one_process_each else ", two processes in all"))


def archive(contestant, corpus, arena, pause=0.0, count=None):
    """One run of one contestant into an empty repository."""
    corpus.data_directory(arena.data, corpus.segments[:count])
    contestant.prepare(arena)
    cost = measure(
        lambda: archiver(arena.data, contestant.archive_command(arena), pause),
        arena.environment)
    cost.notes["stored"] = tree_bytes(arena.repository)
    return cost


def contest(corpus, scratch, programs, runs, store=None, with_limits=True):
    """Everyone in turn, `runs` times, on local files with plain zstd as well. Returns the costs
    by name, and the arenas of the last round, whose repositories hold every segment."""
    contestants = seawalls(programs) + peers() + ([] if store else [Copy()])
    levels = [each.zstd for each in contestants if each.zstd]
    costs, arenas = {}, {}
    for number in range(runs):
        for position, contestant in enumerate(contestants):
            arena = Arena(scratch / f"{'s3' if store else 'local'}-{number}-{position}", store)
            cost = archive(contestant, corpus, arena)
            costs.setdefault(contestant.name, []).append(cost)
            if number == runs - 1:
                arenas[contestant] = arena
            else:
                arena.close()
        if with_limits and not store:
            for name, cost in limits(corpus, scratch, levels).items():
                costs.setdefault(name, []).append(cost)
    return costs, arenas


def paced(corpus, scratch, programs, store=None):
    """A server that is not in a hurry: what a call costs whose segment was done ahead."""
    costs = {}
    for position, contestant in enumerate(seawalls(programs)[:1] + peers()[1:]):
        arena = Arena(scratch / f"{'s3' if store else 'local'}-paced-{position}", store)
        cost = archive(contestant, corpus, arena, PACE_SECONDS, 60)
        cost.calls = cost.calls[1:]  # nobody could have done the first one ahead
        costs[contestant.name] = cost
        arena.close()
    return costs
