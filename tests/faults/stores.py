"""The two servers of a chaos run, as somebody who pulls their plugs has them: killed, frozen, restarted.

Both listen on a Unix socket only, and can be started again on the same data.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import redis

from asm_celery import embedded_binary
from asm_celery.embedded_watch import WatchedProcess
from asm_celery.store.schema import migrate
from tests import servers
from tests.faults import system
from tests.waiting import wait_until


class RedisServer:
    """A Valkey with an append-only file.

    Attributes:
        peak_bytes: the most memory it was seen to occupy.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.socket = folder / "redis.sock"
        self._process: WatchedProcess | None = None
        self.pid = 0
        self.peak_bytes = 0
        self.client = self.another()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"unix://{self.socket}?db=0"

    def another(self) -> redis.Redis:
        """Return one more client of our own, past all links."""
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=30.0)

    def start(self) -> None:
        """Start it on the data there is; returns when it answers."""
        # fmt: off
        command = [
            embedded_binary.find(), "--port", "0", "--unixsocket", self.socket, "--dir", self._folder,
            "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction",
            "--enable-debug-command", "yes", "--daemonize", "no", "--auto-aof-rewrite-percentage", "0",
        ]
        # fmt: on
        self._process = WatchedProcess(command, log=self._folder / "redis.log")

        def answers() -> bool:
            with contextlib.suppress(redis.RedisError, OSError):
                about: Any = self.client.info("server")
                self.pid = about["process_id"]
                return True
            return False

        wait_until(answers, description="Redis answers", timeout=30.0)

    def kill(self) -> None:
        """End it by SIGKILL."""
        system.send(signal.SIGKILL, [self.pid])
        wait_until(lambda: not system.is_alive(self.pid), description="Redis is dead")
        self._ended()

    def forget(self) -> None:
        """Remove the data of a dead server."""
        shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)

    def cut_tail(self, share: float) -> None:
        """Cut off the end of a dead server's file, as a loss of power does."""
        for file in sorted((self._folder / "appendonlydir").glob("*.incr.aof")):
            os.truncate(file, int(file.stat().st_size * (1 - share)))

    def stop(self) -> None:
        """End it in good order."""
        self._ended()

    def measure(self) -> None:
        """Note how much memory it occupies."""
        self.peak_bytes = max(self.peak_bytes, system.resident_bytes(self.pid))

    def _ended(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


class PostgresServer:
    """A PostgreSQL as in production: fsync and synchronous commits, and few connections."""

    def __init__(self) -> None:
        self.folder = servers._temporary() / f"asm-pg-chaos-{uuid4().hex[:8]}"
        self.folder.mkdir(mode=0o700)
        if servers.IS_ROOT:
            owner = pwd.getpwnam(str(servers.USER))
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self._binaries = servers._binaries()
        self._process: WatchedProcess | None = None
        self.name = "chaos"
        self.socket = self.folder / ".s.PGSQL.5432"
        servers._initialise(self._binaries, self.folder / "data")
        self.start()
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {self.name}")  # type: ignore[call-overload]
        migrate(self.url)

    @property
    def url(self) -> str:
        """Where the database is."""
        return f"postgresql+psycopg://postgres@/{self.name}?host={self.folder}"

    @property
    def pid(self) -> int:
        """The postmaster."""
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def url_at(self, port: int) -> str:
        """Return where it is behind a link."""
        return (
            f"postgresql+psycopg://postgres@127.0.0.1:{port}/{self.name}?sslmode=disable&gssencmode=disable"
        )

    def connect(self, name: str | None = None) -> psycopg.Connection:
        """Open a connection of our own, past all links; it commits by itself."""
        url = f"postgresql://postgres@/{name or self.name}?host={self.folder}&connect_timeout=5"
        return psycopg.connect(url, autocommit=True, application_name="chaos")

    def start(self) -> None:
        """Start it on the data there is; returns when it accepts connections."""
        # fmt: off
        command = [
            self._binaries / "postgres", "-D", self.folder / "data", "-k", self.folder, "-p", "5432",
            "-c", "listen_addresses=", "-c", "max_connections=120", "-c", "shared_buffers=64MB",
            "-c", "log_min_messages=warning",
        ]
        # fmt: on

        def started() -> bool:
            if self._process is None or self._process.has_ended:
                # what a killed server leaves behind may need a moment to be let go
                self._process = WatchedProcess(
                    command,
                    log=self.folder / "postgres.log",
                    polite=signal.SIGINT,
                    user=servers.USER,
                    env=servers._environment(),
                )
            with contextlib.suppress(psycopg.OperationalError):
                self.connect("postgres").close()
                return True
            threading.Event().wait(0.1)
            return False

        try:
            wait_until(started, description="PostgreSQL answers", timeout=60.0)
        except AssertionError as cause:
            said = (self.folder / "postgres.log").read_text(errors="replace")
            raise AssertionError(f"{cause}; its log ends: {said[-1000:]}") from cause

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End postmaster and backends by a signal; SIGQUIT is PostgreSQL's immediate shutdown."""
        postmaster = self.pid
        if number == signal.SIGKILL:
            # One that is forked between the look and the kill would live on, and may wait for ever for a lock that
            # a killed one held: no server starts on this data while it is attached to the old one's memory.
            system.send(signal.SIGSTOP, [postmaster])
            wait_until(lambda: system.is_stopped(postmaster), description="PostgreSQL forks no more")
        backends = system.Table().children(postmaster)
        system.send(number, [postmaster, *(backends if number == signal.SIGKILL else [])])
        gone: Callable[[], bool] = lambda: not any(map(system.is_alive, [postmaster, *backends]))  # noqa: E731
        wait_until(gone, description="PostgreSQL is dead", timeout=60.0)
        self._ended()

    def freeze(self, number: signal.Signals) -> None:
        """Stop all its processes, or let them go on."""
        postmaster = self.pid
        system.send(number, [postmaster, *system.Table().children(postmaster)])

    def stop(self) -> None:
        """End it and remove its data."""
        self._ended()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ended(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


class SqliteFile:
    """The embedded database: one file, and nothing to kill."""

    def __init__(self, folder: Path) -> None:
        self.path = servers.sqlite_template(folder / "asm.db")
        self.url = f"sqlite:///{self.path}"

    def stop(self) -> None:
        """Nothing."""
