"""`Executor`: from a doorbell to the stored end of an attempt.

One an executing process; every thread of its pool calls `execute`.  Nothing here renews a lease
(`heartbeat`) or knows Celery's messages (`app`).
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from asm_celery.agent import AgentRegistry, AgentSpec
from asm_celery.config import Config
from asm_celery.errors import (
    AgentNotFound,
    AsmError,
    CoordinationUnavailable,
    LeaseLost,
    StopRun,
    StorageConnectionFailed,
)
from asm_celery.model import new_id
from asm_celery.moves.coordinator import Claim, Coordinator
from asm_celery.moves.outcome import Outcome
from asm_celery.worker.attempt import SHUTDOWN, Attempt, Attempts
from asm_celery.worker.backoff import patiently
from asm_celery.worker.body import run_body
from asm_celery.worker.context import History, RunContext
from asm_celery.worker.emitter import Emitter
from asm_celery.worker.ladder import Place
from asm_celery.worker.outbox import Leftover, Outbox
from asm_celery.worker.outcome import Ending, judge, unstorable
from asm_celery.worker.pool import ProcessEnd, ends_process
from asm_celery.worker.tally import Tally
from asm_celery.worker.writer import EventWriter

log = logging.getLogger("asm_celery.worker")
T = TypeVar("T")

# How long the end of a run may wait for its database; the beat holds the lease meanwhile.
STORE_PATIENCE_S: Final = 300.0
# A process that is told to end gets one honest try; then recovery finds the run.
LAST_PATIENCE_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Here:
    """One attempt while it executes."""

    attempt: Attempt
    claim: Claim
    spec: AgentSpec | None
    tally: Tally
    box: Outbox


class Executor:
    """Executes attempts in the calling thread.

    Args:
        name: this executor's id, the holder of its claims.
        history: ``(run, limit)`` -> the session's last ended runs before it, oldest first.
        place: where the attempts execute, as what can be ended.
    """

    def __init__(
        self,
        name: str,
        *,
        config: Config,
        registry: AgentRegistry,
        coordinator: Coordinator,
        attempts: Attempts,
        writer: EventWriter,
        history: History,
        place: Place,
    ) -> None:
        self.name = name
        self._config = config
        self._registry = registry
        self._coordinator = coordinator
        self._attempts = attempts
        self._writer = writer
        self._history = history
        self._place = place
        self._here: dict[Attempt, _Here] = {}

    def execute(self, run_id: str, number: int) -> str | None:
        """Answer one doorbell: claim the run, call its agent, store its end.

        Nothing happens when the doorbell is spare: the run is here already, was taken back, waits its
        turn, or its agent is not known here (then it was given back).

        Returns:
            The run's status as this attempt left it; None when nothing was executed, or somebody else
            decided.

        Raises:
            SystemExit: the process was told to end while the agent ran; the attempt's end is stored.

        Guarantee: no exception of an agent leaves this method.  If the process dies in here, the lease
        runs out and recovery decides; a run whose agent was entered is never entered again under the
        same claim, nor at all when Redis says that its lease was taken over before the claim was answered.
        """
        while True:
            attempt = self._attempts.enter(run_id, number)
            if attempt is None:
                log.debug("spare doorbell for run=%s claim=%s: it is here", run_id, number)
                return None
            claim = None
            try:
                claim = self._claim(attempt)
                if claim is not None:
                    return self._execute(attempt, claim)
            finally:
                attempt.end()
                is_rung_again = self._attempts.leave(attempt)
            if not is_rung_again:
                return None
            # a refused claim is given back before it is left here, so its next doorbell may have come too
            # early and been turned away: it is answered now, not when it is rung again
            log.debug("run=%s claim=%s was refused and rung for again", run_id, number)

    def abandon(self, attempt: Attempt) -> bool:
        """Store the end of an attempt whose thread cannot be made to leave, from another thread.

        The run ends as was asked, its claim is stale from then on, and what its body does later is
        dropped.  False, and nothing is done, when the body has left after all.
        """
        here = self._here.get(attempt)
        if here is None or not attempt.settle():
            return False
        try:
            self._settle(here, Ending(error=StopRun(attempt.stop_kind or "")))
        finally:
            attempt.end()
            self._attempts.leave(attempt)
        return True

    def _claim(self, attempt: Attempt) -> Claim | None:
        moves, nonce = self._coordinator, new_id("clm")
        what = attempt.run_id, attempt.number, self.name, nonce
        try:
            try:
                claim = moves.start(*what, knows=self._registry.get)
            except StorageConnectionFailed:
                # left now, a run that is ours after all would end as lost, and its agent was never entered
                claim = _claiming(attempt, lambda: moves.recall(*what))
            return claim if claim is not None and self._still_holds(attempt, claim) else None
        except AsmError as cause:
            # whatever was half done is known to Redis or SQL: the bell is rung again
            log.warning("run=%s claim=%s was not started: %s", attempt.run_id, attempt.number, cause)
            return None

    def _still_holds(self, attempt: Attempt, claim: Claim) -> bool:
        """Renew the lease of a claim that came late; False: it was taken over, and must not be entered.

        A quick claim asks nobody.
        """
        # Nobody renews a lease whose claim hangs in SQL.  Half a beat and the one until its first renewal are less
        # than the fence allows with the shortest lease, of three beats; after more than that it might end this
        # process for a silence that the next beat ends, and another may be taking the run over.
        if time.monotonic() - attempt.vouched_at <= self._config.beat_s / 2:
            return True

        def renew() -> bool:
            # before it is asked: the answer may be late too, and others count from what they saw
            asked_at = time.monotonic()
            if not self._coordinator.still_holds(claim):
                log.info("run=%s claim=%s came late and was taken over", attempt.run_id, attempt.number)
                return False
            attempt.vouched_at = asked_at
            return True

        try:
            return _claiming(attempt, renew)
        except CoordinationUnavailable:
            # Redis cannot vouch: the fence judges
            return True

    def _execute(self, attempt: Attempt, claim: Claim) -> str | None:
        spec = self._registry.get(claim.run.agent)
        grace_s = self._config.stop_grace_s
        if spec is not None and spec.stop_grace_s is not None:
            grace_s = spec.stop_grace_s
        self._attempts.begin(attempt, claim, grace_s)
        tally = Tally(self._config.max_output_bytes)
        box = self._writer.open(attempt, claim)
        here = self._here[attempt] = _Here(attempt=attempt, claim=claim, spec=spec, tally=tally, box=box)
        emitter = Emitter(claim, box, tally, self._config)
        try:
            ending = self._enter(here, RunContext(claim, attempt, emitter, self._history), emitter)
            is_last = ends_process(ending.error)
            if is_last:
                attempt.stop(SHUTDOWN)
            attempt.end()
            ended = self._settle(here, ending, is_last=is_last) if attempt.settle() else None
        finally:
            del self._here[attempt]
        if is_last:
            raise ending.error if isinstance(ending.error, SystemExit) else SystemExit(1)
        return ended

    def _enter(self, here: _Here, context: RunContext, emitter: Emitter) -> Ending:
        """Call the agent; its every end is an Ending, also one that comes from outside."""
        attempt = here.attempt
        # StopRun is raised twice at most, and SIGTERM is sent once: each may come while an earlier one, or the
        # agent, is being left, so there is a try for each
        try:
            try:
                try:
                    if here.spec is None:
                        raise AgentNotFound(f"no agent {context.run.agent!r} is registered here")
                    self._place.begin(attempt.run_id, attempt.number, attempt.grace_s)
                    attempt.reach.enter()
                    attempt.check()
                    ending = Ending(value=run_body(here.spec.call, context, attempt, emitter))
                except BaseException as cause:  # noqa: BLE001 - the worker lives on, whatever an agent raises
                    ending = Ending(error=cause)
                is_struck = self._leave(attempt)
            except BaseException as late:  # noqa: BLE001 - raised from outside
                ending, is_struck = Ending(error=late), self._leave(attempt)
        except BaseException as last:  # noqa: BLE001 - raised from outside
            ending, is_struck = Ending(error=last), self._leave(attempt)
        return Ending(error=ProcessEnd(1)) if is_struck else ending

    def _leave(self, attempt: Attempt) -> bool:
        """Leave the agent for good; True when this process was told to end for this attempt."""
        try:
            attempt.reach.leave()
            if self._place.leave():
                # SIGTERM was sent, and may not have arrived yet: nothing that follows must be cut short by it
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                return True
            return False
        except SystemExit:
            attempt.reach.leave()
            self._place.leave()
            return True

    def _settle(self, here: _Here, ending: Ending, *, is_last: bool = False) -> str | None:
        claim, spec = here.claim, here.spec
        left = self._writer.close(here.box)
        if left.failure is not None and ending.error is None:
            ending = Ending(error=left.failure)
        if here.attempt.is_lost:
            _dropped(claim)
            return None
        # user code of a run with one attempt is entered once, unless its agent says it may be again
        may_return = claim.run.max_attempts > 1 or (spec is not None and spec.resumable)
        outcome = judge(ending, here.attempt, here.tally, self._config, may_return=may_return)
        return self._finish(claim, outcome, left, LAST_PATIENCE_S if is_last else STORE_PATIENCE_S)

    def _finish(self, claim: Claim, outcome: Outcome, left: Leftover, patience_s: float) -> str | None:
        moves, position = self._coordinator, left.position
        try:
            if left.unsettled:
                position = patiently(lambda: moves.append(claim, left.unsettled, left.position), patience_s)
            try:
                ended = patiently(lambda: moves.finish(claim, outcome, left.events, position), patience_s)
            except (LeaseLost, StorageConnectionFailed):
                raise
            except AsmError as cause:
                log.warning("run=%s ends without its output, which was refused: %s", claim.run.run_id, cause)
                ended = moves.finish(claim, unstorable(outcome, cause), [], position)
        except LeaseLost:
            _dropped(claim)
        except Exception:
            # it is running under this executor's name and not here any more: recovery takes it over
            log.exception("the end of run=%s attempt=%s was not stored", claim.run.run_id, claim.run.attempt)
        else:
            return ended.status.value
        return None


def _claiming(attempt: Attempt, ask: Callable[[], T]) -> T:
    """Ask SQL about a claim until it answers, or the attempt is to stop."""
    return patiently(ask, STORE_PATIENCE_S, what="a claim", leaves=lambda: attempt.stop_kind)


def _dropped(claim: Claim) -> None:
    log.info("run=%s attempt=%s was taken over, its end is dropped", claim.run.run_id, claim.run.attempt)
