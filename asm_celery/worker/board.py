"""`Board`: what the main process of a prefork worker and its children know of each other.

The main process forks at any time, so it has no connection, and a child whose agent holds the interpreter
cannot answer.  So they share memory, a seat for each child: which run it executes, under which claim, by when
its process must have ended, and its last sign of life.  A record lock of each seat makes "this child still
executes this run" and "end it" one step; the kernel drops the lock of a process that dies.  Words of the main
process for any child (a revoke was heard, an executor died) go through a socket that all children read.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

# pid, claim, is struck, last tick, when to end it (0: never), grace, run, executor
_SEAT: Final = struct.Struct("=qi?3d64s192s")
_TICK: Final = struct.Struct("=d")
_TICK_AT: Final = struct.calcsize("=qi?")
_PAGE: Final = 512
_LONGEST_WORD: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a seat says; `run_id` is empty while its child executes no agent.

    Attributes:
        tick, end_at: on the machine's monotonic clock.
        is_struck: True once its process was told to end, for this run.
    """

    number: int
    pid: int = 0
    claim: int = 0
    is_struck: bool = False
    tick: float = 0.0
    end_at: float = 0.0
    grace_s: float = 0.0
    run_id: str = ""
    executor: str = ""

    def packed(self) -> bytes:
        """Return it as the table holds it."""
        return _SEAT.pack(
            self.pid,
            self.claim,
            self.is_struck,
            self.tick,
            self.end_at,
            self.grace_s,
            self.run_id.encode(),
            self.executor.encode(),
        )


class Board:
    """The seats of one worker; made before its children.

    Args:
        seats: how many children there may be at once, with room for those just being replaced.
    """

    def __init__(self, seats: int) -> None:
        self.size = seats
        self._table = mmap.mmap(-1, _PAGE * seats)
        self._locks = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._outgoing, self._incoming = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._outgoing.setblocking(False)

    def read(self, number: int) -> Seat:
        """Return a seat as it is now."""
        at = number * _PAGE
        pid, claim, is_struck, tick, end_at, grace_s, run_id, executor = _SEAT.unpack_from(self._table, at)
        return Seat(
            number=number,
            pid=pid,
            claim=claim,
            is_struck=is_struck,
            tick=tick,
            end_at=end_at,
            grace_s=grace_s,
            run_id=run_id.rstrip(b"\0").decode(errors="replace"),
            executor=executor.rstrip(b"\0").decode(errors="replace"),
        )

    def taken(self) -> list[Seat]:
        """Return the seats that have a child."""
        return [seat for seat in map(self.read, range(self.size)) if seat.pid]

    @contextmanager
    def held(self, number: int) -> Iterator[Seat]:
        """Hold a seat against other processes; only the holder may write it, but for its tick.

        Threads of one process are not kept apart: `ChildSeat` has a lock of its own, and in the main
        process one thread does all of this.
        """
        fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, number)
        try:
            yield self.read(number)
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, number)

    def write(self, seat: Seat) -> None:
        """Write a seat that is held."""
        at = seat.number * _PAGE
        self._table[at : at + _SEAT.size] = seat.packed()

    def tick(self, number: int) -> None:
        """Give a sign of life, without the lock: who writes the seat meanwhile may set it back, by one tick."""
        at = number * _PAGE + _TICK_AT
        self._table[at : at + _TICK.size] = _TICK.pack(time.monotonic())

    def strike(self, seat: Seat, number: signal.Signals) -> bool:
        """Signal a seat's child if it executes the run and claim of `seat` at this very moment."""
        with self.held(seat.number) as present:
            wanted = (seat.pid, seat.run_id, seat.claim)
            if not seat.run_id or (present.pid, present.run_id, present.claim) != wanted:
                return False
            self.write(replace(present, is_struck=True, end_at=0.0))
            with suppress(ProcessLookupError):
                os.kill(present.pid, number)
            return True

    def ask_to_end(self, run_id: str, claim: int, *, at: float | None = None) -> bool:
        """Have the child that executes this run and claim end in its grace, or at `at` if that is sooner."""
        for seat in self.taken():
            if (seat.run_id, seat.claim) != (run_id, claim):
                continue
            with self.held(seat.number) as present:
                if (present.run_id, present.claim) != (run_id, claim):
                    return False
                wanted = time.monotonic() + present.grace_s if at is None else at
                if not present.is_struck and (not present.end_at or wanted < present.end_at):
                    self.write(replace(present, end_at=wanted))
                return True
        return False

    def say(self, **word: Any) -> bool:
        """Send a word to whichever child hears it first; False when none listens or too many wait."""
        try:
            self._outgoing.send(json.dumps(word).encode())
        except OSError:
            return False
        return True

    def hear(self) -> dict[str, Any] | None:
        """Wait for a word, in a child; None when there will be no more."""
        try:
            data = self._incoming.recv(_LONGEST_WORD)
        except OSError:
            return None
        return json.loads(data) if data else None

    def keep_incoming(self) -> None:
        """Close the sending end, in a child, so that the end of the main process is heard."""
        self._outgoing.close()


class ChildSeat:
    """A child's own place at the board; thread-safe."""

    def __init__(self, board: Board, executor: str) -> None:
        self._board = board
        # a record lock does not keep the threads of one process apart
        self._lock = threading.Lock()
        self._number = self._sit(executor)

    def begin(self, run_id: str, claim: int, grace_s: float) -> None:
        """Say that the agent is about to be entered."""
        now = time.monotonic()
        self._change(run_id=run_id, claim=claim, grace_s=grace_s, end_at=0.0, tick=now)

    def leave(self) -> bool:
        """Say that the agent was left; True when this process was told to end for it, and has to."""
        return self._change(run_id="", claim=0, end_at=0.0).is_struck

    def end(self, run_id: str, claim: int) -> None:
        """Ask the main process to end this one, unless it has left this run."""
        with self._lock:
            self._board.ask_to_end(run_id, claim, at=time.monotonic())

    def tick(self) -> None:
        """Give a sign of life."""
        self._board.tick(self._number)

    def stand_up(self) -> None:
        """Give the seat up."""
        with self._lock, self._board.held(self._number):
            self._board.write(Seat(number=self._number))

    def _change(self, **values: Any) -> Seat:
        with self._lock, self._board.held(self._number) as present:
            self._board.write(replace(present, **values))
            return present

    def _sit(self, executor: str) -> int:
        for number in range(self._board.size):
            with self._board.held(number) as present:
                if not present.pid:
                    seat = Seat(number=number, pid=os.getpid(), executor=executor, tick=time.monotonic())
                    self._board.write(seat)
                    return number
        raise RuntimeError(f"none of {self._board.size} seats is free")
