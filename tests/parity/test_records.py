"""Rows RN-1 to RN-12 and SE-1 to SE-6 of the parity table: the records of runs and sessions."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, fields
from datetime import UTC
from typing import Any

import pytest

from asm_celery import Run, Session, errors
from asm_celery.states import (
    OPEN,
    RUN_MOVES,
    SESSION_MOVES,
    TERMINAL,
    RunStatus,
    SessionStatus,
    check_run_status,
    check_session_move,
    check_session_status,
)
from tests.parity.desk import Desk


def test_a_run_has_these_fields() -> None:
    """RN-1: those of the original that mean something here; `agent` is its provider."""
    names = {field.name for field in fields(Run)}

    assert {
        "run_id",
        "session_id",
        "status",
        "input",
        "output",
        "error",
        "metadata",
        "turn_count",
        "token_usage",
        "cost_usd",
        "started_at",
        "ended_at",
        "agent",
    } < names
    assert re.fullmatch("run_[0-9a-f]{32}", Run.new("s").run_id)


def test_a_new_run_is_pending() -> None:
    """RN-2: with a unique id or the one given, and nothing else."""
    one, two = Run.new("s"), Run.new("s", run_id="mine", input={"a": 1}, metadata={"b": 2})

    assert RunStatus.PENDING is one.status
    assert one.run_id != Run.new("s").run_id
    assert ({}, {}, None, None) == (one.metadata, one.token_usage, one.output, one.error)
    assert ("mine", {"a": 1}, {"b": 2}) == (two.run_id, two.input, two.metadata)
    assert one.created_at.tzinfo is UTC


@pytest.mark.parametrize("session_id", ["", None, 5])
def test_a_run_needs_a_session(session_id: Any) -> None:
    """RN-3."""
    with pytest.raises(errors.ValidationError, match="session_id"):
        Run.new(session_id)


def test_the_statuses_of_a_run() -> None:
    """RN-4: those of the original and `interrupted`; another word is an invalid_status."""
    words = ["pending", "running", "completed", "failed", "cancelled", "timeout", "interrupted"]

    assert set(words) == {str(check_run_status(word)) for word in words} == set(map(str, RunStatus))
    with pytest.raises(errors.InvalidStatus) as refused:
        check_run_status("paused")
    assert "invalid_status" == refused.value.code


def test_only_a_terminal_run_has_an_end(desk_on_each: Desk) -> None:
    """RN-5: ended_at and the terminal statuses go together, while queued, running and after."""
    server = desk_on_each.start("gate")
    desk_on_each.work()
    run_id, queued = server.submit_run("x"), server.submit_run("y")
    desk_on_each.running(server)

    assert [None, None] == [server.get_run(one).ended_at for one in (run_id, queued)]
    server.cancel_run(queued)
    desk_on_each.gates.open("x")
    assert desk_on_each.ended(server, run_id).ended_at
    assert server.get_run(queued).ended_at


def test_the_legal_moves_of_a_run(desk_on_each: Desk) -> None:
    """RN-6: nothing leaves a terminal status, in the table and in SQL; no run is entered twice."""
    for status in TERMINAL:
        assert not RUN_MOVES[status]
    assert TERMINAL - {RunStatus.COMPLETED} | {RunStatus.RUNNING} == RUN_MOVES[RunStatus.PENDING]
    assert TERMINAL | {RunStatus.PENDING} == RUN_MOVES[RunStatus.RUNNING]
    server = desk_on_each.start()
    desk_on_each.work()
    run_id = server.execute_run(1).run_id

    with desk_on_each.asm._runtime().log.transaction() as tx:
        assert tx.runs.claim(run_id, 2, executor="e", nonce="n") is None
        assert tx.runs.finish(run_id, 1, RunStatus.FAILED) is None
        assert tx.runs.withdraw(run_id, RunStatus.CANCELLED) is None
        assert tx.runs.requeue(run_id, 1, delay_s=0) is None
    assert [run_id] == desk_on_each.entered


def test_the_three_times_of_a_run(desk: Desk) -> None:
    """RN-12, RN-2: created when accepted, started at the first claim, ended at the end; attempts are counted."""
    server = desk.start()
    run_id = server.submit_run(1)
    waiting = server.get_run(run_id)
    desk.work()
    run = desk.ended(server, run_id)

    assert (None, 0) == (waiting.started_at, waiting.attempt)
    assert run.started_at is not None
    assert run.ended_at is not None
    assert waiting.created_at == run.created_at <= run.started_at <= run.ended_at
    assert 1 == run.attempt


def test_a_runs_map_and_back() -> None:
    """RN-11: text keys, cost_usd always there; an empty map is refused."""
    new = Run.new("s", agent="echo", input={"a": [1]})
    paid = Run.new("s", agent="echo", cost_usd=1.5, token_usage={"in": 3}, status=RunStatus.FAILED)

    for run in (new, paid):
        plain = json.loads(json.dumps(run.to_map()))
        assert run == Run.from_map(plain)
        assert "cost_usd" in plain
    with pytest.raises(errors.ValidationError):
        Run.from_map({})
    with pytest.raises(errors.InvalidStatus):
        Run.from_map({**new.to_map(), "status": "odd"})


def test_records_do_not_change_under_their_readers() -> None:
    """RN-6, SE-5: they are frozen; only a guarded move in SQL changes a run or a session."""
    with pytest.raises(FrozenInstanceError):
        Run.new("s").status = RunStatus.COMPLETED  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Session.new("a").status = SessionStatus.COMPLETED  # type: ignore[misc]


def test_a_session_has_these_fields() -> None:
    """SE-1: those of the original that this release keeps; what is the user's own goes into metadata."""
    names = {field.name for field in fields(Session)}

    assert {"session_id", "agent", "status", "metadata", "created_at", "updated_at"} < names
    assert re.fullmatch("ses_[0-9a-f]{32}", Session.new("a").session_id)


def test_a_new_session_has_an_id_or_takes_yours() -> None:
    """SE-2: unique, or as given; it is active from its start on."""
    mine = Session.new("a", session_id="chat-42", metadata={"k": 1})

    assert ("chat-42", {"k": 1}, SessionStatus.ACTIVE) == (mine.session_id, mine.metadata, mine.status)
    assert Session.new("a").session_id != Session.new("a").session_id
    for odd in ("", "with space", "-x", "x" * 129):
        with pytest.raises(errors.ValidationError):
            Session.new("a", session_id=odd)


@pytest.mark.parametrize("agent", ["", None, 5])
def test_a_session_needs_an_agent(agent: Any) -> None:
    """SE-3."""
    with pytest.raises(errors.ValidationError, match="agent"):
        Session.new(agent)


def test_the_statuses_of_a_session(desk_on_each: Desk) -> None:
    """SE-4: another word is an invalid_status; updated_at moves with each change."""
    assert {"active", "paused", "draining", "completed"} == set(map(str, SessionStatus))
    with pytest.raises(errors.InvalidStatus):
        check_session_status("sleeping")
    server = desk_on_each.start()

    def updated_at() -> Any:
        return desk_on_each.asm.list_sessions()[0].updated_at

    moments = [updated_at()]
    for move in (server.pause, server.resume, server.complete):
        move()
        moments.append(updated_at())
    assert sorted(moments) == moments
    assert moments[0] < moments[-1]


def test_the_legal_moves_of_a_session(desk: Desk) -> None:
    """SE-5: one table; what it does not have is an invalid_transition and writes nothing."""
    for source in SessionStatus:
        for target in SessionStatus:
            if target in SESSION_MOVES[source]:
                check_session_move("s", source, target)
            else:
                with pytest.raises(errors.InvalidTransition):
                    check_session_move("s", source, target)
    server = desk.start()
    server.drain(accept=False)
    with pytest.raises(errors.InvalidTransition, match="draining"):
        server.pause()
    assert SessionStatus.DRAINING is server.status().status
    assert [RunStatus.PENDING, RunStatus.RUNNING] == list(OPEN)


def test_a_sessions_map_and_back() -> None:
    """SE-6: through JSON; an empty map is refused."""
    session = Session.new("a", metadata={"深": [1]}, max_concurrent_runs=3)

    assert session == Session.from_map(json.loads(json.dumps(session.to_map())))
    with pytest.raises(errors.ValidationError):
        Session.from_map({})
