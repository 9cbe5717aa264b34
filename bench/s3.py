"""A real S3 server for the benchmarks: Garage, behind stunnel.

pgBackRest speaks to S3 through TLS only and Garage has none, so that every contestant goes
through the same stunnel, with a certificate of its own that is added to the machine's.
"""

import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import time

from measure import demote, give, run

BUCKET = "near"
REGION = "garage"
SYSTEM_ROOTS = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")


def cache():
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    standard = pathlib.Path("/var/cache") if os.geteuid() == 0 else home
    return pathlib.Path(os.environ.get("SEAWALL_TEST_CACHE") or standard / "seawall-test")


def garage_program():
    """The newest Garage in the cache of scripts/setup, or None."""
    found = sorted(cache().glob("garage-*/bin/garage"))
    return found[-1] if found else None


def stunnel_program():
    return shutil.which("stunnel4") or shutil.which("stunnel")


def what_is_missing():
    """What keeps the S3 target from running, or None."""
    if not garage_program():
        return f"no Garage in {cache()}: run scripts/setup test"
    if not stunnel_program():
        return "no stunnel: run scripts/setup bench"
    return None


class ObjectStore:
    """A running Garage with one bucket, and the TLS in front of it."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        give(path)
        self.key, self.secret = f"GK{secrets.token_hex(12)}", secrets.token_hex(32)
        self.processes = []
        plain, rpc = free_port(), free_port()
        self.port = free_port()
        self.config = path / "garage.toml"
        self.write(self.config, (
            f"metadata_dir = '{path}/meta'\ndata_dir = '{path}/data'\ndb_engine = 'sqlite'\n"
            "metadata_fsync = false\ndata_fsync = false\nreplication_factor = 1\n"
            # The contestants have compressed already.
            "compression_level = 'none'\n"
            f"rpc_bind_addr = '127.0.0.1:{rpc}'\nrpc_public_addr = '127.0.0.1:{rpc}'\n"
            f"rpc_secret = '{secrets.token_hex(32)}'\n"
            f"[s3_api]\ns3_region = '{REGION}'\napi_bind_addr = '127.0.0.1:{plain}'\n"
            "root_domain = '.s3.garage.localhost'\n"))
        try:
            self.begin(garage_program(), "-c", self.config, "server")
            self.wait_until(lambda: run(garage_program(), "-c", self.config, "status", check=False)[0].count("HEALTHY NODES"))
            self.make_bucket()
            self.begin_tls(plain)
        except BaseException:
            self.close()
            raise

    def write(self, path, text):
        path.write_text(text)
        path.chmod(0o600)
        give(path)

    def begin(self, *words):
        with open(self.path / "log", "ab") as log:
            self.processes.append(subprocess.Popen(
                [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=demote, cwd="/"))

    def wait_until(self, condition):
        for _ in range(150):
            if condition():
                return
            time.sleep(0.2)
        sys.exit(f"the S3 server does not start: see {self.path}/log")

    def administer(self, *words):
        return run(garage_program(), "-c", self.config, *words)[0]

    def make_bucket(self):
        node = self.administer("node", "id", "-q").strip().split("@")[0]
        self.administer("layout", "assign", "-z", "here", "-c", "20G", node)
        self.administer("layout", "apply", "--version", "1")
        self.administer("key", "import", "--yes", "-n", "bench", self.key, self.secret)
        self.administer("bucket", "create", BUCKET)
        self.administer("bucket", "allow", "--read", "--write", "--owner", BUCKET, "--key", self.key)

    def begin_tls(self, plain):
        certificate, key = self.path / "tls.crt", self.path / "tls.key"
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-keyout", key, "-out", certificate)
        # With all that a machine trusts, as in life: reading these takes time.
        self.roots = self.path / "roots.pem"
        self.write(self.roots, SYSTEM_ROOTS.read_text() + certificate.read_text())
        config = self.path / "stunnel.conf"
        self.write(config, (
            f"foreground = yes\npid =\ndebug = 3\nsyslog = no\ncert = {certificate}\nkey = {key}\n"
            f"[s3]\naccept = 127.0.0.1:{self.port}\nconnect = 127.0.0.1:{plain}\n"))
        self.begin(stunnel_program(), config)
        self.wait_until(self.answers)

    def answers(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []
        shutil.rmtree(self.path, ignore_errors=True)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
