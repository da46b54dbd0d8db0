"""`Seams`: break a process between any two calls it makes, to see that everything is recovered.

A move calls its collaborators one after the other: SQL, Redis, the broker, the event bus.  Between two of these
calls a process can die, and the answer to each can be lost.  `Seams` puts a proxy around each collaborator of
one runtime; the proxies count the calls, and break the one that a test names.  Production code has no hooks
for this: what is wrapped is what `runtime.py` builds.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, NoReturn

from asm_celery.config import Config
from asm_celery.errors import CoordinationUnavailable, InvalidOperation, StorageConnectionFailed
from asm_celery.runtime import Runtime
from asm_celery.sessions import AgentSessions

Moment = Literal["before", "after"]
Breaker = Callable[[str], object]

_SCOPES: Final = frozenset({"store.transaction", "store.read"})
_UNCOUNTED: Final = frozenset({"close", "held"})


class Crash(BaseException):
    """The process ended here, as far as its code can tell: nothing below the test catches this."""


def crash(call: str) -> NoReturn:
    """End the move as a crash of its process would: by an exception that no code catches."""
    raise Crash(call)


def kill(call: str) -> NoReturn:
    """End this very process by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise Crash(call)


def fail(call: str) -> None:
    """Fail as an unreachable SQL or Redis does: before the call nothing happened, after it the answer is lost.

    The broker and the bus never tell their callers, so nothing is raised for them.
    """
    if call.startswith("store."):
        raise StorageConnectionFailed(f"the answer to {call} was lost by a test")
    if call.startswith("queue."):
        raise CoordinationUnavailable(f"the answer to {call} was lost by a test")


def stall(seconds: float) -> Breaker:
    """Return what holds a call up for so long: a pause of the process, a slow network."""
    return lambda _: time.sleep(seconds)


@dataclass(slots=True)
class _Break:
    call: str | None
    left: int
    when: Moment
    by: Breaker


class Seams:
    """The calls of one process to its collaborators: counted, and broken where a test says.

    A call is named by collaborator and verb: ``store.transaction``, ``store.read``, ``queue.enqueue`` (and
    the other scripts), ``dispatcher.dispatch``, ``bus.publish``.  A transaction is one call: before it begins,
    and after its commit.

    Attributes:
        calls: the names of the calls made so far, in order.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._breaks: list[_Break] = []
        self._lock = threading.Lock()

    def break_at(
        self, call: str | None = None, nth: int = 1, *, when: Moment = "before", by: Breaker
    ) -> None:
        """Break the n-th call from now on, once; several breaks may be set.

        Args:
            call: its name; None counts all calls.
            when: before it, or after it has succeeded.
            by: what happens there, given the name of the call: `crash`, `kill`, `fail`, ``stall(seconds)``,
                or any callable.
        """
        with self._lock:
            self._breaks.append(_Break(call, nth, when, by))

    def clear(self) -> None:
        """Forget the breaks that have not come, and the calls that were made."""
        with self._lock:
            self._breaks.clear()
            self.calls.clear()

    def install(self, runtime: Runtime) -> Runtime:
        """Wrap the collaborators of a runtime that has made no move yet; returns it.

        Raises:
            InvalidOperation: its moves hold the collaborators already.
        """
        if "promoter" in runtime.__dict__ or "log" in runtime.__dict__:
            raise InvalidOperation("seams are put into a runtime before its first use: its moves are built")
        runtime.dispatcher = _Proxy("dispatcher", runtime.dispatcher, self._call)
        runtime.__dict__["queue"] = _Proxy("queue", runtime.queue, self._call)
        runtime.__dict__["store"] = _Proxy("store", runtime.store, self._call)
        runtime.log.bus = _Proxy("bus", runtime.log.bus, self._call)  # type: ignore[assignment]
        return runtime

    @contextmanager
    def watch(self, asm: AgentSessions) -> Iterator[None]:
        """Wrap the collaborators of every runtime that these sessions build inside the block, after forks too.

        A worker's module that is under test enters it once and never leaves.

        Raises:
            InvalidOperation: they have built one already.
        """
        if asm._built is not None:
            raise InvalidOperation("seams are put into AgentSessions before its first use: it is connected")
        made, config = Runtime.__init__, asm.config

        def build(runtime: Runtime, given: Config, *parts: Any) -> None:
            made(runtime, given, *parts)
            if given is config:
                self.install(runtime)

        Runtime.__init__ = build  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            Runtime.__init__ = made  # type: ignore[method-assign]

    def _call(self, name: str, verb: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if name in _SCOPES:
            return self._scope(name, verb, *given, **named)
        due = self._count(name)
        self._break(due, "before")
        answer = verb(*given, **named)
        self._break(due, "after")
        return answer

    @contextmanager
    def _scope(
        self, name: str, verb: Callable[..., AbstractContextManager[Any]], *given: Any, **named: Any
    ) -> Iterator[Any]:
        due = self._count(name)
        self._break(due, "before")
        with verb(*given, **named) as opened:
            yield opened
        self._break(due, "after")

    def _count(self, name: str) -> list[tuple[_Break, str]]:
        due = []
        with self._lock:
            self.calls.append(name)
            for one in list(self._breaks):
                if one.call in (None, name):
                    one.left -= 1
                    if one.left <= 0:
                        self._breaks.remove(one)
                        due.append((one, name))
        return due

    def _break(self, due: list[tuple[_Break, str]], moment: Moment) -> None:
        for one, name in due:
            if one.when == moment:
                one.by(name)


class _Proxy:
    """A collaborator with its public verbs counted; everything else is its own."""

    def __init__(self, name: str, part: Any, call: Callable[..., Any]) -> None:
        self._name = name
        self._part = part
        self._call = call

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._part, verb)
        if not callable(found) or verb.startswith("_") or verb in _UNCOUNTED:
            return found
        return partial(self._call, f"{self._name}.{verb}", found)
