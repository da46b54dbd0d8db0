"""The hot moves in one statement each, where the database can: None says that the long way must be gone.

What asks for more than its place, its claim, its events or its end (a key that may be known, a stop, a retry)
goes the long way from the beginning.

When the connection is cut before the answer, CommitUnknown is raised, and the server may execute the statement
even later.  The long way then decides: it writes the same row, so that one of both finds its guard failing.
"""

from __future__ import annotations

from dataclasses import replace

from asm_celery.agent import AgentRegistry
from asm_celery.codec import digest
from asm_celery.config import Config
from asm_celery.events.log import EventLog
from asm_celery.model import Event, Run, Session
from asm_celery.moves.admission import SubmitOptions, capacity
from asm_celery.moves.outcome import Outcome, columns_of, told_of
from asm_celery.moves.stopping import terminal_event
from asm_celery.states import EventType, RunStatus
from asm_celery.store.sessions import AgentTerms, Counter
from asm_celery.store.strokes import Strokes
from asm_celery.store.tables import microseconds


def accept(
    log: EventLog,
    config: Config,
    registry: AgentRegistry,
    session: Session,
    run: Run,
    options: SubmitOptions,
    *,
    text: str,
    metadata: str,
) -> tuple[Run, Counter, int] | None:
    """Return the run with its place, the counter, and how many runs were open before it."""
    if not log.has_strokes or options.idempotency_key is not None or options.on_busy == "interrupt":
        return None
    spec = registry.get(run.agent)
    said = spec or AgentTerms(queue=config.default_queue)
    waits = options.queue_timeout
    # the position in its data is written by the statement, which draws it
    queued = Event.new(EventType.RUN_QUEUED, session.session_id, run_id=run.run_id, provider=run.agent)

    def stroke(strokes: Strokes) -> tuple[tuple[Run, Counter, int], list[Event]] | None:
        found = strokes.accept(
            queued,
            p_room=1 if options.on_busy == "reject" else capacity(session),
            p_agent=run.agent,
            p_terms_of=None if spec is not None else run.agent,
            p_queue=said.queue or config.default_queue,
            p_input=text,
            p_input_digest=digest(text),
            p_metadata=metadata,
            p_run_timeout=options.run_timeout if options.run_timeout is not None else said.run_timeout,
            p_queue_timeout=waits,
            p_shift=None if waits is None else microseconds(waits),
            p_max_attempts=options.max_attempts or said.max_attempts,
            p_default_attempts=config.max_attempts,
        )
        if found is None:
            return None
        counter, queue, depth = found
        placed = replace(run, position=counter.last_position, queue=queue)
        told = replace(queued, sequence=counter.last_sequence, data={"position": placed.position})
        return (placed, counter, depth), [told]

    return log.at_once(stroke)


def start(
    log: EventLog, run_id: str, claim: int, executor: str, nonce: str, *, agent: str
) -> tuple[Run, Session] | None:
    """Claim a run of this agent for an executor."""
    if not log.has_strokes:
        return None
    # whose run it is, and which attempt, the statement knows
    started = Event.new(EventType.RUN_STARTED, "its own", run_id=run_id, provider=agent)

    def stroke(strokes: Strokes) -> tuple[tuple[Run, Session], list[Event]] | None:
        found = strokes.start(claim, executor, nonce, started)
        if found is None:
            return None
        run, session, sequence = found
        told = replace(
            started,
            session_id=run.session_id,
            sequence=sequence,
            attempt=run.attempt,
            data={"attempt": run.attempt, "executor": executor},
        )
        return (run, session), [told]

    return log.at_once(stroke)


def append(log: EventLog, run: Run, claim: int, events: list[Event], position: int) -> bool:
    """Store events of an attempt that stands at this position; False: go the long way."""

    def stroke(strokes: Strokes) -> tuple[bool, list[Event]] | None:
        stored = strokes.append(run.run_id, run.session_id, claim, position, events)
        return None if stored is None else (True, stored)

    return log.has_strokes and bool(events) and bool(log.at_once(stroke))


def finish(
    log: EventLog, config: Config, run: Run, claim: int, outcome: Outcome, events: list[Event], position: int
) -> Run | None:
    """Write an end after which no attempt is left, of a run that nobody asked to stop."""
    status = outcome.status
    is_last = status is RunStatus.FAILED and run.attempt >= run.max_attempts
    if not log.has_strokes or (status is not RunStatus.COMPLETED and not is_last):
        return None
    values = columns_of(outcome, config)
    ended = replace(
        run,
        status=status,
        output=outcome.output,
        error=outcome.error,
        token_usage=outcome.token_usage,
        cost_usd=outcome.cost_usd,
        turn_count=outcome.turn_count,
    )
    said = [*events, terminal_event(ended, told_of(ended, values))]

    def stroke(strokes: Strokes) -> tuple[Run, list[Event]] | None:
        found = strokes.finish(run, claim, status, position, said, values)
        return None if found is None else (replace(ended, ended_at=found[0]), found[1])

    return log.at_once(stroke)
