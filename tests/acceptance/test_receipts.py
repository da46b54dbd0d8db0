"""What a stop answers: the truth at once, or with `wait` the end, or who holds the run and that the request stands."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asm_celery import AgentSessions, Config, SessionServer, errors
from asm_celery.aio import AsyncAgentSessions, AsyncSessionServer
from asm_celery.model import StopReceipt, new_id
from asm_celery.states import RunStatus, StopKind
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.waiting import wait_until

VERBS = ["cancel_run", "interrupt_run"]
ENDS = {"cancel_run": RunStatus.CANCELLED, "interrupt_run": RunStatus.INTERRUPTED}
KINDS = {"cancel_run": StopKind.CANCEL, "interrupt_run": StopKind.INTERRUPT}

# (session id, verb, arguments, options) -> what it returned; raises what it raised
Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """A verb of a session's handle, called on either face."""

    def directly(config: Config, session_id: str, verb: str, *given: Any, **options: Any) -> Any:
        with AgentSessions(config) as asm:
            return getattr(asm.attach(session_id), verb)(*given, **options)

    def in_a_loop(config: Config, session_id: str, verb: str, *given: Any, **options: Any) -> Any:
        async def main() -> Any:
            async with AsyncAgentSessions(config) as asm:
                return await getattr(await asm.attach(session_id), verb)(*given, **options)

        return asyncio.run(main())

    return directly if request.param == "sync" else in_a_loop


@pytest.mark.parametrize("verb", VERBS)
def test_a_stop_answers_at_once_or_when_the_run_has_ended(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate, ledger: Ledger, ask: Ask, verb: str
) -> None:
    """Withdrawn, requested, already terminal; with `wait` the run is terminal when it returns."""
    worker(pool="threads")
    server = asm.start_session("gate")
    running, waiting = (server.submit_run({"gate": str(gate)}) for _ in range(2))
    wait_until(lambda: ledger.entered() == [running], description="the first run executes")

    withdrawn = ask(config, server.session_id, verb, waiting, wait=True, timeout=0)
    ended = ask(config, server.session_id, verb, running, wait=True, timeout=30)
    is_terminal = server.get_run(running).is_terminal
    again = ask(config, server.session_id, verb, running)

    end, kind = ENDS[verb], KINDS[verb]
    assert is_terminal
    assert [
        StopReceipt(run_id=waiting, state="withdrawn", status=end, kind=kind),
        StopReceipt(run_id=running, state="requested", status=end, kind=kind),
        StopReceipt(run_id=running, state="already_terminal", status=end, kind=kind),
    ] == [withdrawn, ended, again]
    assert [running] == ledger.entered()


def test_without_waiting_the_request_is_the_answer(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate, ledger: Ledger, ask: Ask
) -> None:
    """It returns while the agent is still inside, and the run ends as was asked."""
    worker(pool="threads", stop_grace_s=60)
    server = asm.start_session("stubborn")
    run_id = server.submit_run({"gate": str(gate)})
    wait_until(lambda: ledger.entered() == [run_id], description="it executes")

    receipt = ask(config, server.session_id, "cancel_run", run_id)

    assert ("requested", RunStatus.RUNNING) == (receipt.state, receipt.status)
    gate.open()
    with pytest.raises(errors.RunCancelled):
        server.await_run(run_id, timeout=30)


def test_a_stop_that_takes_longer_says_where_the_run_is(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate, ledger: Ledger, ask: Ask
) -> None:
    """CancelTimeout names run, status and executor; the request stands and is heard later."""
    worker(pool="threads", stop_grace_s=60)
    server = asm.start_session("stubborn")
    run_id = server.submit_run({"gate": str(gate)})
    wait_until(lambda: ledger.entered() == [run_id], description="it executes")

    with pytest.raises(errors.CancelTimeout, match="the request stands") as late:
        ask(config, server.session_id, "interrupt_run", run_id, wait=True, timeout=0.2)

    run = server.get_run(run_id)
    assert (run_id, "running", run.executor) == (late.value.run_id, late.value.status, late.value.executor)
    assert str(run.executor) in str(late.value)
    assert late.value.retryable
    assert isinstance(late.value, TimeoutError)
    assert StopKind.INTERRUPT is run.stop_requested
    gate.open()
    with pytest.raises(errors.RunInterrupted):
        server.await_run(run_id, timeout=30)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, math.inf, "5", True, 1e12])
def test_a_timeout_that_is_none_is_refused_before_anything_is_asked(
    asm: AgentSessions, config: Config, ask: Ask, verb: str, timeout: Any
) -> None:
    """Typed, with the value, and no trace of it: also where it would not have waited."""
    server = asm.start_session("gate")
    run_id = server.submit_run("x")

    for wait in (True, False):
        with pytest.raises(errors.ValidationError, match="timeout="):
            ask(config, server.session_id, verb, run_id, wait=wait, timeout=timeout)

    assert [run_id] == server.status().queued_runs
    assert 3 == server.get_events()[-1].sequence
    assert [] == asm.control.get_operation_history(run_id)
    server.cancel_run(run_id)


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_that_is_not_of_this_session_is_not_found(
    asm: AgentSessions, config: Config, ask: Ask, verb: str
) -> None:
    """Unknown, malformed, of another session: the same answer at once, also to who would have waited."""
    server, other = asm.start_session("gate"), asm.start_session("gate")
    theirs = other.submit_run("x")

    for run_id in (new_id("run"), "run_1", "", None, theirs):
        with pytest.raises(errors.RunNotFound) as refused:
            ask(config, server.session_id, verb, run_id, wait=True, timeout=60)
        assert "run_not_found" == refused.value.code

    assert [theirs] == other.status().queued_runs
    other.cancel_run(theirs)


@pytest.fixture
def silence() -> Iterator[int]:
    """The port of a server that takes connections and never says a word, as behind a broken network."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("where", ["nobody", "silence"])
def test_a_stop_without_a_database_is_refused_within_the_connect_timeout(
    sqlite_config: Config, silence: int, where: str
) -> None:
    """Typed and retryable, from every verb that stops, whether nothing listens there or nothing answers."""
    port = silence if where == "silence" else 1
    changes = {"database_url": f"postgresql+psycopg://x@127.0.0.1:{port}/x", "connect_timeout_s": 2.0}
    with AgentSessions(sqlite_config) as asm:
        server = asm.start_session("gate")
        run_id = server.submit_run("x")
        with AgentSessions(sqlite_config.model_copy(update=changes)) as away:
            handle = SessionServer(away._runtime, server._session)
            asking: list[Callable[[], Any]] = [
                lambda: handle.cancel_run(run_id, wait=True, timeout=60),
                lambda: away.control.pause(run_id),
                lambda: away.control.interrupt_session(server.session_id),
                away.control.hold,
                lambda: asyncio.run(AsyncSessionServer(handle).interrupt_run(run_id)),
            ]
            for one in asking:
                began = time.monotonic()
                with pytest.raises(errors.StorageConnectionFailed) as refused:
                    one()
                assert time.monotonic() - began < 2.0 + 2.0
                assert ("storage_connection_failed", True) == (refused.value.code, refused.value.retryable)

        assert [run_id] == server.status().queued_runs
        assert 3 == server.get_events()[-1].sequence
        server.cancel_run(run_id)


CLOSED: list[tuple[str, Callable[[SessionServer, AgentSessions], Any], Any]] = [
    ("pause", lambda server, asm: server.pause(), errors.InvalidTransition),
    ("resume", lambda server, asm: server.resume(), errors.InvalidTransition),
    ("complete", lambda server, asm: server.complete(), None),
    ("drain", lambda server, asm: server.drain(timeout=0), None),
    ("drain for good", lambda server, asm: server.drain(timeout=0, accept=False), None),
    ("submit", lambda server, asm: server.submit_run("x"), errors.InvalidOperation),
    (
        "submit and interrupt",
        lambda server, asm: server.submit_run("x", on_busy="interrupt"),
        errors.InvalidOperation,
    ),
    ("interrupt all", lambda server, asm: asm.control.interrupt_session(server.session_id), {}),
]


@pytest.mark.parametrize(("case", "act", "answer"), CLOSED, ids=[case[0] for case in CLOSED])
def test_control_of_a_completed_session_changes_nothing(
    asm: AgentSessions, case: str, act: Callable[[SessionServer, AgentSessions], Any], answer: Any
) -> None:
    """It is final: what would reopen it is refused, what finds nothing to do succeeds."""
    server = asm.start_session("gate")
    run_id = server.submit_run("x")
    server.cancel_run(run_id)
    server.complete()
    before = server.get_events(limit=1000)

    if isinstance(answer, type):
        with pytest.raises(answer, match="completed"):
            act(server, asm)
    else:
        assert answer == act(server, asm)

    assert before == server.get_events(limit=1000)
    assert "already_terminal" == server.cancel_run(run_id).state
