"""`Grouping`: what threads ask of the database at the same moment shares one transaction and its COMMIT.

Nobody waits for companions: while one thread writes, the others' units gather, and it takes them along.
Pure but for the locks: what a transaction is, its opener knows.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any, Final, Generic, Protocol, TypeVar

from asm_celery.errors import StorageError
from asm_celery.store.faults import CommitUnknown, Conflict, Spoiled

# A larger group saves little more, and the first in it would wait for the last.
_LARGEST: Final = 32
# Who was not taken along for so long goes alone: the store says what is wrong, and how long it waits.
_PATIENCE_S: Final = 1.0


class Parted(Protocol):
    """A transaction whose parts can be taken back alone."""

    def part(self) -> AbstractContextManager[None]:
        """Do something that an exception undoes, and nothing else with it."""


Tx = TypeVar("Tx", bound=Parted)
T = TypeVar("T")


class Ticket(Generic[Tx]):
    """A unit that waits for a transaction, and then its answer."""

    __slots__ = ("act", "answer", "failure", "gate", "is_answered")

    def __init__(self, act: Callable[[Tx], Any]) -> None:
        self.act = act
        self.answer: Any = None
        self.failure: BaseException | None = None
        self.is_answered = False
        self.gate = threading.Lock()
        self.gate.acquire()

    def wake(self) -> None:
        """Have the owner look: it is answered, or may lead."""
        # the one that was rung before has not been heard yet
        with suppress(RuntimeError):
            self.gate.release()


class Grouping(Generic[Tx]):
    """The units of all threads of this process, and who writes them.

    Args:
        begin: opens a transaction; commits at a clean end, rolls back at an exception.
        window_s: how long a transaction takes companions.
    """

    def __init__(self, begin: Callable[[], AbstractContextManager[Tx]], *, window_s: float) -> None:
        self._begin = begin
        self._window_s = window_s
        self._lead = threading.Lock()
        self._waiting: deque[Ticket[Tx]] = deque()

    def enter(self, act: Callable[[Tx], Any]) -> Ticket[Tx]:
        """Ask for a unit to be written; `settle` must follow, in this thread.

        Args:
            act: may be called again from the beginning, by any thread: all it does is in the transaction.
        """
        ticket = Ticket(act)
        self._waiting.append(ticket)
        return ticket

    def settle(self, ticket: Ticket[Tx]) -> Any:
        """Return what the unit returned, once it is committed, or raise what it raised.

        Guarantee: a unit that raises spoils only itself.

        Raises:
            Conflict: rolled back for another's sake.
            CommitUnknown: the answer to COMMIT was lost, or who wrote it was cut short.
        """
        try:
            while not ticket.is_answered:
                # Order matters: the unit waits already, and a leader steps down before it looks who does.
                if self._lead.acquire(blocking=False):
                    try:
                        if self._took(ticket):
                            return self._serve(ticket)
                        if not ticket.is_answered:
                            raise CommitUnknown("who wrote this was cut short: look before you ask again")
                    finally:
                        self._lead.release()
                        self._call()
                elif not ticket.gate.acquire(timeout=_PATIENCE_S) and self._took(ticket):
                    with self._begin() as tx:
                        return ticket.act(tx)
        except BaseException:
            # raised from outside while it waited: nobody may be called who is not there
            self._took(ticket)
            self._call()
            raise
        if ticket.failure is not None:
            raise ticket.failure
        return ticket.answer

    def _took(self, ticket: Ticket[Tx]) -> bool:
        try:
            self._waiting.remove(ticket)
        except ValueError:
            return False
        return True

    def _call(self) -> None:
        """Have the one that waits longest lead."""
        with suppress(IndexError):
            self._waiting[0].wake()

    def _serve(self, own: Ticket[Tx]) -> Any:
        taken: list[Ticket[Tx]] = []
        is_whole = False
        try:
            with self._begin() as tx:
                answer = own.act(tx)
                for ticket in self._companions():
                    taken.append(ticket)
                    try:
                        with tx.part():
                            ticket.answer = ticket.act(tx)
                    except Spoiled:
                        raise
                    except Exception as cause:  # noqa: BLE001 - it is its owner's
                        ticket.failure = cause
                is_whole = True
        except BaseException as cause:
            for ticket in taken:
                ticket.failure = _shared(cause, is_whole)
            raise
        finally:
            for ticket in taken:
                ticket.is_answered = True
                ticket.wake()
        return answer

    def _companions(self) -> Iterator[Ticket[Tx]]:
        until = time.monotonic() + self._window_s
        for _ in range(1, _LARGEST):
            if not self._waiting or time.monotonic() > until:
                return
            try:
                yield self._waiting.popleft()
            except IndexError:
                return


def _shared(cause: BaseException, is_whole: bool) -> StorageError:
    """Return what a companion is told when the group failed by `cause`."""
    if isinstance(cause, CommitUnknown) or (is_whole and not isinstance(cause, StorageError)):
        return CommitUnknown("the answer to COMMIT was lost: look before you ask again")
    return Conflict(
        "the transaction was rolled back for another's sake: try again", details={"reason": "shared"}
    )
