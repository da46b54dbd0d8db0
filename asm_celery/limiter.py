"""`ConcurrencyLimiter`: the global semaphore as callers see it.

Dispatched runs take their slots inside the queue's scripts and never need these calls; they are for a
caller's own work that shall count against the same limits.  A slot acquired here is a lease that this process
renews: when the process dies, the slot frees itself.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass

from asm_celery.checks import check_count, check_seconds, check_words
from asm_celery.config import Config
from asm_celery.errors import AsmError, RunLimitExceeded, SessionLimitExceeded, ValidationError
from asm_celery.events.log import EventLog
from asm_celery.moves.promotion import Promoter
from asm_celery.moves.restore import NO_LIMIT, RUN_LIMIT, SESSION_LIMIT, Restore
from asm_celery.showing import shown
from asm_celery.store.faults import retried

log = logging.getLogger(__name__)

_RUNS, _SESSIONS = "runs", "sessions"
# how often a waiting acquire asks again
_ASK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits; ``math.inf`` where there is none."""

    max_parallel_sessions: float
    max_parallel_runs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterStatus:
    """What is taken and what is left; ``math.inf`` where there is no limit."""

    active_sessions: int
    active_runs: int
    max_parallel_sessions: float
    max_parallel_runs: float
    available_session_slots: float
    available_run_slots: float


class ConcurrencyLimiter:
    """The semaphore over all sessions, runs and processes of a namespace."""

    def __init__(self, config: Config, log: EventLog, promoter: Promoter, restore: Restore) -> None:
        self._log = log
        self._promoter = promoter
        self._restore = restore
        self._hold_s = config.lease_s
        self._held: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._renewer: threading.Thread | None = None

    def acquire_session_slot(self, session_id: str, *, timeout: float | None = None) -> None:
        """Take a slot for a session of the caller's own; the same id again counts once.

        Args:
            timeout: seconds to wait for a slot; None: do not wait.

        Raises:
            SessionLimitExceeded: the limit is reached (after `timeout`).
            CoordinationUnavailable: Redis is away.
        """
        check_words(session_id, what="session_id")
        limit, active = self._acquire(_SESSIONS, session_id, "", timeout)
        if active:
            raise SessionLimitExceeded(
                f"no slot for session {session_id!r}: Maximum parallel sessions limit of {limit} reached, "
                f"{active} active; release one, or raise it with set_limits",
                limit=limit,
                active=active,
            )

    def release_session_slot(self, session_id: str) -> None:
        """Give a session's slot back, and those of its runs; unknown or given back already is fine."""
        self._release(_SESSIONS, check_words(session_id, what="session_id"))

    def acquire_run_slot(self, session_id: str, run_id: str, *, timeout: float | None = None) -> None:
        """Take a slot for a run of the caller's own; the limit is over all sessions, the same id counts once.

        Raises:
            RunLimitExceeded: the limit is reached (after `timeout` seconds).
            CoordinationUnavailable: Redis is away.
        """
        check_words(session_id, what="session_id")
        check_words(run_id, what="run_id")
        limit, active = self._acquire(_RUNS, run_id, session_id, timeout)
        if active:
            raise RunLimitExceeded(
                f"no slot for run {run_id!r}: Maximum parallel runs limit of {limit} reached, {active} active; "
                "release one, or raise it with set_limits",
                limit=limit,
                active=active,
            )

    def release_run_slot(self, run_id: str) -> None:
        """Give a run's slot back; unknown or given back already is fine."""
        self._release(_RUNS, check_words(run_id, what="run_id"))

    def get_status(self) -> LimiterStatus:
        """Return what is taken: by dispatched runs and by callers together. One script."""
        runs, max_runs, sessions, max_sessions = self._promoter.queue.limiter_status()
        limits = self.get_limits() if max_runs is None or max_sessions is None else None
        run_limit = limits.max_parallel_runs if limits else float(max_runs or 0)
        session_limit = limits.max_parallel_sessions if limits else float(max_sessions or 0)
        return LimiterStatus(
            active_sessions=sessions,
            active_runs=runs,
            max_parallel_sessions=_plain(session_limit),
            max_parallel_runs=_plain(run_limit),
            available_session_slots=_plain(max(0.0, session_limit - sessions)),
            available_run_slots=_plain(max(0.0, run_limit - runs)),
        )

    def get_limits(self) -> Limits:
        """Return the limits as SQL has them; one read."""
        runs, sessions = self._restore.limits()
        return Limits(
            max_parallel_sessions=math.inf if sessions is None else sessions,
            max_parallel_runs=math.inf if runs is None else runs,
        )

    @retried
    def set_limits(
        self, *, max_parallel_runs: float | None = None, max_parallel_sessions: float | None = None
    ) -> Limits:
        """Change limits for every process, now and after restarts; None leaves one as it is.

        One transaction, one script; what becomes free is promoted.  A lower limit stops nothing that runs.

        Args:
            max_parallel_runs, max_parallel_sessions: 1 or more, ``math.inf`` for no limit.

        Raises:
            ValidationError: below 1, or not a whole number.
        """
        given = {RUN_LIMIT: max_parallel_runs, SESSION_LIMIT: max_parallel_sessions}
        texts = {name: _stored(name, value) for name, value in given.items() if value is not None}
        with self._log.transaction() as tx:
            self._restore.seed_limits(tx)
            for name, text in texts.items():
                tx.settings.put(name, text)
        runs, sessions = self._restore.limits()
        self._promoter.settle(lambda: self._promoter.queue.limiter_set(runs, sessions))
        return self.get_limits()

    def close(self) -> None:
        """Stop renewing; slots that were not given back end by themselves."""
        self._stopping.set()
        if self._renewer is not None:
            self._renewer.join(timeout=5)

    def _acquire(self, kind: str, slot: str, session_id: str, timeout: float | None) -> tuple[int, int]:
        check_seconds(timeout, what="timeout")
        deadline = time.monotonic() + (timeout or 0.0)
        while True:
            word, limit, active = self._promoter.queue.limiter_acquire(
                kind, slot, hold_s=self._hold_s, session_id=session_id
            )
            if word != "full":
                self._keep(kind, slot)
                return int(float(limit)), 0
            if time.monotonic() >= deadline or self._stopping.wait(_ASK_S):
                return int(float(limit)), int(active)

    def _release(self, kind: str, slot: str) -> None:
        with self._lock:
            self._held.discard((kind, slot))
        granted = self._promoter.queue.limiter_release(kind, slot)
        self._promoter.ring_for(granted.leases)

    def _keep(self, kind: str, slot: str) -> None:
        with self._lock:
            self._held.add((kind, slot))
            if self._renewer is None:
                self._renewer = threading.Thread(target=self._renew, name="asm-limiter", daemon=True)
                self._renewer.start()

    def _renew(self) -> None:
        while not self._stopping.wait(self._hold_s / 3):
            with self._lock:
                held = sorted(self._held)
            try:
                words = self._promoter.queue.limiter_renew(held, hold_s=self._hold_s) if held else []
            except AsmError as cause:
                log.warning("slots of the limiter were not renewed: %s", cause.message)
                continue
            for slot, word in zip(held, words, strict=True):
                if word == "ended":
                    log.warning("slot %s %s ended: Redis was away for longer than lease_s", *slot)
                    with self._lock:
                        self._held.discard(slot)


def _stored(name: str, value: float) -> str:
    if value == math.inf:
        return NO_LIMIT
    if isinstance(value, float) and not value.is_integer():
        raise ValidationError(
            f"{name}={shown(value)} must be a whole number from 1, or math.inf for no limit"
        )
    return str(check_count(int(value) if isinstance(value, float) else value, what=name, minimum=1))


def _plain(value: float) -> float:
    return value if math.isinf(value) else int(value)
