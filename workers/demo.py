"""``asm demo``: sessions on this checkout's own files, in front of you, with a server and a worker of their own.

Exits with 0 only if every run ended as the story says and the log holds what was seen live.  Whatever happens,
Ctrl-C included, nothing it started is left: no process, no file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final, Self

from asm_celery import AgentSessions
from asm_celery.cli.call import Call
from asm_celery.cli.exits import Exit
from asm_celery.cli.reach import warn_by
from asm_celery.errors import AsmError, DependencyNotAvailable
from workers import agents
from workers.demo_play import Play
from workers.demo_story import ROOT, story
from workers.demo_view import closing_table, view_for

# The story takes a few seconds; on a machine that needs this long something is wrong.
_PATIENCE_S: Final = 60.0
_TICK_S: Final = 0.05
# What runs when we leave is led down its ladder of signals; after this we leave without it.
_LEAVE_S: Final = 12.0
_STOP_SIGNALS: Final = {
    signal.SIGINT: Exit.CTRL_C,
    signal.SIGTERM: Exit.TERMINATED,
    signal.SIGHUP: Exit.TERMINATED,
}


def run(call: Call, *, keep: bool) -> Exit:
    """Play the demo; `keep` leaves its folder with the log.

    Raises:
        DependencyNotAvailable: no server binary was found, or the checkout cannot be written.
    """
    # its settings are its own: a developer's ASM_REDIS_URL or ASM_BROKER_URL is not for it
    for name in list(os.environ):
        if name.startswith("ASM_") and not name.startswith("ASM_EMBEDDED_"):
            del os.environ[name]
    warn_by(call)
    began = time.monotonic()
    with _Stop() as stop, _folder(keep=keep) as home:
        # a run that is stopped gets 3 s, and the worker waits no longer for it
        with contextlib.closing(
            AgentSessions.local(home, namespace="demo", stop_grace_s=3, shutdown_grace_s=3)
        ) as asm:
            agents.register(asm)
            try:
                code = _play(call, asm, stop)
            finally:
                stop.leave_within(_LEAVE_S, home)
                _end_all(asm)
        if code is Exit.COMPLETED:
            where = f"its log stays in {home}" if keep else "all it started has ended, its folder is removed"
            call.talk(f"done in {time.monotonic() - began:.1f} s: {where}")
        return code


def _play(call: Call, asm: AgentSessions, stop: _Stop) -> Exit:
    if stop.code is not None:
        return stop.code
    play = Play(asm, story())
    deadline = time.monotonic() + _PATIENCE_S
    with contextlib.closing(play), view_for(call) as view:
        play.begin(view)
        while not play.has_ended and time.monotonic() < deadline:
            if stop.code is not None:
                view.note("stopping all that runs")
                return stop.code
            play.step(view)
            view.refresh(play.lines)
            time.sleep(_TICK_S)
        view.refresh(play.lines)
    closing_table(call, play.entries())
    surprises = play.surprises()
    for surprise in surprises:
        call.talk(f"unexpected: {surprise}")
    if surprises:
        return Exit.FAILED
    call.text(play.summary())
    return Exit.COMPLETED


def _end_all(asm: AgentSessions) -> None:
    """Interrupt what is still open, so that closing waits for nothing."""
    with contextlib.suppress(AsmError):
        for session in asm.list_sessions():
            asm.control.interrupt_session(session.session_id)


@contextlib.contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    """Make a folder in the checkout's ``.asm``, and remove it."""
    parent = ROOT / ".asm"
    is_ours = not parent.exists()
    try:
        parent.mkdir(exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix=f"demo-{os.getpid()}-", dir=parent))
    except OSError as cause:
        raise DependencyNotAvailable(f"the demo needs to write into its checkout: {cause}") from cause
    try:
        yield home
    finally:
        if not keep:
            shutil.rmtree(home, ignore_errors=True)
            if is_ours:
                with contextlib.suppress(OSError):
                    parent.rmdir()


class _Stop:
    """Signals that ask us to leave: noted, and looked at where leaving is safe, so that nothing is forgotten.

    Attributes:
        code: what to exit with; None while nobody asked.
    """

    def __init__(self) -> None:
        self.code: Exit | None = None
        self._before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
        self._last_resort: threading.Timer | None = None

    def __enter__(self) -> Self:
        for number in _STOP_SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._last_resort is not None:
            self._last_resort.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def leave_within(self, seconds: float, home: Path) -> None:
        """End this process after so long, whatever keeps it; its server and its commands then end by themselves."""

        def leave() -> None:
            faulthandler.dump_traceback()
            # twice, because those who are being left may still write
            for _ in range(2):
                shutil.rmtree(home, ignore_errors=True)
            os._exit(Exit.FAILED if self.code is None else self.code)

        self._last_resort = threading.Timer(seconds, leave)
        self._last_resort.daemon = True
        self._last_resort.start()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.code is None:
            self.code = _STOP_SIGNALS[signal.Signals(number)]
