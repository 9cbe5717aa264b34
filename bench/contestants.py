"""Who is measured: Seawall, pgBackRest and `cp`, each with the commands that an administrator
would write into postgresql.conf, and plain zstd as the limit.
"""

import os
import pathlib
import shutil

from measure import give, run
from s3 import BUCKET, REGION

ROOT = pathlib.Path(__file__).resolve().parent.parent
# As cargo has it: relative to where the caller stands, else in the repository.
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
PROGRAMS = TARGET / "release"
NAMES = ["seawall", "seawall-archive", "seawall-fetch", "seawall-restore"]


def install(path):
    """Copies the programs to where PostgreSQL's user can reach them."""
    missing = [name for name in NAMES if not (PROGRAMS / name).exists()]
    if missing:
        raise SystemExit(f"{PROGRAMS} lacks {', '.join(missing)}: run make bench, which builds them")
    path.mkdir()
    for name in NAMES:
        shutil.copy(PROGRAMS / name, path / name)
    path.chmod(0o755)


class Arena:
    """One contestant's directory for one run: its configuration, its data directory, and its
    repository, which may be in an object store."""

    def __init__(self, path, store=None, data=None):
        self.path, self.store = path, store
        self.data = data or path / "data"
        self.repository = path / "repository"
        path.mkdir(parents=True)
        path.chmod(0o755)
        self.repository.mkdir(mode=0o750)
        give(path)

    @property
    def environment(self):
        return {"SSL_CERT_FILE": str(self.store.roots)} if self.store else {}

    def write(self, name, text):
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o600)
        give(self.path / name)
        return self.path / name

    def close(self):
        shutil.rmtree(self.path, ignore_errors=True)


class Seawall:
    """This project's programs; `compression` is a line of the configuration."""

    def __init__(self, programs, name, compression="", zstd=()):
        self.programs, self.name, self.compression, self.zstd = programs, name, compression, zstd

    def prepare(self, arena, connection=None):
        text = f"[cluster.main]\ndata_directory = '{arena.data}'\n"
        if connection:
            text += f"connection = '{connection}'\n"
        text += "[[repository]]\nname = 'near'\n"
        if arena.store:
            text += (f"url = 's3://{BUCKET}/{arena.path.name}'\n[repository.options]\n"
                     f"aws_endpoint = 'https://localhost:{arena.store.port}'\n"
                     f"aws_region = '{REGION}'\naws_access_key_id = '{arena.store.key}'\n"
                     f"aws_secret_access_key = '{arena.store.secret}'\n"
                     "aws_virtual_hosted_style_request = 'false'\n")
        else:
            text += f"url = 'file://{arena.repository}'\n"
        if self.compression:
            text += f"[compression]\n{self.compression}\n"
        config = arena.write("seawall.toml", text)
        run(self.programs / "seawall", "init", "--config", config,
            env={**os.environ, **arena.environment})

    def archive_command(self, arena):
        return f"{self.programs}/seawall-archive --config {arena.path}/seawall.toml %p"

    def restore_command(self, arena):
        return f"{self.programs}/seawall-fetch --config {arena.path}/seawall.toml %f %p"


class PgBackRest:
    """pgBackRest with two processes and zstd."""

    zstd = ()
    # More lines for [global].
    settings = ""

    def __init__(self, asynchronous, name=None, level=3):
        self.asynchronous, self.level = asynchronous, level
        self.name = name or f"pgBackRest {'asynchronous' if asynchronous else 'synchronous'}, level 3"

    @staticmethod
    def version():
        """What it calls itself, or None where it is not installed."""
        return run("pgbackrest", "version")[0].strip() if shutil.which("pgbackrest") else None

    def prepare(self, arena, connection=None):
        for name in ["spool", "lock", "log"]:
            (arena.path / name).mkdir()
        text = (f"[global]\nlock-path={arena.path}/lock\nlog-path={arena.path}/log\n"
                f"spool-path={arena.path}/spool\nlog-level-file=off\nlog-level-console=warn\n"
                f"compress-type=zst\ncompress-level={self.level}\nprocess-max=2\n"
                f"archive-async={'y' if self.asynchronous else 'n'}\n{self.settings}")
        if arena.store:
            text += (f"repo1-type=s3\nrepo1-path=/{arena.path.name}\nrepo1-s3-bucket={BUCKET}\n"
                     f"repo1-s3-endpoint=localhost\nrepo1-storage-port={arena.store.port}\n"
                     f"repo1-s3-region={REGION}\nrepo1-s3-key={arena.store.key}\n"
                     f"repo1-s3-key-secret={arena.store.secret}\nrepo1-s3-uri-style=path\n"
                     f"repo1-storage-ca-file={arena.store.roots}\n")
        else:
            text += f"repo1-path={arena.repository}\n"
        text += f"[main]\npg1-path={arena.data}\n"
        if connection:
            text += f"pg1-socket-path={connection}\npg1-user=postgres\n"
        config = arena.write("pgbackrest.conf", text)
        give(arena.path)
        run("pgbackrest", f"--config={config}", "--stanza=main", "--no-online", "stanza-create")

    def archive_command(self, arena):
        return f"pgbackrest --config={arena.path}/pgbackrest.conf --stanza=main archive-push %p"

    def restore_command(self, arena):
        return f"pgbackrest --config={arena.path}/pgbackrest.conf --stanza=main archive-get %f %p"


class Copy:
    """`cp`, as PostgreSQL's manual has it: neither compressed, nor synced, nor checked."""

    name = "cp"
    zstd = ()

    def prepare(self, arena):
        pass

    def archive_command(self, arena):
        return f"test ! -f {arena.repository}/%f && cp %p {arena.repository}/%f"

    def restore_command(self, arena):
        return f"cp {arena.repository}/%f %p"


DEFAULT = "Seawall, default (level 1, minimum match 5)"
SAME_LEVEL = "Seawall, level 3"
PEER = "pgBackRest asynchronous, level 3"
PEER_SYNCHRONOUS = "pgBackRest synchronous, level 3"


def seawalls(programs):
    return [
        Seawall(programs, DEFAULT, zstd=("-1", "--zstd=mml=5")),
        Seawall(programs, SAME_LEVEL, "level = 3\nminimum_match = 0", zstd=("-3",)),
    ]


def peers():
    return [PgBackRest(False), PgBackRest(True)] if PgBackRest.version() else []
