"""Who awaits which run of this process.

Pure and thread-safe: the hub reads SQL for `take_rung` (said to have ended) and, now and then, for
`everyone`; then it calls back whom `answered` returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from asm_celery.model import Run

Callback = Callable[[Run], None]


@dataclass(slots=True, kw_only=True)
class _Waited:
    session_id: str
    callbacks: list[Callback] = field(default_factory=list)


class RunWaiters:
    """The awaited runs, by run and by session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, _Waited] = {}
        self._sessions: dict[str, set[str]] = {}
        self._rung: set[str] = set()

    def add(self, run_id: str, session_id: str, callback: Callback) -> None:
        """Await a run, and ring it: it may have ended already."""
        with self._lock:
            waited = self._runs.setdefault(run_id, _Waited(session_id=session_id))
            waited.callbacks.append(callback)
            self._sessions.setdefault(session_id, set()).add(run_id)
            self._rung.add(run_id)

    def remove(self, run_id: str, callback: Callback) -> None:
        """Forget one callback; nothing happens if it was called or forgotten already."""
        with self._lock:
            waited = self._runs.get(run_id)
            if waited is not None and callback in waited.callbacks:
                waited.callbacks.remove(callback)
                if not waited.callbacks:
                    self._forget(run_id)

    def awaits(self, session_id: str | None) -> bool:
        """Return whether any run of this session is awaited."""
        return session_id in self._sessions

    def ring(self, run_id: str) -> None:
        """Note that a run is said to have ended."""
        with self._lock:
            if run_id in self._runs:
                self._rung.add(run_id)

    def ring_session(self, session_id: str) -> None:
        """Note that any run of a session may have ended."""
        with self._lock:
            self._rung |= self._sessions.get(session_id, set())

    def take_rung(self) -> list[str]:
        """Return the runs that were rung since the last call, in any order."""
        with self._lock:
            rung, self._rung = self._rung, set()
            return list(rung)

    def everyone(self) -> list[str]:
        """Return all awaited runs, in any order."""
        with self._lock:
            return list(self._runs)

    def answered(self, run_id: str) -> list[Callback]:
        """Return and forget all callbacks of a run that has ended."""
        with self._lock:
            waited = self._runs.get(run_id)
            if waited is None:
                return []
            self._forget(run_id)
            return waited.callbacks

    def _forget(self, run_id: str) -> None:
        waited = self._runs.pop(run_id)
        self._rung.discard(run_id)
        siblings = self._sessions[waited.session_id]
        siblings.discard(run_id)
        if not siblings:
            del self._sessions[waited.session_id]
