"""The hold of the whole installation: while it is held nothing starts in any session, and what runs goes on.

The truth is one setting in SQL with a version; Redis is told, and told again by each restore and comparison,
so the hold survives the loss of Redis and of every process.
"""

from __future__ import annotations

import json
from typing import Any, Final

from asm_celery.errors import InternalError
from asm_celery.events.log import EventLog
from asm_celery.model import Hold
from asm_celery.moves.promotion import Promoter
from asm_celery.store.database import Store
from asm_celery.store.faults import retried

_SETTING: Final = "hold"
_TRIES: Final = 20


class Holding:
    """The moves of the hold."""

    def __init__(self, log: EventLog, promoter: Promoter) -> None:
        self._log = log
        self._promoter = promoter

    def read(self) -> Hold:
        """Return the hold as SQL has it; one statement."""
        return hold_in(self._log.store)

    @retried
    def move(self, is_held: bool, *, by: str) -> Hold:
        """Hold or release, and tell Redis; held or released already, it is left as it is and told again.

        One compare-and-set of the setting, then a script.  With Redis away it holds from the next
        comparison on (`ring_s`).  A run whose lease was begun a moment before may still start.

        Raises:
            StorageError: the database refused or cannot be reached; nothing has changed.
        """
        for _ in range(_TRIES):
            stored, hold = _stored(self._log.store)
            if hold.is_held == is_held:
                break
            value = json.dumps({"is_held": is_held, "version": hold.version + 1, "by": by})
            with self._log.transaction() as tx:
                has_moved = tx.settings.swap(_SETTING, stored, value)
            if has_moved:
                break
        else:
            raise InternalError(f"the hold changed at each of {_TRIES} looks: try again")
        return self.tell()

    def tell(self) -> Hold:
        """Tell Redis what SQL says; returns that."""
        hold = self.read()
        word = "more"
        while word == "more":
            word = self._promoter.settle(lambda: self._promoter.queue.hold(hold.is_held, hold.version))
        return hold


def hold_in(store: Store) -> Hold:
    """Return the hold as a database has it; one statement."""
    return _stored(store)[1]


def _stored(store: Store) -> tuple[str | None, Hold]:
    with store.read() as tx:
        stored = tx.settings.get(_SETTING)
    if stored is None:
        return None, Hold(is_held=False)
    value, at = stored
    told: dict[str, Any] = json.loads(value)
    return value, Hold(is_held=told["is_held"], version=told["version"], by=told["by"], since=at)
