"""An attempt with a log made by hand, for the tests of the workers' room below the servers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from asm_celery.config import Config
from asm_celery.errors import AsmError
from asm_celery.model import Event, Run, Session
from asm_celery.moves.coordinator import Claim
from asm_celery.states import RunStatus
from asm_celery.worker.attempt import Attempt
from asm_celery.worker.context import RunContext
from asm_celery.worker.emitter import Emitter
from asm_celery.worker.outbox import Outbox
from asm_celery.worker.tally import Tally
from asm_celery.worker.writer import EventWriter


@dataclass
class Log:
    """What was stored, in batches; refuses with `troubles`, first come first served, while there are any."""

    batches: list[list[Event]] = field(default_factory=list)
    tried: list[list[Event]] = field(default_factory=list)
    troubles: list[AsmError] = field(default_factory=list)
    is_open: threading.Event = field(default_factory=threading.Event)

    def append(self, claim: Claim, events: list[Event], position: int) -> int:
        self.is_open.wait(10)
        self.tried.append(list(events))
        if self.troubles:
            raise self.troubles.pop(0)
        assert position == len(self.events)
        self.batches.append(list(events))
        return position + len(events)

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]

    @property
    def told(self) -> list[tuple[str, dict[str, object]]]:
        return [(event.type, event.data) for event in self.events]


class Held:
    """One claimed attempt and all that its agent gets."""

    def __init__(self, log: Log, config: Config, history: list[Run], batch_size: int) -> None:
        session = Session.new("echo")
        run = Run.new(
            session.session_id, agent="echo", position=3, attempt=1, claims=1, status=RunStatus.RUNNING
        )
        self.log = log
        self.claim = Claim(run=run, session=session, number=1, executor="host:1:0")
        self.attempt = Attempt(run.run_id, 1)
        self.attempt.begin(self.claim)
        self.writer = EventWriter(log.append, batch_s=0.001, batch_size=batch_size)
        self.outbox: Outbox = self.writer.open(self.attempt, self.claim)
        self.tally = Tally(config.max_output_bytes)
        self.emitter = Emitter(self.claim, self.outbox, self.tally, config)
        self.asked: list[tuple[str, int]] = []

        def read(run: Run, limit: int) -> list[Run]:
            self.asked.append((run.run_id, limit))
            return history

        self.context = RunContext(self.claim, self.attempt, self.emitter, read)


@contextmanager
def held(
    *,
    config: Config | None = None,
    history: list[Run] | None = None,
    batch_size: int = 64,
    is_open: bool = True,
) -> Iterator[Held]:
    """Hold an attempt; `is_open=False` makes the log wait until ``log.is_open.set()``."""
    log = Log()
    if is_open:
        log.is_open.set()
    attempt = Held(log, config or Config(), history or [], batch_size)
    try:
        yield attempt
    finally:
        log.is_open.set()
        attempt.attempt.end()
        attempt.writer.stop()
