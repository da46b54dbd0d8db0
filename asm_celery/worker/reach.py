"""`Reach`: raising an exception in the thread that executes an agent, from another thread.

Only inside the agent's own code.  Leaving it takes the lock of whoever wants to raise, so an exception that
comes late is never raised in what follows: storing the attempt's end, or the next run.

A body in the main thread is reached by a signal, which also interrupts a system call it waits in; in any
other thread by ``PyThreadState_SetAsyncExc``, which is seen when the thread executes Python again.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Final, Self

from asm_celery.errors import StopRun

SIGNAL: Final = signal.SIGUSR2
_HEARD_S: Final = 1.0
_AGAIN_S: Final = 0.02
_NAME: Final = ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
_SET: Final = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(_NAME)
_CLEAR: Final = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)(_NAME)


class Reach:
    """One attempt's body, as what may be interrupted.

    Use as a context manager around our own code that the agent calls, to shield it: an outbox that is left
    half-way by an exception would lose or repeat events.  What was to be raised meanwhile is raised at the
    end of the block.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._shields = 0
        self._wanted: StopRun | None = None
        self._is_main = False

    @property
    def thread(self) -> int | None:
        """The id of the thread the body executes in; None while it does not."""
        return self._thread

    def enter(self) -> None:
        """Say that the body is entered, by this thread."""
        with self._lock:
            self._thread = threading.get_ident()
            self._is_main = threading.current_thread() is threading.main_thread() and is_ready()
        if self._is_main:
            _Present.body = self

    def leave(self) -> None:
        """Say that the body was left; nothing is raised in this thread once this has returned."""
        while True:
            try:
                if _Present.body is self:
                    _Present.body = None
                with self._lock:
                    if self._thread is not None and not self._is_main:
                        _CLEAR(self._thread, None)
                    self._thread, self._wanted = None, None
                    return
            except StopRun:
                continue

    def throw(self, stop: StopRun) -> bool:
        """Have `stop` raised in the body; False when it was left.

        Waits up to a second for a body in the main thread to hear its signal: one that comes between two
        instructions and finds the thread in a system call a moment later does not interrupt that call.
        """
        if not self._aim(stop):
            return False
        until = time.monotonic() + _HEARD_S
        while self._signal() and time.monotonic() < until:
            time.sleep(_AGAIN_S)
        return True

    def _signal(self) -> bool:
        """Signal a body in the main thread; False when there is nothing to be heard any more."""
        with self._lock:
            if not self._is_main or self._thread is None or self._wanted is None or self._shields:
                return False
            signal.pthread_kill(self._thread, SIGNAL)
            return True

    def _aim(self, stop: StopRun) -> bool:
        with self._lock:
            if self._thread is None:
                return False
            self._wanted = stop
            if not self._is_main and not self._shields:
                self._wanted = None
                _SET(self._thread, _class_of(stop))
            return True

    def deliver(self) -> None:
        """Raise what is wanted, unless the body is shielded; in the body's thread."""
        wanted = self._wanted
        if wanted is not None and not self._shields:
            self._wanted = None
            raise wanted

    def __enter__(self) -> Self:
        if threading.get_ident() == self._thread:
            shields = self._shields
            try:
                with self._lock:
                    self._shields = shields + 1
            except BaseException:
                # what was raised while we waited for the lock strikes now, and this block is never left
                self._shields = shields
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.get_ident() == self._thread:
            with self._lock:
                self._shields -= 1
            self.deliver()


class _Present:
    """The body in this process's main thread; None when none is there."""

    body: Reach | None = None


def _heard(_number: int, _frame: FrameType | None) -> None:
    body = _Present.body
    if body is not None:
        body.deliver()


def prepare() -> None:
    """Set up this process so that a body in its main thread can be reached; call it in the main thread."""
    signal.signal(SIGNAL, _heard)


def is_ready() -> bool:
    """Say whether `prepare` was called here."""
    return signal.getsignal(SIGNAL) is _heard


def _class_of(stop: StopRun) -> type[StopRun]:
    # the interpreter makes the exception itself, from a class and without arguments
    def made(self: StopRun) -> None:
        StopRun.__init__(self, stop.kind)

    return type("StopRun", (StopRun,), {"__init__": made, "__module__": StopRun.__module__})
