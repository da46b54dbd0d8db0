"""What `AgentSessions.local()` starts in this process: a server, a migrated SQLite file, a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from asm_celery.dispatch import CeleryApp
from asm_celery.embedded import EmbeddedServer
from asm_celery.worker.inprocess import InProcessWorker


class LocalParts:
    """The embedded parts and their end; made by `start`.

    Attributes:
        settings: where they are, as settings of `Config`.
    """

    def __init__(self, server: EmbeddedServer, settings: dict[str, Any], concurrency: int) -> None:
        self.settings = settings
        self._server = server
        self._concurrency = concurrency
        self._worker: InProcessWorker | None = None

    @classmethod
    def start(cls, home: Path, *, concurrency: int) -> Self:
        """Start the server (or join the one that serves this folder) and migrate the database file.

        Raises:
            DependencyNotAvailable: no server binary was found.
        """
        # Alembic is slow to import, and no worker and no web process needs it
        from asm_celery.store.schema import migrate  # noqa: PLC0415

        server = EmbeddedServer.start(home)
        try:
            database = f"sqlite:///{home.expanduser().resolve() / 'asm.db'}"
            migrate(database)
        except BaseException:
            server.stop()
            raise
        # the broker too is the embedded server, whatever the environment says
        settings = {
            "redis_url": server.url,
            "broker_url": None,
            "database_url": database,
            "home": str(home),
        }
        return cls(server, settings, concurrency)

    def start_worker(self, app: CeleryApp) -> None:
        """Start the worker and wait until it consumes."""
        self._worker = InProcessWorker(app, self._concurrency)
        self._worker.start()

    def stop_worker(self) -> None:
        """Take no more runs, wait for those that execute, end the worker."""
        if self._worker is not None:
            self._worker.stop()

    def stop_server(self) -> None:
        """End the server, unless another process started it."""
        self._server.stop()
