"""Find each difference between SQL and Redis, and mend it: the repair loop a little at a time, the doctor all.

Both stores move while they are compared.  What SQL holds open and Redis tells otherwise counts only if two
looks saw it alike, and is mended by a compare-and-set on what was seen.  What Redis holds and SQL does not
needs one look: Redis is read first, and SQL is written first, so it is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from asm_celery.errors import CoordinationDamaged
from asm_celery.events.log import EventLog
from asm_celery.moves.holding import Holding
from asm_celery.moves.promotion import Promoter, entries_of, line_of
from asm_celery.moves.restore import Restore
from asm_celery.queue.connection import damaged
from asm_celery.queue.run_queue import Granted
from asm_celery.queue.upkeep import Odd, type_of
from asm_celery.states import RunStatus
from asm_celery.store.run_queries import OpenRun

# What is said of a session, and not of the run that was looked at.
_OF_SESSION: Final = frozenset({"session_differs", "active_by_nothing", "unplaced"})
# What recording the run again heals; a lease that is well but for its sets stays.
_GENTLY: Final = frozenset({"unknown", "unlisted", "lease_unlisted"})
_RUN_SETS: Final = ("known", "leases", "dispatched")
_SESSION_SETS: Final = ("active", "delayed")
_PAGE: Final = 500
_PAUSE_S: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where Redis says another thing than SQL.

    Attributes:
        kind: a word for it.
        subject: the run, session, executor or key.
        where: the key below the root that holds it, where that matters.
        odd: what Redis says of an open run or its session.
        waits: SQL says that the run waits.
    """

    kind: str
    subject: str
    where: str = ""
    odd: Odd | None = None
    waits: bool = False


class Comparison:
    """Looks for differences, and mends them."""

    def __init__(self, log: EventLog, promoter: Promoter, restore: Restore) -> None:
        self._log = log
        self._promoter = promoter
        self._queue = promoter.queue
        self._restore = restore
        self._holding = Holding(log, promoter)

    def compare(self) -> int:
        """Look once, and again at what may have been a move on its way; mend, and return how many."""
        sure, doubted = [], {}
        for one in self._look():
            if one.odd is None or (one.kind == "unknown" and one.waits):
                sure.append(one)
            else:
                doubted[one.subject] = one
        if doubted:
            self._pause()
            sure += [one for one in self._audit(doubted) if one == doubted.get(one.subject)]
        for one in sure:
            self.mend(one)
        return len(sure)

    def confirmed(self) -> list[Difference]:
        """Return what two looks at everything saw alike; for the doctor. Reads only."""
        first = self.look()
        if not first:
            return []
        self._pause()
        second = set(self.look())
        return [one for one in first if one in second]

    def look(self) -> list[Difference]:
        """Look at everything once, keys and workers too; for the doctor. Reads only."""
        names = self._queue.names()
        strange = [name for name, kind in names.items() if type_of(name) != kind]
        if strange:
            # the scripts that read one of these cannot run
            return [Difference(kind="not_ours", subject=name) for name in sorted(strange)]
        try:
            return [*self._look(names), *self._dead_capacity(names)]
        except CoordinationDamaged as cause:
            return [Difference(kind="damaged", subject=cause.message)]

    def mend(self, found: Difference) -> str:
        """Make Redis say what SQL says about this one; returns a word for what was done."""
        try:
            return self._mend(found)
        except CoordinationDamaged as cause:
            # a script that writes reads more than any look, and whatever it stumbles over stays where it is
            self._restore.rebuild(cause)
            return "cleared and restored"

    def _mend(self, found: Difference) -> str:
        match found.kind:
            case "not_ours" if type_of(found.subject) is None or found.subject.startswith("subscribers:"):
                self._queue.remove(found.subject)
                return "removed"
            case "not_ours" | "damaged":
                if found.kind == "not_ours":
                    # also when another has just cleared all, and before this came
                    self._queue.remove(found.subject)
                self._restore.rebuild(damaged(found.subject))
                return "cleared and restored"
            case "limits_differ":
                self._restore.write_limits()
                return "told"
            case "hold_differs":
                self._settle(lambda: self._queue.sweep("settings", "hold_version"))
                self._holding.tell()
                return "told"
            case "over":
                return self._settle(lambda: self._queue.finish(found.subject))
            case _ if found.odd is None:
                return self._sweep(found)
        return self._rewrite(found, found.odd)

    def _look(self, names: Iterable[str] = ()) -> Iterator[Difference]:
        """Yield what differs: Redis is read first, so what it knows and SQL does not hold open is over.

        Without names the sets of each session are not read: only what keeps a slot of an open one is found.
        """
        members = self._members(names)
        yield from self._settings()
        runs: set[str] = set()
        sessions: set[str] = set()
        strays: list[Difference] = []
        for page in self._restore.pages():
            runs |= {run.run_id for run in page}
            sessions |= {run.session_id for run in page}
            for one in self._odd(page):
                if one.odd is None:
                    strays.append(one)
                else:
                    yield one
        if not names:
            yield from (stray for stray in strays if stray.subject not in runs)
        for name, found in members.items():
            first = name.partition(":")[0]
            of_runs = name in _RUN_SETS or first in ("run", "load", "open", "held")
            for member in found - (runs if of_runs else sessions):
                kind = "over" if name == "known" or first == "run" else "held_by_nothing"
                yield Difference(kind=kind, subject=member, where=name)

    def _audit(self, run_ids: Iterable[str]) -> Iterator[Difference]:
        ids = list(run_ids)
        for first in range(0, len(ids), _PAGE):
            with self._log.store.read() as tx:
                page = tx.runs.open_page(run_ids=ids[first : first + _PAGE])
            yield from self._odd(page)

    def _odd(self, page: list[OpenRun]) -> Iterator[Difference]:
        waiting = {run.run_id for run in page if run.status is RunStatus.PENDING}
        for odd in self._queue.audit((line_of(run), entries_of([run])[0]) for run in page):
            if odd.word == "stray":
                yield Difference(kind="held_by_nothing", subject=odd.run_id, where=f"held:{odd.seen}")
            else:
                yield Difference(kind=odd.word, subject=odd.run_id, odd=odd, waits=odd.run_id in waiting)

    def _members(self, names: Iterable[str]) -> dict[str, set[str]]:
        """Read who stands where: what every script walks, and of the keys named, those of runs and sessions."""
        queues = set().union(*self._queue.members("queues", "capacity").values())
        wanted = {f"line:{queue}:{kind}" for queue in queues for kind in ("busy", "new")}
        wanted |= {f"load:{queue}" for queue in queues} | {*_RUN_SETS, *_SESSION_SETS}
        wanted |= {name for name in names if name.startswith(("line:", "load:", "open:", "held:"))}
        found = self._queue.members(*sorted(wanted))
        for name in names:
            first, _, subject = name.partition(":")
            if first in ("run", "session"):
                found.setdefault(f"{first}:", set()).add(subject)
        return found

    def _settings(self) -> Iterator[Difference]:
        told, hold = self._queue.fields("settings"), self._holding.read()
        limits = tuple("" if limit is None else str(limit) for limit in self._restore.limits())
        if limits != (told.get("runs", ""), told.get("sessions", "")):
            yield Difference(kind="limits_differ", subject="settings")
        if (told.get("hold", "open"), told.get("hold_version", "0")) != (
            "held" if hold.is_held else "open",
            str(hold.version),
        ):
            yield Difference(kind="hold_differs", subject="settings")

    def _dead_capacity(self, names: Iterable[str]) -> Iterator[Difference]:
        places = [name for name in names if name.startswith("workers:")]
        announced = self._queue.members(*places, "executors")
        with self._log.store.read() as tx:
            living = set(tx.executors.all())
        for name, executors in announced.items():
            for executor in executors - living:
                yield Difference(kind="capacity_of_nobody", subject=executor, where=name)

    def _sweep(self, found: Difference) -> str:
        if found.where.startswith("workers:"):
            self._settle(lambda: self._queue.sweep("capacity", found.where.partition(":")[2]))
        where = "" if found.where in ("run:", "session:") else found.where
        return self._settle(lambda: self._queue.sweep(where, found.subject))

    def _rewrite(self, found: Difference, odd: Odd) -> str:
        with self._log.store.read() as tx:
            now_open: list[OpenRun] = tx.runs.open_page(run_ids=[odd.run_id])
        if not now_open:
            return "over"
        line, entries = line_of(now_open[0]), entries_of(now_open)
        if found.kind in _GENTLY:
            return self._settle(lambda: self._queue.enqueue(line, entries))
        of_run = found.kind not in _OF_SESSION
        return self._settle(lambda: self._queue.rewrite(odd, line, entries, whole_run=of_run))

    def _pause(self) -> None:
        # longer than a move takes from SQL to Redis
        threading.Event().wait(_PAUSE_S)

    def _settle(self, arbitrate: Callable[[], Granted]) -> str:
        return self._promoter.settle(arbitrate, is_repair=True)
