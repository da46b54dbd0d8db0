"""Who awaits which run, and which of those runs should be looked up now.

Pure and thread-safe: the hub reads SQL for what `take_due` returns and calls back what `answered` returns.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from asm_celery.events.feed import trust_s
from asm_celery.model import Run

Callback = Callable[[Run], None]


@dataclass(slots=True, kw_only=True)
class _Waited:
    session_id: str
    since: float
    due: float
    callbacks: list[Callback] = field(default_factory=list)


class RunWaiters:
    """The awaited runs of this process; times are seconds of the monotonic clock."""

    def __init__(self, poll_s: float) -> None:
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._runs: dict[str, _Waited] = {}
        self._sessions: dict[str, set[str]] = {}
        self._due: list[tuple[float, str]] = []
        self._listening = False

    def add(self, run_id: str, session_id: str, callback: Callback, now: float) -> None:
        """Await a run: it is due at once, and then at growing intervals."""
        with self._lock:
            waited = self._runs.get(run_id)
            if waited is None:
                waited = _Waited(session_id=session_id, since=now, due=inf)
                self._runs[run_id] = waited
                self._sessions.setdefault(session_id, set()).add(run_id)
            waited.callbacks.append(callback)
            self._schedule(run_id, now)

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

    def ring(self, run_id: str, now: float) -> None:
        """Make an awaited run due: it is said to have ended."""
        with self._lock:
            if run_id in self._runs:
                self._schedule(run_id, now)

    def ring_session(self, session_id: str, now: float) -> None:
        """Make a session's awaited runs due: news of it may have been missed."""
        with self._lock:
            for run_id in self._sessions.get(session_id, ()):
                self._schedule(run_id, now)

    def listening(self, is_listening: bool, now: float) -> None:
        """Note whether live news can be heard; when it stops, every run is due."""
        with self._lock:
            stopped = self._listening and not is_listening
            self._listening = is_listening
            for run_id in self._runs if stopped else ():
                self._schedule(run_id, now)

    def next_due(self) -> float:
        """Return when `take_due` has something to give; infinity if nothing is awaited."""
        with self._lock:
            return self._due[0][0] if self._due else inf

    def take_due(self, now: float) -> list[str]:
        """Return the run ids to look up now, and plan the next look at each."""
        found = []
        with self._lock:
            while self._due and self._due[0][0] <= now:
                due, run_id = heapq.heappop(self._due)
                waited = self._runs.get(run_id)
                # an entry that was overtaken by an earlier one, or whose run is not awaited any more
                if waited is None or waited.due != due:
                    continue
                found.append(run_id)
                silence_s = now - waited.since if self._listening else 0.0
                waited.due = inf
                self._schedule(run_id, now + trust_s(silence_s, poll_s=self._poll_s))
        return found

    def answered(self, run_id: str) -> list[Callback]:
        """Return and forget all callbacks of a run that has ended."""
        with self._lock:
            waited = self._runs.get(run_id)
            if waited is None:
                return []
            self._forget(run_id)
            return waited.callbacks

    def _schedule(self, run_id: str, due: float) -> None:
        waited = self._runs[run_id]
        if due < waited.due:
            waited.due = due
            heapq.heappush(self._due, (due, run_id))

    def _forget(self, run_id: str) -> None:
        waited = self._runs.pop(run_id)
        siblings = self._sessions[waited.session_id]
        siblings.discard(run_id)
        if not siblings:
            del self._sessions[waited.session_id]
