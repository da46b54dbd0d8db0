"""The statements of strokes: a guarded write, the numbers it draws and the events that tell of it; PostgreSQL only.

The guards are those of `run_moves`.  Locks are taken as everywhere: the run's row, then the counter's.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Float,
    Integer,
    Text,
    bindparam,
    cast,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)

from asm_celery.states import ACCEPTING, STARTABLE, RunStatus
from asm_celery.store import run_moves
from asm_celery.store.kept import Kept
from asm_celery.store.tables import agents, events, instant_in, is_open, runs, session_counters, sessions

_P_SESSION_ID = bindparam("p_session_id", type_=Text)
# what an event says besides whose it is and where it stands
SAID: Final = [column for column in events.c if column.name not in ("session_id", "sequence")]


@cache
def told_of_move(move: Kept) -> Kept:
    """A move of a run, then the draw of numbers, then its events; nothing where the move's guard fails."""
    count = bindparam("p_count", type_=BigInteger)
    moved = move.statement.cte("moved")
    drawn = (
        update(session_counters)
        .where(session_counters.c.session_id == _P_SESSION_ID, exists(select(moved.c.run_id)))
        .values(last_sequence=session_counters.c.last_sequence + count)
        .returning(session_counters.c.last_sequence)
        .cte("drawn")
    )
    given = [bindparam(f"e_{column.name}", type_=ARRAY(column.type)) for column in SAID]
    said = (
        func.unnest(*given)
        .table_valued(*(column.name for column in SAID), with_ordinality="place", name="said")
        .render_derived()
    )
    told = (
        insert(events)
        .from_select(
            ["session_id", "sequence", *(column.name for column in SAID)],
            select(
                _P_SESSION_ID,
                drawn.c.last_sequence - count + said.c.place,
                *(said.c[column.name] for column in SAID),
            ),
        )
        .cte("told")
    )
    return Kept(select(moved, drawn.c.last_sequence.label("drawn")).add_cte(told))


@cache
def accepted() -> Kept:
    """A waiting run with its position and its event, if nobody else writes to the session meanwhile.

    The open runs are counted as of the beginning of the statement.  That is only right while nothing of the
    session was written since, so the counter must be found as it was then: what waited for its lock is refused.
    """
    table, seen = session_counters, session_counters.alias("seen")
    depth = (
        select(func.count())
        .select_from(runs)
        .where(runs.c.session_id == _P_SESSION_ID, is_open(runs))
        .scalar_subquery()
    )
    drawn = (
        update(table)
        .where(
            table.c.session_id == _P_SESSION_ID,
            seen.c.session_id == table.c.session_id,
            seen.c.last_sequence == table.c.last_sequence,
            or_(*(table.c.state == state.value for state in ACCEPTING)),
            depth < bindparam("p_room", type_=BigInteger),
        )
        .values(last_sequence=table.c.last_sequence + 1, last_position=table.c.last_position + 1)
        .returning(table.c.last_sequence, table.c.last_position, table.c.state, table.c.state_version)
        .cte("drawn")
    )
    terms = agents.c.name == bindparam("p_terms_of", type_=Text)

    def told(name: str) -> Any:
        return select(agents.c[name]).where(terms).scalar_subquery()

    given = {
        name: cast(bindparam(f"p_{name}", type_=runs.c[name].type), runs.c[name].type)
        for name in ("run_id", "session_id", "agent", "input", "input_digest", "metadata", "queue_timeout")
    }
    placed = {
        **given,
        "position": drawn.c.last_position,
        "queue": func.coalesce(told("queue"), bindparam("p_queue", type_=Text)),
        "status": literal(RunStatus.PENDING.value),
        "run_timeout": func.coalesce(
            cast(bindparam("p_run_timeout", type_=Float), Float), told("run_timeout")
        ),
        "max_attempts": func.coalesce(
            bindparam("p_max_attempts", type_=Integer),
            told("max_attempts"),
            bindparam("p_default_attempts", type_=Integer),
        ),
        "created_at": instant_in(0),
        # NULL for no timeout
        "queue_deadline": instant_in(bindparam("p_shift", type_=BigInteger)),
    }
    run = (
        insert(runs)
        .from_select(list(placed), select(*placed.values()).select_from(drawn))
        .returning(runs.c.queue)
        .cte("run")
    )
    said = {
        "session_id": _P_SESSION_ID,
        "sequence": drawn.c.last_sequence,
        "run_id": given["run_id"],
        "data": func.concat('{"position":', drawn.c.last_position, "}"),
        **{
            name: bindparam(f"e_{name}", type_=events.c[name].type)
            for name in (
                "event_id",
                "type",
                "metadata",
                "attempt",
                "provider",
                "schema_version",
                "created_at",
            )
        },
    }
    event = insert(events).from_select(list(said), select(*said.values()).select_from(drawn)).cte("event")
    return Kept(select(drawn, run.c.queue, depth.label("depth")).add_cte(event))


@cache
def started() -> Kept:
    """A claim, the draw of a number, and `run_started`; the session with them.

    Where the session may start nothing any more it fails as a whole, by a division by zero: a statement has no
    other way to take back what it has done.
    """
    starts = or_(*(session_counters.c.state == state.value for state in sorted(STARTABLE)))
    moved = (
        run_moves.claim()
        .statement.where(
            runs.c.agent == bindparam("p_agent", type_=Text),
            exists(
                select(session_counters.c.state).where(
                    session_counters.c.session_id == runs.c.session_id, starts
                )
            ),
        )
        .cte("moved")
    )
    drawn = (
        update(session_counters)
        .where(session_counters.c.session_id == moved.c.session_id, starts)
        .values(last_sequence=session_counters.c.last_sequence + 1)
        .returning(session_counters)
        .cte("drawn")
    )
    said = {
        "session_id": moved.c.session_id,
        "sequence": drawn.c.last_sequence,
        "run_id": moved.c.run_id,
        "attempt": moved.c.attempt,
        "provider": moved.c.agent,
        "data": func.concat(
            '{"attempt":', moved.c.attempt, ',"executor":', bindparam("p_quoted_executor", type_=Text), "}"
        ),
        **{
            name: bindparam(f"e_{name}", type_=events.c[name].type)
            for name in ("event_id", "type", "metadata", "schema_version", "created_at")
        },
    }
    event = (
        insert(events)
        .from_select(list(said), select(*said.values()).select_from(moved.join(drawn, true())))
        .cte("event")
    )
    whole = 1 / select(func.count()).select_from(drawn).scalar_subquery()
    its = [column.label(f"its_{column.name}") for column in sessions.c]
    return Kept(
        select(
            moved,
            drawn.c.last_sequence,
            drawn.c.last_position,
            drawn.c.state,
            drawn.c.state_version,
            *its,
            whole,
        )
        .select_from(
            moved.join(sessions, sessions.c.session_id == moved.c.session_id).outerjoin(drawn, true())
        )
        .add_cte(event)
    )
