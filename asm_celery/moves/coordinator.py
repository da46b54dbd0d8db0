"""The life of an attempt: start, append, finish, give back.

Every write names the claim number, and is refused when the run has moved on: a worker that was taken for
dead can do no harm.  Order of work in each move: SQL, then Redis, then the doorbell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from asm_celery.config import Config
from asm_celery.errors import CoordinationUnavailable
from asm_celery.events.log import EventLog, LogTransaction
from asm_celery.model import Event, Run, Session
from asm_celery.moves import at_once
from asm_celery.moves.ending import write_end
from asm_celery.moves.outcome import Outcome, lost
from asm_celery.moves.promotion import Promoter, entries_of, line_of
from asm_celery.moves.stopping import Stopper
from asm_celery.states import STARTABLE, EventType, RunStatus
from asm_celery.store.faults import CommitUnknown, retried
from asm_celery.store.sessions import AgentTerms

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to execute a run under one number, as committed in SQL; `nonce` is its signature there."""

    run: Run
    session: Session
    number: int
    executor: str
    nonce: str = ""


class _Refused(Exception):
    """Leaves the claiming transaction, so that it is rolled back."""


class _Lacking(Exception):
    def __init__(self, run: Run) -> None:
        self.run = run


class Coordinator:
    """The moves of an attempt."""

    def __init__(self, config: Config, log: EventLog, promoter: Promoter, stopper: Stopper) -> None:
        self._config = config
        self._log = log
        self._promoter = promoter
        self._stopper = stopper

    def start(
        self, run_id: str, claim: int, executor: str, nonce: str, *, knows: Callable[[str], object | None]
    ) -> Claim | None:
        """Answer a doorbell: begin the lease, then claim the run; `run_started` is stored with the claim.

        One script and one transaction; a refused claim costs one read and one script more.

        Args:
            nonce: signs this answer, and no other ever.

        Raises:
            StorageConnectionFailed: it may have been claimed all the same: `recall` says.

        Guarantee: at most one executor gets a claim number, and only when the run may run now.  None: a
        spare doorbell, a refused claim (already given back) or Redis away (rung again later).
        """
        try:
            agent = self._promoter.queue.begin(run_id, claim, executor, nonce)
            if agent is None:
                log.info("doorbell of run=%s claim=%s dropped: no such lease waits", run_id, claim)
                return None
        except CoordinationUnavailable as cause:
            log.warning("doorbell of %s dropped: %s", run_id, cause.message)
            return None
        unknown = None
        try:
            if knows(agent) is not None:
                started = at_once.start(self._log, run_id, claim, executor, nonce, agent=agent)
                if started is not None:
                    run, session = started
                    return Claim(run=run, session=session, number=claim, executor=executor, nonce=nonce)
        except CommitUnknown as cut:
            unknown = cut
        try:
            return self._claim(run_id, claim, executor, nonce, knows)
        except _Lacking as lacking:
            self._give_back_lacking(lacking.run, claim, executor)
        except _Refused:
            if unknown is not None:
                raise unknown from None  # the first try has claimed it, or the server is still about to
            self.give_back(run_id, claim, executor)
        return None

    @retried
    def recall(self, run_id: str, claim: int, executor: str, nonce: str) -> Claim | None:
        """Return the claim that an unanswered `start` has made; None: it never will, and its lease is given back.

        A read of three statements; where there is none, a transaction, a read and a script more.

        Raises:
            StorageConnectionFailed: nobody can say; call again.
        """
        what = run_id, claim, executor, nonce
        made = self._made(*what)
        if made is None:
            with self._log.transaction() as tx:
                # a server may still execute a statement whose connection was cut: it claims no more, or has claimed
                is_used_up = tx.runs.void(run_id, claim)
            made = None if is_used_up else self._made(*what)
        if made is None:
            self.give_back(run_id, claim, executor)
        return made

    def still_holds(self, claim: Claim) -> bool:
        """Renew the lease of a claim; False: it was taken over.  One script, and a read where Redis does not know it.

        Raises:
            CoordinationUnavailable: nobody can say.
            StorageConnectionFailed: Redis does not know it, and SQL cannot say; call again.

        Guarantee: when it is True, its silence counts anew for all who watch it.
        """
        run_id = claim.run.run_id
        word = self._promoter.queue.renew(claim.executor, {run_id: claim.number})[run_id]
        if word != "unknown":
            return word == "held"
        # Redis was emptied, and nobody can take over what is not there; or its taker has ended the run already
        with self._log.store.read() as tx:
            return tx.runs.nonce_of(run_id) == claim.nonce

    @retried
    def append(self, claim: Claim, events: list[Event], position: int) -> int:
        """Store events of the attempt; returns the new position, `position` + how many.

        One transaction of three statements.  Guarantee: exactly once: called again with the same
        position after a lost answer, it finds the events stored and says so.

        Raises:
            LeaseLost: the run has moved on; the attempt must end, nothing it writes is kept.
        """
        run_id, after = claim.run.run_id, position + len(events)
        with suppress(CommitUnknown):
            if at_once.append(self._log, claim.run, claim.number, events, position):
                return after

        def unit(tx: LogTransaction) -> int:
            if tx.runs.advance(run_id, claim.number, position=position, count=len(events)):
                tx.append(claim.run.session_id, events)
                return after
            run = tx.runs.get(run_id)
            now = None if run is None else (run.status, run.claims, run.event_position)
            if now == (RunStatus.RUNNING, claim.number, after):
                return after
            raise lost(claim.run.run_id, claim.number, run)

        return self._log.grouped(unit)

    def finish(self, claim: Claim, outcome: Outcome, events: list[Event], position: int) -> Run:
        """End the attempt: its last events, its terminal event (or requeue) and the status together.

        One transaction, then one script and the doorbells of what it frees.  A failed attempt with
        attempts left waits again at its old position; a run that was asked to stop ends as asked, with
        what it produced as partial output.

        Guarantee: exactly one terminal event per run; called again after a lost answer, it returns what
        was stored.

        Raises:
            LeaseLost: the run has moved on.
        """
        with self._log.bus.held() as told:
            run = self._end(claim, outcome, events, position)
        if run.is_terminal:
            self._promoter.settle(lambda: self._promoter.queue.finish(run.run_id, telling=told))
        else:
            self._log.bus.send(told)
            self.give_back(run.run_id, claim.number, claim.executor)
        return run

    @retried
    def lose(self, run_id: str, claim: int, executor: str, *, message: str) -> Run | None:
        """Write the fate of an attempt whose worker died: requeued while attempts are left, else failed.

        One transaction; the caller then tells Redis.  None: the attempt had ended, moved on, or never
        began; then its number is used up, so that an executor that only slept cannot claim the run when
        its slot is another's.
        """
        error = {"code": "worker_lost", "message": message, "details": {"claim": claim}}
        outcome = Outcome(status=RunStatus.FAILED, error=error)
        with self._log.transaction() as tx:
            run = tx.runs.get(run_id)
            if run is not None and run.status is RunStatus.PENDING:
                tx.runs.void(run_id, claim)
            if run is None or run.status is not RunStatus.RUNNING:
                return None
            if (run.claims, run.executor) != (claim, executor):
                return None
            # the signature goes: should the worker live, it must not take this end for its own
            return write_end(tx, self._config, run, claim, outcome, [], {"claim_nonce": None})

    def give_back(self, run_id: str, claim: int, executor: str, *, verdict: str = "keep") -> str:
        """Return a lease whose run SQL does not let run now, telling Redis what SQL says of the session.

        One read of two or three statements, one script.
        """
        with self._log.store.read() as tx:
            own = tx.runs.open_page(run_ids=[run_id])
            first = tx.runs.first_open(own[0].session_id, own[0].slots) if own else []
        if not own:
            return self._promoter.settle(lambda: self._promoter.queue.finish(run_id))
        entries = entries_of({run.run_id: run for run in [*own, *first]}.values())
        return self._promoter.settle(
            lambda: self._promoter.queue.give_back(
                run_id, claim, executor, line_of(own[0]), entries, verdict=verdict
            )
        )

    @retried
    def _claim(
        self, run_id: str, claim: int, executor: str, nonce: str, knows: Callable[[str], object | None]
    ) -> Claim:
        def unit(tx: LogTransaction) -> Claim:
            run = tx.runs.claim(run_id, claim, executor=executor, nonce=nonce)
            if run is None:
                raise _Refused
            if knows(run.agent) is None:
                raise _Lacking(run)
            started = Event.new(
                EventType.RUN_STARTED,
                run.session_id,
                run_id=run_id,
                data={"attempt": run.attempt, "executor": executor},
                attempt=run.attempt,
                provider=run.agent,
            )
            if tx.append(run.session_id, [started], states=STARTABLE) is None:
                raise _Refused
            session = tx.sessions.get(run.session_id)
            assert session is not None
            return Claim(run=run, session=session, number=claim, executor=executor, nonce=nonce)

        return self._log.grouped(unit)

    def _made(self, run_id: str, claim: int, executor: str, nonce: str) -> Claim | None:
        with self._log.store.read() as tx:
            run = tx.runs.get(run_id)
            if run is None or tx.runs.nonce_of(run_id) != nonce:
                return None
            session = tx.sessions.get(run.session_id)
            assert session is not None
            return Claim(run=run, session=session, number=claim, executor=executor, nonce=nonce)

    def _give_back_lacking(self, run: Run, claim: int, executor: str) -> None:
        with self._log.store.read() as tx:
            terms = tx.agents.get(run.agent)
        if terms is not None and terms.queue != run.queue:
            self._reroute(run, terms)
        word = self.give_back(run.run_id, claim, executor, verdict="lacking")
        patience = run.queue_timeout or self._config.queue_timeout_s
        if terms is None and word.isdigit() and int(word) >= patience * 1000:
            self._stopper.withdraw(
                run.run_id,
                RunStatus.FAILED,
                code="agent_not_found",
                message=f"no worker knew agent {run.agent!r} for {patience:g} s: register it in a worker's module",
                only_if=lambda waiting: waiting.status is RunStatus.PENDING,
            )

    @retried
    def _reroute(self, run: Run, terms: AgentTerms) -> None:
        with self._log.transaction() as tx:
            tx.runs.reroute(run.run_id, terms.queue)

    @retried
    def _end(self, claim: Claim, outcome: Outcome, events: list[Event], position: int) -> Run:
        with suppress(CommitUnknown):
            end = at_once.finish(self._log, self._config, claim.run, claim.number, outcome, events, position)
            if end is not None:
                return end

        def unit(tx: LogTransaction) -> Run:
            place = {"position": position, "count": len(events)}
            ended = write_end(tx, self._config, claim.run, claim.number, outcome, events, place)
            if ended is not None:
                return ended
            run = tx.runs.get(claim.run.run_id)
            is_ours = run is not None and tx.runs.nonce_of(run.run_id) == claim.nonce
            if run is not None and is_ours and run.status is not RunStatus.RUNNING:
                return run  # the answer to an earlier COMMIT was lost
            raise lost(claim.run.run_id, claim.number, run)

        return self._log.grouped(unit)
