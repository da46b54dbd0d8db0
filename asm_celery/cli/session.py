"""``asm status``, ``pause``, ``resume``, ``drain``, ``complete`` and ``delete``: sessions, from the command line."""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from asm_celery.cli.call import Call
from asm_celery.cli.exits import Exit
from asm_celery.cli.reach import sessions_of
from asm_celery.cli.words import RUN_HEADS, ago, print_table, run_row
from asm_celery.limiter import LimiterStatus
from asm_celery.model import Hold, Run, SessionStatusReport
from asm_celery.server import SessionServer
from asm_celery.sessions import AgentSessions
from asm_celery.states import OPEN, SessionStatus

_COLUMNS = ("session", "agent", "status", "running", "waiting", "runs", "created")


def status(call: Call, *, name: str | None, after: str | None, limit: int) -> Exit:
    """Report one session or run, or a page of sessions and the limiter.

    Raises:
        SessionNotFound, RunNotFound: there is none.
        CoordinationUnavailable: the sessions were printed; the limiter needs Redis.
    """
    with sessions_of(call) as asm:
        if name is None:
            _list(call, asm, after, limit)
        elif name.startswith("run_"):
            _show_run(call, asm.get_run(name))
        else:
            _show_session(call, asm.attach(name))
    return Exit.COMPLETED


def move(call: Call, session_id: str | None, verb: str) -> Exit:
    """Pause or resume a session or a run, or hold or release all.

    Raises:
        SessionNotFound, RunNotFound: there is none.
        InvalidTransition, InvalidOperation: its state does not allow it.
        CapabilityNotSupported: the run's agent does not declare that it can pause.
    """
    with sessions_of(call) as asm:
        if session_id is not None and session_id.startswith("run_"):
            receipt = {"pause": asm.control.pause, "resume": asm.control.resume}[verb](session_id, by=_who())
            call.answer("receipt", asdict(receipt))
            call.text(f"{receipt.run_id} {receipt.state.replace('_', ' ')} ({receipt.status})")
            return Exit.COMPLETED
        if session_id is None:
            change = {"pause": asm.control.hold, "resume": asm.control.release}[verb]
            hold = change(by=_who())
            call.answer("hold", asdict(hold))
            call.text(_hold_line(hold))
            return Exit.COMPLETED
        server = asm.attach(session_id)
        {"pause": server.pause, "resume": server.resume}[verb]()
        _tell_state(call, server)
    return Exit.COMPLETED


def complete(call: Call, *, session_id: str, yes: bool) -> Exit:
    """Close a session for good, once that was agreed to; raises InvalidOperation while it has open runs."""
    with sessions_of(call) as asm:
        server = asm.attach(session_id)
        if not call.agrees(f"complete closes {_described(server)} for good: it takes no run any more", yes):
            return Exit.REFUSED
        server.complete()
        _tell_state(call, server)
    return Exit.COMPLETED


def delete(call: Call, *, session_id: str, yes: bool) -> Exit:
    """Remove a session and all it knows, once that was agreed to; raises InvalidOperation while it is open."""
    with sessions_of(call) as asm:
        server = asm.attach(session_id)
        if not call.agrees(f"delete removes {_described(server)}, its runs and its events", yes):
            return Exit.REFUSED
        asm.delete_session(session_id)
    call.answer("deleted", {"session_id": session_id})
    call.text(f"{session_id} deleted")
    return Exit.COMPLETED


def prune(call: Call, *, session_id: str | None, days: float | None, keep: int, yes: bool) -> Exit:
    """Remove old events, once that was agreed to; raises ValidationError where no bound was given."""
    with sessions_of(call) as asm:
        whose = f"session {session_id}" if session_id else "every session"
        bounds = [f"older than {days:g} days"] if days is not None else []
        bounds += [f"beyond the last {keep}"] if keep else []
        if bounds and not call.agrees(
            f"prune removes the events of {whose} that are {' and '.join(bounds)}", yes
        ):
            return Exit.REFUSED
        before = None if days is None else datetime.now(UTC) - timedelta(days=days)
        removed = asm.prune(before=before, keep=keep, session_id=session_id)
    call.answer("pruned", {"session_id": session_id, "events": removed})
    call.text(f"{removed} events removed")
    return Exit.COMPLETED


def drain(call: Call, *, session_id: str | None, timeout: float | None, no_accept: bool) -> Exit:
    """Return when nothing of the session, or of all, runs or waits; raises DrainTimeout."""
    if session_id is None and no_accept:
        raise click.UsageError(
            "admission is closed session by session: drain one SESSION with --no-accept, or let nothing start "
            "anywhere with `asm pause --all`"
        )
    with sessions_of(call) as asm:
        if session_id is None:
            asm.control.drain(timeout)
            call.answer("drained", {"session_id": None})
            call.text("nothing runs or waits")
            return Exit.COMPLETED
        server = asm.attach(session_id)
        server.drain(timeout, accept=not no_accept)
        _tell_state(call, server)
    return Exit.COMPLETED


def _list(call: Call, asm: AgentSessions, after: str | None, limit: int) -> None:
    if after is not None:
        # an unknown place would be answered with an empty page
        asm.attach(after)
    rows = []
    sessions = asm.list_sessions(after=after, limit=limit)
    for session in sessions:
        report = (
            None if session.status is SessionStatus.COMPLETED else asm.attach(session.session_id).status()
        )
        counts = {
            "in_flight_count": report.in_flight_count if report else 0,
            "queued_count": report.queued_count if report else 0,
        }
        call.answer("session", {**session.to_map(), **counts})
        rows.append(
            [
                session.session_id,
                session.agent,
                session.status,
                *counts.values(),
                session.last_position,
                ago(session.created_at),
            ]
        )
    if rows and not call.is_json:
        print_table(_COLUMNS, rows)
    elif not rows:
        call.talk("no sessions")
    if len(sessions) == limit:
        call.talk(f"there may be more: `asm status --after {sessions[-1].session_id}`")
    hold = asm.control.get_hold()
    if hold.is_held:
        call.text(_hold_line(hold))
    limits = asm.limiter.get_status()
    call.answer("limiter", {**asdict(limits), "hold": asdict(hold)})
    call.text(_limits_line(limits))


def _hold_line(hold: Hold) -> str:
    if hold.is_held:
        return f"held by {hold.by} {ago(hold.since)}: nothing new starts, until `asm resume --all`"
    return "not held: what waits starts"


def _who() -> str:
    """Return the operator as the hold keeps it: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # a container's user may have a number and no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:200]


def _limits_line(limits: LimiterStatus) -> str:
    return (
        f"runs in flight {limits.active_runs} of {limits.max_parallel_runs}, "
        f"sessions with work in flight {limits.active_sessions} of {limits.max_parallel_sessions}"
    )


def _show_session(call: Call, server: SessionServer) -> None:
    report = server.status()
    call.answer("report", asdict(report))
    if call.is_json:
        return
    call.text(
        f"{report.session_id}  agent {server.agent}  {report.status}\n"
        f"running {report.in_flight_count} of {report.max_concurrent_runs}, "
        f"waiting {report.queued_count} of {report.max_queued_runs}, subscribers {report.subscribers}"
    )
    runs = server.list_runs(status=OPEN, limit=1000)
    if runs:
        call.text("")
        print_table(RUN_HEADS, map(run_row, runs))


def _show_run(call: Call, run: Run) -> None:
    call.answer("run", run.to_map())
    if call.is_json:
        return
    print_table(RUN_HEADS, [run_row(run)])
    facts: dict[str, Any] = {"session": run.session_id, "error": run.error, "output": run.output}
    for fact, value in facts.items():
        if value is not None:
            call.text(f"{fact}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


def _tell_state(call: Call, server: SessionServer) -> None:
    report = server.status()
    call.answer("report", asdict(report))
    call.text(f"{report.session_id} {_state_line(report)}")


def _state_line(report: SessionStatusReport) -> str:
    if report.in_flight_count or report.queued_count:
        return f"{report.status}: {report.in_flight_count} running, {report.queued_count} waiting"
    return str(report.status)


def _described(server: SessionServer) -> str:
    report = server.status()
    if report.in_flight_count or report.queued_count:
        return f"session {server.session_id} of agent {server.agent} ({_state_line(report)})"
    return f"session {server.session_id} of agent {server.agent} ({report.status})"
