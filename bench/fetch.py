"""Fetching: the restore_command called as recovery calls it, and recovered servers."""

import filecmp
import os
import re
import time

from contestants import Arena, Copy, SAME_LEVEL
from corpus import POSTGRES, SEGMENT_BYTES
from measure import give, measure, run


# About what replaying a segment takes: the time in which one may be fetched ahead.
PACE_SECONDS = 0.15


def recovery(data, command, segments, absent, pause=0.0):
    """What xlogarchive.c does: working directory = data directory; system(3), so `sh -c`; into
    pg_wal/RECOVERYXLOG, which then gets its own name; first the history of a timeline that was
    never born, then one segment after the other until one is certainly absent.

    Times from the first segment's call to the last one's delivery.
    """
    os.chdir(data)

    def ask(name, path):
        words = command.replace("%f", name).replace("%p", path)
        called = time.monotonic()
        code = os.waitstatus_to_exitcode(os.system(f"{words} 2>>../said"))
        return code, time.monotonic() - called, words

    def must_be_absent(name, path):
        code, seconds, words = ask(name, path)
        if code != 1:
            raise SystemExit(f"{words}\nexited with {code} for a file that does not exist")
        return seconds

    must_be_absent("00000002.history", "pg_wal/RECOVERYHISTORY")
    calls = []
    began = time.monotonic()
    for name in segments:
        if pause and calls:
            time.sleep(pause)
        code, seconds, words = ask(name, "pg_wal/RECOVERYXLOG")
        if code != 0 or os.stat("pg_wal/RECOVERYXLOG").st_size != SEGMENT_BYTES:
            raise SystemExit(f"{words}\nexited with {code}")
        os.rename("pg_wal/RECOVERYXLOG", f"pg_wal/{name}")
        calls.append(seconds)
    return {"seconds": time.monotonic() - began, "calls": calls,
            "absent": must_be_absent(absent, "pg_wal/RECOVERYXLOG")}


def fetch(contestant, corpus, arena, pause=0.0, count=None):
    """One run of one contestant from its full repository; what came is compared."""
    segments = corpus.segments[:count]
    absent = corpus.next_segment
    remove(arena.data)
    corpus.data_directory(arena.data, [])
    cost = measure(
        lambda: recovery(arena.data, contestant.restore_command(arena), segments, absent, pause),
        arena.environment)
    for name in segments:
        if not filecmp.cmp(corpus.wal / name, arena.data / "pg_wal" / name, shallow=False):
            raise SystemExit(f"{contestant.name} delivered another {name} than it was given")
    remove(arena.data)
    return cost


def contest(corpus, arenas, runs):
    """Everyone in turn, `runs` times."""
    costs = {}
    for _ in range(runs):
        for contestant, arena in arenas.items():
            costs.setdefault(contestant.name, []).append(fetch(contestant, corpus, arena))
    return costs


def paced(corpus, arenas):
    """With the time of a replay between the calls: what a call costs whose segment was fetched
    ahead."""
    costs = {}
    for contestant, arena in arenas.items():
        if contestant.name != SAME_LEVEL:
            cost = fetch(contestant, corpus, arena, PACE_SECONDS, 60)
            cost.calls = cost.calls[1:]
            costs[contestant.name] = cost
    return costs


def remove(path):
    run("rm", "-rf", path)


# ---------------------------------------------------------------- a server that recovers


def recoveries(corpus, arenas, scratch, runs):
    """A real server recovers the base backup and all segments, with each contestant's
    restore_command in turn, and with `cp` from a directory of plain files."""
    plain = Arena(scratch / "plain")
    for name in corpus.segments:
        os.link(corpus.wal / name, plain.repository / name)
    everyone = {Copy(): plain, **{each: arena for each, arena in arenas.items()
                                  if each.name not in ("cp", SAME_LEVEL)}}
    costs = {}
    for _ in range(runs):
        for contestant, arena in everyone.items():
            cost = recover(contestant, corpus, arena)
            costs.setdefault(contestant.name, []).append(cost)
    plain.close()
    return costs


def recover(contestant, corpus, arena):
    """One recovery, timed by the server's own log from its start to the end of its replay."""
    remove(arena.data)
    run("cp", "-a", corpus.base, arena.data)
    (arena.data / "recovery.signal").touch()
    log = arena.path / "server.log"
    log.unlink(missing_ok=True)
    with open(arena.data / "postgresql.conf", "a") as settings:
        settings.write(
            f"archive_mode = off\nunix_socket_directories = '{arena.path}'\n"
            f"restore_command = '{contestant.restore_command(arena)}'\n"
            "max_wal_size = 4GB\n")
    give(arena.data / "postgresql.conf")
    give(arena.data / "recovery.signal")
    run(POSTGRES / "pg_ctl", "-D", arena.data, "-l", log, "-W", "start",
        env={**os.environ, **arena.environment})
    # pg_ctl would only wait until the replay begins.
    wait_until_open(arena.data, log)
    run(POSTGRES / "pg_ctl", "-D", arena.data, "-w", "-m", "immediate", "stop")
    text = log.read_text()
    restored = len(set(re.findall(r'restored log file "([0-9A-F]{24})"', text)))
    if restored != len(corpus.segments):
        raise SystemExit(f"recovery with {contestant.name} restored {restored} of "
                         f"{len(corpus.segments)} segments: see {log}\n{text[-2000:]}")
    remove(arena.data)
    began, replayed = at(text, "starting PostgreSQL"), at(text, "redo done at")
    opened = at(text, "archive recovery complete")
    return {"replayed": replayed - began, "opened": opened - began}


def wait_until_open(data, log):
    began = time.monotonic()
    while "ready to accept connections" not in (text := log.read_text() if log.exists() else ""):
        if time.monotonic() - began > 900 or "database system is shut down" in text:
            run(POSTGRES / "pg_ctl", "-D", data, "-m", "immediate", "stop", check=False)
            raise SystemExit(f"recovery has not ended: see {log}\n{text[-2000:]}")
        time.sleep(0.05)


def at(log, words):
    """When the server said that; the log's lines begin with the time since 1970."""
    line = next(line for line in log.splitlines() if words in line)
    return float(line.split()[0])
