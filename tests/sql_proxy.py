"""A proxy between us and a PostgreSQL that loses, garbles and cuts as it is told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from sqlalchemy.engine import URL, make_url

_CHUNK = 1 << 16
# the statement that ends a transaction, and those that are one by themselves
_COMMITS = (b"COMMIT\0", b"WITH moved AS", b"WITH drawn AS")


class SqlProxy:
    """Forwards connections; `mode` says what becomes of the next COMMIT, and is spent by it.

    Attributes:
        mode: ``lose_answer`` (it commits, the answer and the connection are lost), ``lose_commit`` (the
            server never hears of it), ``cut`` (the connection ends before the server has answered),
            ``garble`` (the next answer of any kind is noise); empty: forward.
        lost: how often that happened.
    """

    def __init__(self, database_url: str) -> None:
        self._upstream = make_url(database_url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        query = {"sslmode": "disable", "gssencmode": "disable"}
        self.url = URL.create(
            self._upstream.drivername,
            self._upstream.username,
            self._upstream.password,
            "127.0.0.1",
            port,
            self._upstream.database,
            query,
        ).render_as_string(hide_password=False)
        self.mode = ""
        self.lost = 0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End the proxy and its connections."""
        # a thread that waits in accept is woken by this, not by close
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    def cut_all(self) -> None:
        """Cut every connection that is open."""
        with self._lock:
            open_now = list(self._sockets)
        for one in open_now:
            _end(one)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = self._connect()
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._sockets |= {client, server}
                doomed = threading.Event()
                threading.Thread(target=self._ask, args=(client, server, doomed), daemon=True).start()
                threading.Thread(target=self._answer, args=(client, server, doomed), daemon=True).start()

    def _connect(self) -> socket.socket:
        host = str(self._upstream.query.get("host") or self._upstream.host or "127.0.0.1")
        port = self._upstream.port or 5432
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _ask(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK):
                mode = self._spend() if any(sign in data for sign in _COMMITS) else ""
                if mode == "lose_commit":
                    break
                if mode in ("lose_answer", "cut"):
                    # before the server hears of it, so that no answer overtakes the end of the connection
                    doomed.set()
                server.sendall(data)
                if mode == "cut":
                    break
        _end(client)
        _end(server)

    def _answer(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(_CHUNK):
                if doomed.is_set():
                    break
                client.sendall(b"\xff" * len(data) if self.mode == "garble" and self._spend() else data)
        _end(client)
        _end(server)
        with self._lock:
            self._sockets -= {client, server}

    def _spend(self) -> str:
        with self._lock:
            mode, self.mode = self.mode, ""
            self.lost += bool(mode)
            return mode


@contextlib.contextmanager
def sql_proxy(database_url: str) -> Iterator[SqlProxy]:
    """Run a proxy before a PostgreSQL until the block ends."""
    made = SqlProxy(database_url)
    try:
        yield made
    finally:
        made.close()


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
