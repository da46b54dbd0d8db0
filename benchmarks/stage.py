"""Private servers, installations on them and real workers for one benchmark run; all that is started here ends here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from asm_celery import AgentSessions
from asm_celery.config import Config
from benchmarks import plain_module
from benchmarks.asm_module import IO_QUEUE
from benchmarks.elsewhere import Elsewhere
from benchmarks.stamps import VARIABLE, Stamps
from tests.conftest import environment
from tests.servers import postgresql, sqlite_template, valkey
from tests.workers import WorkerProcess


class Installation:
    """One namespace on one database: its client here, its workers and other processes, their stamps."""

    def __init__(self, redis_url: str, database_url: str, folder: Path, pool: str, concurrency: int) -> None:
        word = f"b{uuid4().hex[:8]}"
        self.config = Config(
            redis_url=redis_url,
            database_url=database_url,
            namespace=word,
            default_queue=word,
            # what is measured is the work, not the wait at a limit
            max_parallel_runs=1000,
            max_parallel_sessions=1000,
        )
        self.asm = AgentSessions(self.config)
        self.stamps = Stamps(folder / f"{word}.stamps")
        self._folder = folder
        self._pool = pool
        self._concurrency = concurrency
        self._ending = ExitStack()
        self._ending.callback(self.asm.close)

    def worker(self) -> WorkerProcess:
        """Start a worker of ours for all agents but those that wait for I/O."""
        return self._start("benchmarks.asm_module", self._pool, self._concurrency, self.config.default_queue)

    def io_worker(self, slots: int) -> WorkerProcess:
        """Start one for those, with as many threads."""
        return self._start("benchmarks.asm_module", "threads", slots, IO_QUEUE)

    def plain(self, queue: str = plain_module.QUEUE, concurrency: int | None = None) -> WorkerProcess:
        """Start a worker of plain Celery."""
        return self._start("benchmarks.plain_module", self._pool, concurrency or self._concurrency, queue)

    def elsewhere(self) -> closing[Elsewhere]:
        """Start another process of this installation's user; a context manager that ends it."""
        return closing(Elsewhere(self._env))

    def close(self) -> None:
        """End all of it."""
        self._ending.close()

    @property
    def _env(self) -> dict[str, str]:
        own = {VARIABLE: str(self.stamps.path), plain_module.VARIABLE: self.config.redis_url}
        return {**environment(self.config), **own}

    def _start(self, module: str, pool: str, concurrency: int, queue: str) -> WorkerProcess:
        worker = WorkerProcess(
            module, env=self._env, folder=self._folder, pool=pool, concurrency=concurrency, queues=[queue]
        )
        self._ending.callback(worker.stop)
        return worker


class Stage:
    """The servers, and what several measures share: one installation, its worker, and workers of plain Celery."""

    def __init__(self, database: str, pool: str, concurrency: int, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self._pool = pool
        self._concurrency = concurrency
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.push(self.__exit__)
            self._redis_url = self._ending.enter_context(valkey())
            plain_module.connect(self._redis_url)
            if self.database == "postgresql":
                self._postgresql = self._ending.enter_context(postgresql(durable=True))
            else:
                self._template = sqlite_template(self.folder / "template.db")
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    @contextmanager
    def installation(self, redis_url: str | None = None) -> Iterator[Installation]:
        """Set up one on a fresh database, and end it."""
        with self._fresh_database() as url:
            made = Installation(redis_url or self._redis_url, url, self.folder, self._pool, self._concurrency)
            with closing(made):
                yield made

    @cached_property
    def main(self) -> Installation:
        """The installation that most measures use."""
        return self._ending.enter_context(self.installation())

    @cached_property
    def ours(self) -> WorkerProcess:
        """Its worker."""
        return self.main.worker()

    @cached_property
    def plain(self) -> WorkerProcess:
        """A worker of plain Celery, of the same pool."""
        return self.main.plain()

    @cached_property
    def alone(self) -> WorkerProcess:
        """One that does one task at a time: the only order that plain Celery has."""
        return self.main.plain(plain_module.ALONE, concurrency=1)

    @contextmanager
    def _fresh_database(self) -> Iterator[str]:
        if self.database == "postgresql":
            with self._postgresql.database() as url:
                yield url
        else:
            yield f"sqlite:///{shutil.copy(self._template, self.folder / f'{uuid4().hex}.db')}"
