"""The statements that move a run: the guards, in SQL.

The fence: every write of a worker names its claim number, and is refused when the row has moved on.  It
stands in the WHERE of the UPDATE on the run row, which is checked again after a lock wait; a sub-select
would see a snapshot older than that wait.

Each statement is built once and kept, because building one costs more than executing it.  Parameters are
named ``p_...``, lest they be taken for the columns they are compared with.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Integer, Text, bindparam, func, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from asm_celery.states import LONGEST_BACKOFF_S, RunStatus
from asm_celery.store.kept import Kept
from asm_celery.store.tables import instant_in, is_open, runs, sessions

_PENDING = RunStatus.PENDING.value
_RUNNING = RunStatus.RUNNING.value

_RUN_ID = runs.c.run_id == bindparam("p_run_id", type_=Text)
_WAITS = runs.c.status == _PENDING
# the fence
_HELD = (runs.c.status == _RUNNING) & (runs.c.claims == bindparam("p_claim", type_=Integer))
_IS_DUE = or_(
    runs.c.not_before.is_(None),
    runs.c.not_before <= instant_in(0),
    # SQLite has no clock of its own, and a writer's may have jumped
    runs.c.not_before > instant_in(round(LONGEST_BACKOFF_S * 1_000_000)),
)
_AT_POSITION = runs.c.event_position == bindparam("p_position", type_=BigInteger)
_NEW_POSITION = bindparam("p_new_position", type_=BigInteger)
_IN_SHIFT = instant_in(bindparam("p_shift", type_=BigInteger))


def _kept(*where: ColumnElement[bool], returning: tuple[Any, ...] = (runs,), **values: Any) -> Kept:
    return Kept(update(runs).where(_RUN_ID, *where).values(**values).returning(*returning))


@cache
def insert(has_deadline: bool) -> Kept:
    """Add a waiting run."""
    columns = (
        "run_id",
        "session_id",
        "position",
        "agent",
        "queue",
        "input",
        "input_digest",
        "metadata",
        "idempotency_key",
        "max_attempts",
        "run_timeout",
        "queue_timeout",
    )
    values: dict[str, Any] = {name: bindparam(f"p_{name}", type_=runs.c[name].type) for name in columns}
    values |= {"status": _PENDING, "created_at": instant_in(0)}
    if has_deadline:
        values["queue_deadline"] = _IN_SHIFT
    return Kept(runs.insert().values(**values))


@cache
def claim() -> Kept:
    """Make a waiting run running, if order and slots allow it now."""
    other = runs.alias("other")
    lower = (
        select(func.count())
        .select_from(other)
        .where(
            other.c.session_id == runs.c.session_id,
            is_open(other),
            other.c.position < runs.c.position,
        )
        .scalar_subquery()
    )
    slots = (
        select(sessions.c.max_concurrent_runs)
        .where(sessions.c.session_id == runs.c.session_id)
        .scalar_subquery()
    )
    claim = bindparam("p_claim", type_=Integer)
    return _kept(
        _WAITS,
        runs.c.claims == claim - 1,
        runs.c.stop_requested.is_(None),
        _IS_DUE,
        lower < slots,
        status=_RUNNING,
        claims=claim,
        claim_nonce=bindparam("p_nonce", type_=Text),
        executor=bindparam("p_executor", type_=Text),
        attempt=runs.c.attempt + 1,
        event_position=0,
        not_before=None,
        started_at=func.coalesce(runs.c.started_at, instant_in(0)),
        deadline=instant_in(0) + runs.c.run_timeout * 1_000_000,
    )


@cache
def advance() -> Kept:
    """Move the attempt's event position."""
    return _kept(_HELD, _AT_POSITION, event_position=_NEW_POSITION, returning=(runs.c.run_id,))


@cache
def finish(
    unless_stopped: bool, has_position: bool, columns: frozenset[str], *, is_whole: bool = True
) -> Kept:
    """End a running attempt's run.

    Args:
        is_whole: return the run, and not only which it is and when it ended.
    """
    stop = (
        runs.c.stop_requested.is_(None)
        if unless_stopped
        else runs.c.stop_requested == bindparam("p_stop", type_=Text)
    )
    values = _columns(has_position, columns)
    return _kept(
        _HELD,
        stop,
        *([_AT_POSITION] if has_position else []),
        status=bindparam("p_status", type_=Text),
        returning=(runs,) if is_whole else (runs.c.run_id, runs.c.ended_at),
        ended_at=instant_in(0),
        paused_at=None,
        **values,
    )


@cache
def withdraw() -> Kept:
    """End a waiting run."""
    return _kept(
        _WAITS,
        status=bindparam("p_status", type_=Text),
        stop_requested=bindparam("p_stop", type_=Text),
        stop_reason=bindparam("p_reason", type_=Text),
        error=bindparam("p_error", type_=Text),
        ended_at=instant_in(0),
        paused_at=None,
    )


@cache
def request_stop() -> Kept:
    """Ask a running run to stop, once."""
    return _kept(
        runs.c.status == _RUNNING,
        runs.c.stop_requested.is_(None),
        stop_requested=bindparam("p_stop", type_=Text),
        stop_reason=bindparam("p_reason", type_=Text),
    )


@cache
def pause() -> Kept:
    """Ask an open run's agent to wait, once; a run that was asked to stop is not asked to wait."""
    return _kept(
        is_open(runs),
        runs.c.stop_requested.is_(None),
        runs.c.paused_at.is_(None),
        paused_at=instant_in(0),
        pause_version=runs.c.pause_version + 1,
    )


@cache
def resume() -> Kept:
    """Let a paused run go on."""
    return _kept(
        is_open(runs),
        runs.c.stop_requested.is_(None),
        runs.c.paused_at.is_not(None),
        paused_at=None,
        pause_version=runs.c.pause_version + 1,
    )


@cache
def requeue(counts: bool, is_delayed: bool, has_position: bool, columns: frozenset[str]) -> Kept:
    """Make a running run wait again."""
    values = _columns(has_position, columns)
    if not counts:
        values["attempt"] = runs.c.attempt - 1
    return _kept(
        _HELD,
        runs.c.stop_requested.is_(None),
        *([runs.c.attempt < runs.c.max_attempts] if counts else []),
        *([_AT_POSITION] if has_position else []),
        status=_PENDING,
        executor=None,
        deadline=None,
        not_before=_IN_SHIFT if is_delayed else None,
        **values,
    )


@cache
def void() -> Kept:
    """Use a claim number up without a claim, where it was not claimed yet."""
    claim = bindparam("p_claim", type_=Integer)
    return _kept(_WAITS, runs.c.claims == claim - 1, claims=claim, returning=(runs.c.run_id,))


@cache
def void_page() -> Kept:
    """Use up the next claim number of the first waiting runs above an id."""
    # locked in the order of their ids, as everywhere
    page = (
        select(runs.c.run_id)
        .where(is_open(runs), _WAITS, runs.c.run_id > bindparam("p_after", type_=Text))
        .order_by(runs.c.run_id)
        .limit(bindparam("p_limit", type_=Integer))
        .with_for_update()
    )
    return Kept(
        update(runs)
        .where(runs.c.run_id.in_(page), _WAITS)
        .values(claims=runs.c.claims + 1)
        .returning(runs.c.run_id)
    )


@cache
def reroute() -> Kept:
    """Change a waiting run's Celery queue."""
    return _kept(_WAITS, queue=bindparam("p_queue", type_=Text), returning=(runs.c.run_id,))


def _columns(has_position: bool, columns: frozenset[str]) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: bindparam(f"p_{name}", type_=runs.c[name].type) for name in sorted(columns)
    }
    if has_position:
        values["event_position"] = _NEW_POSITION
    return values
