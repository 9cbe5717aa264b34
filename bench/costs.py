"""What the documents state beside the contests: memory that does not grow with the database,
and what one call of seawall-archive costs beside plain zstd.
"""

import pathlib
import re
import shutil
import statistics
import tempfile

from contestants import install
from corpus import POSTGRES
from measure import USER, run


class Site:
    """A throwaway cluster with a local repository."""

    def __init__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="sw-bench-"))
        self.data = self.path / "data"
        try:
            self.make()
        except BaseException:
            self.close()
            raise

    def make(self):
        if USER:
            shutil.chown(self.path, USER)
        self.path.chmod(0o755)
        self.programs = self.path / "bin"
        install(self.programs)
        self.repository = self.path / "repository"
        self.config = self.path / "seawall.toml"
        self.config.write_text(
            f"[cluster.main]\ndata_directory = '{self.data}'\n"
            f"connection = 'host={self.path} user=postgres dbname=postgres'\n"
            f"[[repository]]\nname = 'near'\nurl = 'file://{self.repository}'\n")
        self.config.chmod(0o644)
        run(POSTGRES / "initdb", "-k", "-U", "postgres", "-D", self.data, "--no-sync")
        archive = f"{self.programs}/seawall-archive --config {self.config} %p"
        with open(self.data / "postgresql.conf", "a") as settings:
            settings.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.path}'\n"
                f"archive_mode = on\narchive_command = '{archive}'\n"
                "wal_recycle = off\nmax_wal_size = 4GB\nfsync = off\nshared_buffers = 512MB\n")
        self.seawall("init")
        run(POSTGRES / "pg_ctl", "-D", self.data, "-l", self.path / "log", "-w", "start")

    def seawall(self, *words):
        return run(self.programs / "seawall", *words, "--config", self.config)

    def psql(self, sql):
        return run(POSTGRES / "psql", "-h", self.path, "-U", "postgres", "-Atqc", sql)[0].strip()

    def pgbench(self, *words):
        run(POSTGRES / "pgbench", "-h", self.path, "-U", "postgres", *words, "postgres")

    def close(self):
        if (self.data / "postmaster.pid").exists():
            run(POSTGRES / "pg_ctl", "-D", self.data, "-m", "immediate", "stop", check=False)
        shutil.rmtree(self.path, ignore_errors=True)


def memory(site):
    """Peak memory of backup and restore at 1 GB and 4 GB."""
    rows = []
    for scale in (66, 264):
        site.pgbench("-i", "-q", "-s", scale)
        size = int(site.psql("SELECT sum(pg_database_size(oid)) FROM pg_database"))
        _, backup_seconds, backup_memory, _ = site.seawall("backup", "--jobs", "2")
        target = site.path / "restored"
        # The program itself: through `seawall restore` it would be the same process.
        _, restore_seconds, restore_memory, _ = run(
            site.programs / "seawall-restore", "--config", site.config, "--to", target)
        shutil.rmtree(target)
        rows.append((size, backup_seconds, backup_memory, restore_seconds, restore_memory))
    print("| database | backup | its peak memory | restore | its peak memory |")
    print("|---|---|---|---|---|")
    for size, backup_seconds, backup_memory, restore_seconds, restore_memory in rows:
        print(f"| {size / 1e9:.2f} GB | {backup_seconds:.1f} s | {backup_memory / 1024:.0f} MiB "
              f"| {restore_seconds:.1f} s | {restore_memory / 1024:.0f} MiB |")
    print()


def call(site):
    """One call of seawall-archive beside zstd of the same segment."""
    site.pgbench("-i", "-q", "-s", 5)
    site.pgbench("-c", "4", "-T", "5")
    wal = sorted(p for p in (site.data / "pg_wal").iterdir() if re.fullmatch(r"[0-9A-F]{24}", p.name))
    current = site.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")
    written = [p for p in wal if p.name < current][-1]
    # The server recycles its own; the program takes the cluster from the configuration.
    segment = site.path / written.name
    shutil.copy(written, segment)
    segment.chmod(0o644)
    run(POSTGRES / "pg_ctl", "-D", site.data, "-w", "-m", "fast", "stop")

    def archive_once():
        for stored in site.repository.glob(f"main/*/wal/*/*/{segment.name}-*.zst"):
            stored.unlink()
        return run(site.programs / "seawall-archive", "--config", site.config, segment)

    def zstd_once():
        return run("zstd", "-3", "-q", "-f", segment, "-o", site.path / "segment.zst")

    def cat_once():
        return run("sh", "-c", f"zstd -3 -q -f {segment} -o {site.path}/s.zst && sync {site.path}/s.zst {site.path}")

    results = {"seawall-archive": [], "zstd -3": [], "zstd -3, and sync": []}
    for _ in range(21):
        results["seawall-archive"].append(archive_once())
        results["zstd -3"].append(zstd_once())
        results["zstd -3, and sync"].append(cat_once())
    print("| one 16 MiB segment | wall, median | processor, median | peak memory |")
    print("|---|---|---|---|")
    for name, runs in results.items():
        print(f"| {name} | {statistics.median(r[1] for r in runs) * 1000:.1f} ms "
              f"| {statistics.median(r[3] for r in runs) * 1000:.1f} ms "
              f"| {max(r[2] for r in runs) / 1024:.0f} MiB |")
    difference = [a[1] - z[1] for a, z in zip(results["seawall-archive"], results["zstd -3"])]
    print(f"\nseawall-archive minus zstd -3, pair by pair, median: "
          f"{statistics.median(difference) * 1000:+.1f} ms\n")

    starts = []
    for _ in range(11):
        for stored in site.repository.glob(f"main/*/wal/*/*/{segment.name}-*.zst"):
            stored.unlink()
        trace = site.path / "trace"
        run("strace", "-f", "-ttt", "-e", "trace=execve,openat", "-o", trace,
            site.programs / "seawall-archive", "--config", site.config, segment)
        lines = trace.read_text().splitlines()
        stamp = lambda line: float(line.split()[1])
        began = stamp(next(line for line in lines if "execve(" in line))
        opened = stamp(next(line for line in lines if segment.name in line and "openat(" in line))
        starts.append(opened - began)
    print(f"from execve to the first open of the segment, under strace, median of "
          f"{len(starts)}: {statistics.median(starts) * 1000:.1f} ms\n")
