"""`RunContext`: what an agent holds of its run.

Agents get one as their first argument.  It reads and writes nothing by itself: events go through the
attempt's outbox, history through a callable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, MutableMapping
from datetime import datetime
from typing import Any

from asm_celery.checks import check_count
from asm_celery.model import Run, Session
from asm_celery.moves.coordinator import Claim
from asm_celery.worker.attempt import Attempt
from asm_celery.worker.emitter import Emitter

History = Callable[[Run, int], list[Run]]


class RunContext:
    """One attempt, as its agent sees it; every method may be called from any thread of the agent.

    Attributes:
        session: the session as it was when this attempt was claimed.
        run: the run, likewise.
        attempt: 1 the first time the agent is entered for this run, then 2, 3 ...
        deadline: when `run_timeout` ends it, by the database's clock; None for no limit.
        log: a logger whose lines name session, run and attempt.
    """

    def __init__(self, claim: Claim, attempt: Attempt, emitter: Emitter, history: History) -> None:
        self.session: Session = claim.session
        self.run: Run = claim.run
        self.attempt: int = claim.run.attempt
        self.deadline: datetime | None = claim.run.deadline
        self.log = _RunLog(
            logging.getLogger("asm_celery.agent"),
            {"session_id": claim.session.session_id, "run_id": claim.run.run_id, "attempt": self.attempt},
        )
        self._attempt = attempt
        self._emitter = emitter
        self._history = history

    def emit(self, type: str, data: Mapping[str, Any] | None = None) -> None:  # noqa: A002 - the field's name
        """Write one event to the session's log; returns before it is stored, order is kept.

        Args:
            type: a word of a-z, 0-9, ``_`` and ``.``; ``run_*`` and ``session_*`` are the runtime's.
            data: a JSON object of at most `max_event_bytes`; None for an empty one.

        Raises:
            InvalidEventType, InvalidInput: the type or the data breaks its rule.
            InvalidOperation: the attempt has ended.
            StopRun: the run was taken from this worker.

        Guarantee: what was emitted before the agent returns is in the log before the run's last event.
        It blocks while 1,000 events wait, so that a slow or absent database slows the agent instead of
        filling its memory.
        """
        with self._attempt.reach:
            self._emitter.emit(type, data)

    @property
    def cancelled(self) -> bool:
        """True once a stop was asked for, whatever its kind; `stop_kind` tells which."""
        return self._attempt.hear() is not None

    @property
    def stop_kind(self) -> str | None:
        """``cancel``, ``interrupt``, ``timeout``, ``shutdown`` or ``lost``; None while nobody asked."""
        return self._attempt.hear()

    def check(self) -> None:
        """Raise StopRun once a stop was asked for; call it wherever the agent may be left."""
        self._attempt.check()

    def on_stop(self, fn: Callable[[], object]) -> None:
        """Have `fn` called once, without arguments, when a stop is asked for; at once if it was.

        It is called in a thread of its own, so it may block; an exception of it is logged.
        """
        self._attempt.on_stop(fn)

    def sleep(self, seconds: float) -> bool:
        """Wait, and return True; raises StopRun as soon as a stop is asked for."""
        self._attempt.sleep(seconds)
        return True

    async def asleep(self, seconds: float) -> bool:
        """Do the same in a coroutine agent, whose task is cancelled when a stop is asked for."""
        self._attempt.check()
        await asyncio.sleep(seconds)
        return True

    @property
    def paused(self) -> bool:
        """True while the run is paused: time to come to rest, and then to `wait_if_paused`."""
        return self._attempt.pause.is_on

    def wait_if_paused(self) -> bool:
        """Wait while the run is paused; return whether it was.

        Call it wherever the agent can rest, and declare the capability ``pause`` at its registration.
        The time it waits counts: `run_timeout` goes on, and ends a paused run as any other.

        Raises:
            StopRun: a stop was asked for, before or meanwhile.
        """
        was_paused = self._attempt.pause.is_on
        self._attempt.check()
        self._attempt.pause.wait()
        self._attempt.check()
        return was_paused

    async def await_if_paused(self) -> bool:
        """Do the same in a coroutine agent, whose task is cancelled when a stop is asked for."""
        was_paused = self._attempt.pause.is_on
        self._attempt.check()
        await self._attempt.pause.await_open()
        self._attempt.check()
        return was_paused

    def history(self, limit: int = 20) -> list[Run]:
        """Return the session's last `limit` ended runs before this one, oldest first.

        One statement of SQL.

        Raises:
            ValidationError: `limit` is not 1 to 1,000.
            StorageError: the database cannot be read.
        """
        count = check_count(limit, what="limit", minimum=1, maximum=1000)
        with self._attempt.reach:
            return self._history(self.run, count)


class _RunLog(logging.LoggerAdapter[logging.Logger]):
    """Names session, run and attempt in the line, and as fields for formatters that take them."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        known = dict(self.extra or {})
        kwargs["extra"] = {**known, **(kwargs.get("extra") or {})}
        names = f"session={known['session_id']} run={known['run_id']} attempt={known['attempt']}"
        return f"{msg} {names}", kwargs
