"""The embedded server: a private Valkey on a Unix socket, for `local()`, the demo and the tests.

Importing, workers and web processes never start one.  It listens on no port, so no other user and no web
page can talk to it.  Processes that name the same folder share one server, which lives as long as the
process that started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Any, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from asm_celery import embedded_binary, embedded_home
from asm_celery.embedded_watch import WatchedProcess
from asm_celery.errors import DependencyNotAvailable

READY_S: Final = 10.0
_POLL_S: Final = 0.005


class EmbeddedServer:
    """A running server, and whether this object started it.

    Attributes:
        home: the folder of its data, log, lock and (unless too long) socket.
        url: ``unix://PATH?db=0``, for `Config(redis_url=...)`.
        pid: the server's process id.
        is_shared: True if another start's server is reused, which `stop` then leaves alone.
    """

    def __init__(
        self, *, home: Path, socket: Path, pid: int, run_id: str, process: WatchedProcess | None
    ) -> None:
        self.home = home
        self.url = f"unix://{socket}?db=0"
        self.pid = pid
        self.is_shared = process is None
        self._socket = socket
        self._run_id = run_id
        self._process = process
        self._owner = os.getpid()

    @classmethod
    def start(cls, home: Path, *, persistent: bool = True) -> EmbeddedServer:
        """Start the folder's server, or reuse the one that lives.

        Args:
            home: the folder; made with mode 700 if it is not there.
            persistent: keep an append-only file, so that a later start finds the data.

        Raises:
            DependencyNotAvailable: no binary (with remedies), a server that did not become ready in 10 s
                (with its last 20 log lines), or a socket that somebody else's server holds.

        Guarantee: of any number of processes that start at once, one starts a server and the others
        reuse it.
        """
        home = embedded_home.prepare_home(home)
        with embedded_home.locked(home):
            return _start(home, persistent=persistent)

    def stop(self) -> None:
        """End the server if this object started it: SIGTERM, after 5 s SIGKILL; safe to repeat.

        Guarantee: does nothing for a reused server, and nothing in a forked child.
        """
        process, self._process = self._process, None
        if process is None or os.getpid() != self._owner:
            return
        # the server first: nothing that is wrong with the folder may keep it alive
        process.stop()
        with contextlib.suppress(FileNotFoundError), embedded_home.locked(self.home):
            state = embedded_home.read_state(self.home)
            # by now another start may have put its own server here
            if state is not None and state["run_id"] == self._run_id:
                embedded_home.forget(self.home, self._socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _start(home: Path, *, persistent: bool) -> EmbeddedServer:
    deadline = time.monotonic() + READY_S
    while True:
        # The lock lasts as long as a wrapper watches a server here: free means that nothing is watched.
        watch = os.open(home / "watch.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(watch, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            shared = _reuse(home)
            if shared is not None:
                return shared
        else:
            _end_unwatched(home)
            return _launch(home, watch, persistent=persistent)
        finally:
            os.close(watch)
        if time.monotonic() > deadline:
            raise DependencyNotAvailable(
                f"the embedded server in {str(home)!r} is being watched by another process but has not "
                f"answered for {READY_S:g} s: end the process that started it, or use another ASM_HOME",
                details={"home": str(home)},
            )
        _pause()


def _reuse(home: Path) -> EmbeddedServer | None:
    state = embedded_home.read_state(home)
    server = None if state is None else _ask(Path(state["socket"]))
    if state is None or server is None or server["run_id"] != state["run_id"]:
        return None
    return EmbeddedServer(
        home=home,
        socket=Path(state["socket"]),
        pid=server["process_id"],
        run_id=server["run_id"],
        process=None,
    )


def _end_unwatched(home: Path) -> None:
    # our server without its watchdog (somebody killed the wrapper) would run for ever: end it, the data stays
    state = embedded_home.read_state(home)
    socket = Path(state["socket"]) if state is not None else embedded_home.socket_path(home)
    server = _ask(socket)
    if server is not None:
        if state is None or server["run_id"] != state["run_id"]:
            raise DependencyNotAvailable(
                f"{str(socket)!r} is answered by a server that was not started for this folder (process "
                f"{server['process_id']}): end it, or use another ASM_HOME",
                details={"socket": str(socket), "pid": server["process_id"]},
            )
        with contextlib.suppress(redis.RedisError):
            _client(socket).shutdown(nosave=True)
        deadline = time.monotonic() + READY_S
        while _ask(socket) is not None and time.monotonic() < deadline:
            _pause()
    embedded_home.forget(home, socket)


def _launch(home: Path, watch: int, *, persistent: bool) -> EmbeddedServer:
    binary = embedded_binary.find()
    socket = embedded_home.socket_path(home)
    # fmt: off
    command = [
        str(binary), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700",
        "--dir", str(home), "--appendonly", "yes" if persistent else "no", "--appendfsync", "everysec",
        "--save", "", "--maxmemory-policy", "noeviction", "--daemonize", "no",
    ]
    # fmt: on
    process = WatchedProcess(command, log=home / "valkey.log", lock=watch)
    try:
        server = _wait_until_ready(process, socket)
        state = {"run_id": server["run_id"], "pid": server["process_id"], "socket": str(socket)}
        embedded_home.write_state(home, state)
    except BaseException:
        process.stop()
        raise
    return EmbeddedServer(
        home=home, socket=socket, pid=server["process_id"], run_id=server["run_id"], process=process
    )


def _wait_until_ready(process: WatchedProcess, socket: Path) -> dict[str, Any]:
    deadline = time.monotonic() + READY_S
    while True:
        server = _ask(socket)
        if server is not None:
            return server
        if process.has_ended or time.monotonic() > deadline:
            what = "ended" if process.has_ended else f"did not answer within {READY_S:g} s"
            raise DependencyNotAvailable(
                f"the embedded server {what}; it was started as\n  {' '.join(process.command)}\n"
                f"and the end of {process.log} is\n{process.last_lines()}",
                details={"command": process.command, "log": str(process.log)},
            )
        _pause()


def _client(socket: Path) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=str(socket),
        socket_timeout=2.0,
        retry=Retry(NoBackoff(), 0),
        single_connection_client=False,
    )


def _ask(socket: Path) -> dict[str, Any] | None:
    """Return INFO server of what answers PING on this socket; None if nothing does, or not yet."""
    client = _client(socket)
    try:
        client.ping()
        return client.info("server")
    except (redis.RedisError, OSError):
        # refused, not there, or BusyLoading while it reads its file
        return None
    finally:
        client.close()


def _pause() -> None:
    threading.Event().wait(_POLL_S)
