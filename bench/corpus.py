"""The material: a cluster as pgbench leaves it, and a run of real, full WAL segments behind it.

A server that archives with a command that always fails keeps every segment it writes. It is
stopped once with its tables made, copied as the base backup (a cold one), started again and
loaded until there are enough segments. All contestants read these same files.
"""

import os
import pathlib
import shutil

from measure import give, run

POSTGRES = pathlib.Path("/usr/lib/postgresql/15/bin")
SEGMENT_BYTES = 16 << 20
SCALE = 30  # pgbench's: about 450 MB


class Corpus:
    """A directory with `base` (a data directory without WAL) and `wal` (the segments)."""

    def __init__(self, path, segments):
        self.path = pathlib.Path(path)
        self.base = self.path / "base"
        self.wal = self.path / "wal"
        if not self.wal.exists():
            make(self, segments)
        self.segments = sorted(os.listdir(self.wal))[:segments]
        if len(self.segments) < segments:
            raise SystemExit(f"{self.path} holds {len(self.segments)} segments, not {segments}: "
                             "remove it, then run this again")

    @property
    def next_segment(self):
        """The name behind the last: what no archive has."""
        timeline, number = self.segments[-1][:8], int(self.segments[-1][8:16] + self.segments[-1][22:], 16) + 1
        return f"{timeline}{number >> 8:08X}{number & 0xFF:08X}"

    def data_directory(self, path, segments):
        """A data directory as the archiver sees it: its control file, and in pg_wal these
        segments, linked, each with its .ready."""
        (path / "global").mkdir(parents=True)
        shutil.copy(self.base / "PG_VERSION", path)
        shutil.copy(self.base / "global" / "pg_control", path / "global")
        status = path / "pg_wal" / "archive_status"
        status.mkdir(parents=True)
        for name in segments:
            os.link(self.wal / name, path / "pg_wal" / name)
            (status / f"{name}.ready").touch(mode=0o600)
        path.chmod(0o700)
        give(path)


def make(corpus, segments):
    building = corpus.path / "building"
    shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(corpus.base, ignore_errors=True)
    building.mkdir(parents=True)
    give(corpus.path)
    data = building / "data"
    status = data / "pg_wal" / "archive_status"
    run(POSTGRES / "initdb", "-k", "-U", "postgres", "-D", data, "--no-sync")
    with open(data / "postgresql.conf", "a") as settings:
        settings.write(
            f"listen_addresses = ''\nunix_socket_directories = '{building}'\n"
            "archive_mode = on\narchive_command = 'false'\nwal_recycle = off\n"
            "fsync = off\nshared_buffers = 256MB\nmax_wal_size = 1GB\n"
            "log_line_prefix = '%n '\n")
    start(data, building)
    bench = [POSTGRES / "pgbench", "-h", building, "-U", "postgres"]
    try:
        run(*bench, "-i", "-q", "-s", SCALE, "postgres")
        stop(data)
        run("cp", "-a", data, corpus.base)
        for name in os.listdir(corpus.base / "pg_wal"):
            if name != "archive_status":
                (corpus.base / "pg_wal" / name).unlink()
        shutil.rmtree(corpus.base / "pg_wal" / "archive_status")
        (corpus.base / "pg_wal" / "archive_status").mkdir(mode=0o700)
        give(corpus.base / "pg_wal")
        # Recovery begins with the segment that the base's control file points to, which the
        # server goes on writing.
        first = redo_segment(corpus.base)
        start(data, building)
        seed = 1
        while len(complete(status, first)) < segments:
            run(*bench, "-n", "-c", "4", "-T", "5", f"--random-seed={seed}", "postgres")
            seed += 1
    finally:
        if (data / "postmaster.pid").exists():
            stop(data)
    unfinished = corpus.path / "wal.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    # All up to the last: a recovery of these ends there.
    for name in complete(status, first):
        os.rename(data / "pg_wal" / name, unfinished / name)
    give(unfinished)
    shutil.rmtree(building)
    os.rename(unfinished, corpus.wal)


def start(data, log):
    run(POSTGRES / "pg_ctl", "-D", data, "-l", log / "log", "-w", "start")


def stop(data):
    run(POSTGRES / "pg_ctl", "-D", data, "-w", "-m", "fast", "stop")


def redo_segment(data):
    text = run(POSTGRES / "pg_controldata", data)[0]
    line = next(line for line in text.splitlines() if "REDO WAL file" in line)
    return line.split(":")[1].strip()


def complete(status, first):
    """The segments from `first` on that the archiver is to archive."""
    names = (name.removesuffix(".ready") for name in os.listdir(status) if name.endswith(".ready"))
    return sorted(name for name in names if len(name) == 24 and name >= first)
