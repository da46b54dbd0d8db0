"""The end of an attempt in SQL: as it ended, as it was asked to, or requeued while attempts are left."""

from __future__ import annotations

from typing import Any

from asm_celery.config import Config
from asm_celery.events.log import LogTransaction
from asm_celery.model import Event, Run
from asm_celery.moves.outcome import Outcome, as_asked, backoff_s, columns_of, requeued_event, told_of
from asm_celery.moves.stopping import terminal_event
from asm_celery.states import STOPPED_STATUS, RunStatus


def write_end(
    tx: LogTransaction,
    config: Config,
    run: Run,
    claim: int,
    outcome: Outcome,
    events: list[Event],
    place: dict[str, Any],
) -> Run | None:
    """Write the end of a running attempt, or that it is to be made again; None: it had ended or moved on.

    Args:
        place: columns that are written, and guarded, with it: the attempt's event position and how many events.
    """
    values = columns_of(outcome, config)
    is_handed_back = outcome.status is RunStatus.PENDING
    if is_handed_back or (outcome.status is RunStatus.FAILED and run.attempt < run.max_attempts):
        delay_s = 0.0 if is_handed_back else backoff_s(run.attempt, config)
        again = tx.runs.requeue(run.run_id, claim, delay_s=delay_s, counts=not is_handed_back, **place)
        if again is not None:
            tx.append(run.session_id, [*events, requeued_event(again, outcome, delay_s)])
            return again
    was_asked = outcome.status in STOPPED_STATUS.values() and outcome.error is None
    ended = None
    if not was_asked and not is_handed_back:
        ended = tx.runs.finish(run.run_id, claim, outcome.status, **place, **values)
    if ended is None:
        # a stop was asked for: the run ends as asked, and what came late is partial output
        asked = tx.runs.get(run.run_id)
        if asked is None or asked.stop_requested is None:
            return None
        status = STOPPED_STATUS[asked.stop_requested]
        values |= as_asked(asked, status)
        ended = tx.runs.finish(run.run_id, claim, status, unless_stopped=False, **place, **values)
    if ended is None:
        return None
    tx.append(run.session_id, [*events, terminal_event(ended, told_of(ended, values))])
    return ended
