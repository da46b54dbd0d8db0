"""Private servers and real workers for one benchmark run; all that is started here ends here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from asm_celery import AgentSessions
from asm_celery.config import Config
from benchmarks.stamps import VARIABLE, Stamps
from tests.conftest import environment
from tests.servers import postgresql, sqlite_template, valkey
from tests.workers import WorkerProcess


@dataclass
class Stage:
    """One database, one pool, one worker of ours and one of plain Celery."""

    config: Config
    asm: AgentSessions
    stamps: Stamps
    folder: Path
    pool: str
    concurrency: int
    workers: list[WorkerProcess] = field(default_factory=list)

    def ours(self) -> WorkerProcess:
        """Start our worker."""
        return self._start("benchmarks.asm_module", environment(self.config), self.concurrency)

    def plain(self, concurrency: int | None = None) -> WorkerProcess:
        """Start a worker of plain Celery."""
        return self._start("benchmarks.plain_module", {}, concurrency or self.concurrency)

    def _start(self, module: str, env: dict[str, str], concurrency: int) -> WorkerProcess:
        env = {**env, VARIABLE: str(self.stamps.path), "ASM_DEV_BROKER": self.config.redis_url}
        worker = WorkerProcess(
            module,
            env=env,
            folder=self.folder,
            pool=self.pool,
            concurrency=concurrency,
        )
        self.workers.append(worker)
        return worker


@contextmanager
def stage(database: str, pool: str, concurrency: int, folder: Path) -> Iterator[Stage]:
    """Set up servers, an installation and its client; end all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with valkey() as redis_url, _database(database, folder) as url:
        word = f"b{uuid4().hex[:8]}"
        config = Config(redis_url=redis_url, database_url=url, namespace=word, default_queue=word)
        os.environ["ASM_DEV_BROKER"] = redis_url
        with AgentSessions(config) as asm:
            made = Stage(config, asm, Stamps(folder / "stamps.txt"), folder, pool, concurrency)
            try:
                yield made
            finally:
                for worker in made.workers:
                    worker.stop()


@contextmanager
def _database(name: str, folder: Path) -> Iterator[str]:
    if name == "sqlite":
        template = sqlite_template(folder / "template.db")
        yield f"sqlite:///{shutil.copy(template, folder / 'asm.db')}"
    else:
        with postgresql() as server, server.database() as url:
            yield url
