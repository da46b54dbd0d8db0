"""`ChildWatch`: the main process of a prefork worker ends children that nothing else can end.

One thread, in the main process.  That process forks at any time, so the thread holds no lock and has no
connection: it reads shared memory, sends signals and says words to the children.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from typing import Final

from asm_celery.dispatch import claim_of
from asm_celery.worker.board import Board, Seat

LOOK_S: Final = 0.1
# A child that was sent SIGTERM leaves its agent, stores the end and exits; then SIGKILL, if it is still there.
OBEY_S: Final = 1.5
# Of its lease: how long a child may be silent before it is killed, so that it is dead before others decide.
SILENCE: Final = 0.8
# A look that comes later than this says that we were not scheduled, and neither were they.
_LATE_S: Final = 1.0
# The latest revokes that are remembered.
_REVOKES: Final = 1000


class ChildWatch:
    """Watches the seats of a board.

    Args:
        silence_s: a child that executes an agent and gives no sign of life for so long is killed: its
            agent holds the interpreter, so its beats stop, and others will take its run for lost.
    """

    def __init__(self, board: Board, *, silence_s: float) -> None:
        self._board = board
        self._silence_s = silence_s
        self._asked: deque[tuple[str, int]] = deque()
        self._revoked: deque[str] = deque(maxlen=_REVOKES)
        self._struck: dict[Seat, float] = {}
        self._stopping = threading.Event()
        self._observed_since = self._looked_at = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="asm-children", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(2 * _LATE_S)

    def ask_to_end(self, run_id: str, claim: int) -> None:
        """Have the child that executes this run and claim end when its agent's grace is over."""
        self._asked.append((run_id, claim))

    def cancel(self, task_id: str) -> bool:
        """Have a child cancel the run of a revoked task; False when none could be told.

        It is said again with the death of the child that executes it: that child may be the one that took
        the word, and hold its interpreter for ever.
        """
        self._revoked.append(task_id)
        return self._board.say(do="cancel", task_id=task_id)

    def look(self) -> None:
        """Look at every seat once."""
        now = time.monotonic()
        if now - self._looked_at > _LATE_S:
            self._observed_since = now
        self._looked_at = now
        while self._asked:
            self._board.ask_to_end(*self._asked.popleft())
        taken = self._board.taken()
        self._struck = {who: at for who, at in self._struck.items() if who in map(_who, taken)}
        for seat in taken:
            if has_died(seat.pid):
                self._bury(seat)
            elif seat.run_id:
                self._end_if_due(seat, now)

    def _end_if_due(self, seat: Seat, now: float) -> None:
        if now - max(seat.tick, self._observed_since) > self._silence_s:
            self._board.strike(seat, signal.SIGKILL)
        elif seat.end_at and now >= seat.end_at and self._board.strike(seat, signal.SIGTERM):
            self._struck[_who(seat)] = now + OBEY_S
        elif seat.is_struck and now >= self._struck.get(_who(seat), now):
            self._board.strike(seat, signal.SIGKILL)

    def _bury(self, seat: Seat) -> None:
        revoked = [one for one in self._revoked if claim_of(one) == (seat.run_id, seat.claim)]
        words = {"revoked": revoked[0]} if revoked else {}
        if self._board.say(do="bury", executor=seat.executor, **words):
            with self._board.held(seat.number) as present:
                # its replacement may sit there by now, if it stood up before it died
                if present.pid == seat.pid:
                    self._board.write(Seat(number=seat.number))

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_S):
            self.look()


def has_died(pid: int) -> bool:
    """Say whether a child of this process has ended; it is left for its owner to reap."""
    try:
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        os.kill(pid, 0)
    except (ChildProcessError, ProcessLookupError):
        return True
    return False


def _who(seat: Seat) -> Seat:
    return Seat(number=seat.number, pid=seat.pid, run_id=seat.run_id, claim=seat.claim)
