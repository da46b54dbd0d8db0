"""The composition root: builds what one process needs, in order, each part at its first use.

Nothing here decides anything.  A Runtime belongs to one process: after a fork its owner makes a new one.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import cached_property

from asm_celery.agent import AgentRegistry
from asm_celery.config import Config
from asm_celery.dispatch import Dispatcher
from asm_celery.errors import CoordinationUnavailable
from asm_celery.events.bus import Bus
from asm_celery.events.hub import Hub
from asm_celery.events.log import EventLog
from asm_celery.limiter import ConcurrencyLimiter
from asm_celery.moves.comparison import Comparison
from asm_celery.moves.control import Control
from asm_celery.moves.coordinator import Coordinator
from asm_celery.moves.holding import Holding
from asm_celery.moves.inspection import Inspection
from asm_celery.moves.pausing import Pauser
from asm_celery.moves.promotion import Promoter
from asm_celery.moves.recovery import Recovery
from asm_celery.moves.restore import Restore
from asm_celery.moves.retention import Retention
from asm_celery.moves.stopping import Stopper
from asm_celery.moves.submission import Submission
from asm_celery.queue.connection import connect
from asm_celery.queue.run_queue import RunQueue
from asm_celery.store.database import Store


class Runtime:
    """The parts of one process.

    Args:
        dispatcher: what rings doorbells.
    """

    def __init__(self, config: Config, registry: AgentRegistry, dispatcher: Dispatcher) -> None:
        self.config = config
        self.registry = registry
        self.dispatcher = dispatcher
        self.process = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"

    @cached_property
    def store(self) -> Store:
        """The database."""
        return Store(self.config)

    @cached_property
    def queue(self) -> RunQueue:
        """The scripts."""
        client, keys = connect(self.config), self.config.keys
        return RunQueue(client, keys, url=self.config.redis_url, bell=self.dispatcher.bell)

    @cached_property
    def log(self) -> EventLog:
        """The event log, which publishes."""
        return EventLog(self.store, Bus.of(self.config), window_s=self.config.group_commit_ms / 1000)

    @cached_property
    def hub(self) -> Hub:
        """The one thread and connection that serve every subscriber and awaiter here."""
        return Hub(self.config, self.log, self._count_subscribers)

    @cached_property
    def promoter(self) -> Promoter:
        """Arbitration followed by dispatch."""
        return Promoter(self.queue, self.dispatcher)

    @cached_property
    def stopper(self) -> Stopper:
        """The moves that stop."""
        return Stopper(self.log, self.promoter, self.config.keys)

    @cached_property
    def submission(self) -> Submission:
        """The moves that admit."""
        return Submission(self.config, self.registry, self.log, self.promoter, self.stopper)

    @cached_property
    def coordinator(self) -> Coordinator:
        """The moves of an attempt."""
        return Coordinator(self.config, self.log, self.promoter, self.stopper)

    @cached_property
    def recovery(self) -> Recovery:
        """This process's part in repair."""
        return Recovery(self.config, self.registry, self.log, self.promoter, self.coordinator, self.stopper)

    @cached_property
    def comparison(self) -> Comparison:
        """What differs between SQL and Redis, and how it is mended."""
        return Comparison(self.log, self.promoter, Restore(self.config, self.log, self.promoter))

    @cached_property
    def control(self) -> Control:
        """The moves of operators and callers."""
        return Control(self.log, self.promoter, self.stopper)

    @cached_property
    def holding(self) -> Holding:
        """The moves of the hold."""
        return Holding(self.log, self.promoter)

    @cached_property
    def retention(self) -> Retention:
        """The move that forgets old events."""
        return Retention(self.log)

    @cached_property
    def pauser(self) -> Pauser:
        """The moves that pause a run."""
        return Pauser(self.registry, self.log, self.config.keys)

    @cached_property
    def inspection(self) -> Inspection:
        """Read-only questions."""
        return Inspection(self.log, self.queue, self.holding)

    @cached_property
    def limiter(self) -> ConcurrencyLimiter:
        """The semaphore as callers see it."""
        return ConcurrencyLimiter(
            self.config, self.log, self.promoter, Restore(self.config, self.log, self.promoter)
        )

    def close(self) -> None:
        """Stop the threads and close the connections of the parts that were built."""
        built = self.__dict__
        for name in ("hub", "limiter", "store"):
            if name in built:
                built[name].close()
        if "log" in built:
            self.log.bus.close()

    def _count_subscribers(self, counts: dict[str, int]) -> None:
        hold_s = max(self.config.lease_s, 3 * self.config.beat_s)
        # counts run out by themselves, and come back with Redis
        with suppress(CoordinationUnavailable):
            self.queue.count_subscribers(self.process, counts, hold_s=hold_s)
