"""Make Redis say what SQL says, as a whole and behind a closed gate.

After a restart, a flush or a failover Redis records but promotes nothing, so no limit can be exceeded,
until one worker has written everything that is open, limits and hold first, and opens the gate.
Single differences are `comparison`'s.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from itertools import groupby

from asm_celery.config import Config
from asm_celery.errors import CoordinationDamaged
from asm_celery.events.log import EventLog, LogTransaction
from asm_celery.model import new_id
from asm_celery.moves.holding import Holding
from asm_celery.moves.promotion import Promoter, entries_of, line_of
from asm_celery.states import RunStatus
from asm_celery.store.run_queries import OpenRun

log = logging.getLogger(__name__)

RUN_LIMIT = "max_parallel_runs"
SESSION_LIMIT = "max_parallel_sessions"
NO_LIMIT = "none"
# there since the first gate was opened from this database
_HAS_GRANTED = "has_granted"
_PAGE = 500
# The restorer's right ends by itself, so that another can follow one that died half-way, and is renewed with
# each page.  Nothing is promoted until then, and service is to be back within 10 s.
_RIGHT_S = 4.0


class Restore:
    """Writes SQL's truth into Redis."""

    def __init__(self, config: Config, log: EventLog, promoter: Promoter) -> None:
        self._config = config
        self._log = log
        self._promoter = promoter
        self._holding = Holding(log, promoter)
        self._restorer = new_id("res")
        # the right to restore belongs to this object, and two threads of a worker share it
        self._one_at_a_time = threading.Lock()

    def run_if_cold(self) -> bool:
        """Restore everything if Redis is cold; True if it was, and this call saw the gate open again.

        Guarantee: idempotent at every step; a death half-way leaves the gate closed, and the next caller
        begins again.  One script when Redis is warm.
        """
        with self._one_at_a_time:
            return self._run_if_cold()

    def _run_if_cold(self) -> bool:
        queue = self._promoter.queue
        if self._ask() != "mine":
            return False
        queue.check_server()
        self.write_limits()
        self._holding.tell()
        self._void()
        known = queue.known()
        open_ids: set[str] = set()
        for page, wanted in self._passes():
            word = self._ask()
            if word != "mine":
                # so slow that another has begun, or even ended
                return word == "open"
            self.write([run for run in page if run.status is wanted])
            # all of it: a run that another restorer's open gate lets start between the two passes is
            # waiting in the first and running in the second, and must not be taken for one that is over
            open_ids |= {run.run_id for run in page}
        for run_id in known - open_ids:
            queue.finish(run_id)
        word = self._promoter.settle(lambda: queue.open_gate(self._restorer))
        log.info("Redis was cold: %d open runs restored from SQL, gate %s", len(open_ids), word)
        return word == "open"

    def rebuild(self, cause: CoordinationDamaged) -> bool:
        """Throw away all that Redis holds of this namespace and restore it; True if this call did.

        For what stumbles over something that is not ours: of a cache nothing is worth to be mended by hand.
        Running runs go on as after a flush, and slots that callers acquired have ended.
        """
        if not self._promoter.queue.clear():
            return False
        log.error("%s", cause.message)
        return self.run_if_cold()

    def seed_limits(self, tx: LogTransaction) -> None:
        """Write the configured limits into the settings unless an operator's are there."""
        tx.settings.seed(RUN_LIMIT, str(self._config.max_parallel_runs))
        tx.settings.seed(SESSION_LIMIT, str(self._config.max_parallel_sessions))

    def limits(self) -> tuple[int | None, int | None]:
        """Return the limits of runs and sessions as SQL has them; None: no limit."""
        with self._log.store.read() as tx:
            stored = tx.settings.all()
        return (
            _limit(stored.get(RUN_LIMIT), self._config.max_parallel_runs),
            _limit(stored.get(SESSION_LIMIT), self._config.max_parallel_sessions),
        )

    def write_limits(self) -> None:
        """Tell Redis the limits that SQL has; logs where this process was configured otherwise."""
        runs, sessions = self.limits()
        for name, stored in ((RUN_LIMIT, runs), (SESSION_LIMIT, sessions)):
            configured = getattr(self._config, name)
            if stored != configured:
                log.warning(
                    "%s is %s here and %s in the settings table: the table holds, change it with set_limits",
                    name,
                    configured,
                    stored or "unlimited",
                )
        self._promoter.settle(lambda: self._promoter.queue.limiter_set(runs, sessions))

    def pages(self) -> Iterator[list[OpenRun]]:
        """Return all open runs as SQL has them, by id."""
        after = ""
        while True:
            with self._log.store.read() as tx:
                page = tx.runs.open_page(after=after, limit=_PAGE)
            if page:
                yield page
            if len(page) < _PAGE:
                return
            after = page[-1].run_id

    def _void(self) -> None:
        """Use up the claim numbers that were granted before.

        Redis forgot who had begun which lease.  Such a run is waiting in SQL, so its slot goes to another
        when the gate opens; its executor, late by a moment, must not claim it then.  Before the first gate
        of all was opened, nothing was ever granted.
        """
        with self._log.transaction() as tx:
            if tx.settings.seed(_HAS_GRANTED, "yes"):
                return
        after: str | None = ""
        while after is not None and self._ask() == "mine":
            with self._log.transaction() as tx:
                after = tx.runs.void_page(after=after, limit=_PAGE)

    def _ask(self) -> str:
        """Ask for the right to restore, or for more time: ``mine``, ``busy`` or ``open``."""
        return self._promoter.queue.begin_restore(self._restorer, hold_s=_RIGHT_S)

    def _passes(self) -> Iterator[tuple[list[OpenRun], RunStatus]]:
        # running runs first: their leases take limiter slots before anything could be promoted
        for wanted in (RunStatus.RUNNING, RunStatus.PENDING):
            for page in self.pages():
                yield page, wanted

    def write(self, runs: list[OpenRun]) -> None:
        """Record these open runs in Redis."""
        by_session = sorted(runs, key=lambda run: (run.session_id, run.position))
        for _, group in groupby(by_session, key=lambda run: run.session_id):
            self._write_session(list(group))

    def _write_session(self, runs: list[OpenRun]) -> None:
        self._promoter.settle(lambda: self._promoter.queue.enqueue(line_of(runs[0]), entries_of(runs)))


def _limit(stored: str | None, configured: int) -> int | None:
    if stored is None:
        return configured
    return None if stored == NO_LIMIT else int(stored)
