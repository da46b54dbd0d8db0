"""Rows CO-1 to CO-27 of the parity table: control operations on runs, whoever submitted them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asm_celery import AgentSessions, SessionServer, errors
from asm_celery.model import new_id
from asm_celery.states import RunStatus, StopKind
from tests.parity.desk import Desk, all_events
from tests.waiting import wait_until

LAST = ("completed", "failed", "cancelled", "interrupted", "timeout")


def patient(desk: Desk) -> SessionServer:
    """A session of an agent that counts its steps, one a wish, and rests while it is paused."""

    def agent(ctx: Any, given: Any) -> int:
        steps = 0
        while not desk.gates.of(given).is_set():
            if ctx.wait_if_paused():
                ctx.emit("went_on", {"steps": steps})
            steps += 1
            ctx.emit("step", {"step": steps})
            ctx.sleep(0.01)
        return steps

    desk.asm.register("patient", agent, capabilities={"pause"})
    return desk.start("patient")


def stepping(server: SessionServer, run_id: str) -> None:
    """Wait until the run's agent takes steps."""
    seen = len(all_events(server, run_id=run_id, type="step"))
    wait_until(
        lambda: len(all_events(server, run_id=run_id, type="step")) > seen,
        description=f"the agent of {run_id} takes steps",
    )


def resting(desk: Desk, run_id: str) -> None:
    """Wait until the run's agent waits in `wait_if_paused`, and nothing of it is left to be stored."""
    [attempt] = [one for one in desk.attempts.all() if one.run_id == run_id]
    wait_until(lambda: attempt.pause.is_on, description=f"the agent of {run_id} heard")
    counts: list[int] = []

    def is_still() -> bool:
        counts.append(len(desk.asm.attach(desk.asm.get_run(run_id).session_id).get_events(limit=1000)))
        # two looks, a tick of the agent apart, twenty times over
        return len(counts) > 20 and len(set(counts[-20:])) == 1

    wait_until(is_still, description=f"the agent of {run_id} rests")


def history(desk: Desk, run_id: str) -> list[tuple[str, str, str]]:
    """What was asked, by whom, and what came of it."""
    entries = desk.asm.control.get_operation_history(run_id)
    assert sorted(entry.at for entry in entries) == [entry.at for entry in entries]
    return [(entry.operation, entry.actor, entry.result) for entry in entries]


def state(desk: Desk, run_id: str) -> tuple[str, str | None]:
    """The state and the last operation of a run."""
    status = desk.asm.control.get_operation_status(run_id)
    return status.state, status.last_operation


@pytest.mark.parametrize("verb", ["interrupt", "cancel"])
def test_a_stop_is_told_once_and_its_status_is_derived(desk_on_each: Desk, verb: str) -> None:
    """CO-1, CO-2, CO-5, CO-6, CO-7, CO-9: a receipt, one event, however often; both calls are in the history."""
    desk = desk_on_each
    server = desk.start("gate")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)
    ask = getattr(desk.asm.control, verb)
    ended = {"interrupt": "interrupted", "cancel": "cancelled"}[verb]

    first, second = ask(run_id, by="alice"), ask(run_id, by="bob")

    assert (run_id, "requested", StopKind(verb)) == (first.run_id, first.state, first.kind)
    assert ended == desk.ended(server, run_id).status
    assert second.kind is StopKind(verb)
    assert (ended, verb) == state(desk, run_id)
    assert [(verb, "alice"), (verb, "bob")] == [entry[:2] for entry in history(desk, run_id)]
    events = [event.type for event in all_events(server, run_id=run_id)]
    assert ["run_stop_requested", f"run_{ended}"] == events[-2:]


def test_an_agent_without_a_hook_is_interrupted_like_any(desk: Desk) -> None:
    """CO-4: an agent need not know of interrupts: a stop is the runtime's own."""
    server = desk.start("gate")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)

    desk.asm.control.interrupt(run_id)

    assert RunStatus.INTERRUPTED is desk.ended(server, run_id).status


def test_a_run_that_waits_is_cancelled_and_an_unknown_one_is_not_found(desk: Desk) -> None:
    """CO-6, CO-22: better: only runs that exist; an unknown one has no history and its state is unknown."""
    server = desk.start()
    waiting, unknown = server.submit_run(1), new_id("run")

    assert "withdrawn" == desk.asm.control.cancel(waiting).state

    for ask in (desk.asm.control.cancel, desk.asm.control.interrupt, desk.asm.control.pause):
        for run_id in (unknown, "run_7", None):
            with pytest.raises(errors.RunNotFound):
                ask(run_id)
    for run_id in (unknown, "run_7", "\0"):
        assert ("unknown", None) == state(desk, run_id)
        assert [] == desk.asm.control.get_operation_history(run_id)


def test_a_stop_that_is_not_obeyed_stays_visible(desk: Desk) -> None:
    """CO-3, CO-8: better: there is no adapter that may fail: the request stands, and the state says stopping."""
    server = desk.start("stubborn")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)

    receipt = desk.asm.control.cancel(run_id, by="alice")

    assert "requested" == receipt.state
    assert ("stopping", "cancel") == state(desk, run_id)
    assert [("cancel", "alice", "requested")] == history(desk, run_id)
    desk.gates.open("x")
    assert RunStatus.CANCELLED is desk.ended(server, run_id).status


def test_a_stop_that_cannot_be_stored_is_an_error(desk: Desk) -> None:
    """CO-3, CO-8: the database refuses: a typed error, and nothing was asked."""
    server = desk.start()
    run_id = server.submit_run(1)
    away = desk.another(database_url="postgresql+psycopg://nobody@127.0.0.1:1/nowhere", connect_timeout_s=1.0)

    for ask in (away.control.cancel, away.control.interrupt, away.control.pause, away.control.resume):
        with pytest.raises(errors.StorageConnectionFailed) as refused:
            ask(run_id)
        assert refused.value.retryable

    assert [] == history(desk, run_id)


def test_a_run_is_paused_and_goes_on(desk_on_each: Desk) -> None:
    """CO-11, CO-13, CO-21: it rests where its agent lets it, however often it is asked, and each is told."""
    desk = desk_on_each
    server = patient(desk)
    desk.work()
    run_id = server.submit_run("go")
    stepping(server, run_id)
    control = desk.asm.control

    paused = [control.pause(run_id, by="alice").state for _ in range(2)]
    resting(desk, run_id)

    assert ["paused", "already_paused"] == paused
    assert ("paused", "pause") == state(desk, run_id)
    run = server.get_run(run_id)
    assert (RunStatus.RUNNING, True) == (run.status, run.paused_at is not None)
    resumed = [control.resume(run_id, by="bob").state for _ in range(2)]
    assert ["resumed", "not_paused"] == resumed
    stepping(server, run_id)
    assert ("running", "resume") == state(desk, run_id)
    desk.gates.open("go")
    assert RunStatus.COMPLETED is desk.ended(server, run_id).status
    assert [
        ("pause", "alice", "paused"),
        ("pause", "alice", "already_paused"),
        ("resume", "bob", "resumed"),
        ("resume", "bob", "not_paused"),
    ] == history(desk, run_id)
    told = [
        event for event in all_events(server, run_id=run_id) if event.type in ("run_paused", "run_resumed")
    ]
    assert [("run_paused", {"by": "alice"}), ("run_resumed", {"by": "bob"})] == [
        (event.type, event.data) for event in told
    ]
    assert 1 == len(all_events(server, type="went_on"))


def test_an_agent_that_does_not_declare_it_cannot_be_paused(desk: Desk) -> None:
    """CO-12, CO-14, CO-16: by the word, whatever the agent does; nothing is in the history, and the run goes on."""
    server = desk.start("gate")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)

    for ask in (desk.asm.control.pause, desk.asm.control.resume):
        with pytest.raises(errors.CapabilityNotSupported, match=r"ctx\.wait_if_paused") as refused:
            ask(run_id)
        assert "capability_not_supported" == refused.value.code

    assert ("running", None) == state(desk, run_id)
    assert [] == history(desk, run_id)


def test_a_web_backend_knows_capabilities_through_sql(desk_on_each: Desk) -> None:
    """CO-16: what the workers declared holds where no agent is registered; undeclared is not supported."""
    desk = desk_on_each
    server = patient(desk)
    web = desk.another()
    early = server.submit_run("go")
    with pytest.raises(errors.CapabilityNotSupported):
        web.control.pause(early)

    desk.work()
    stepping(server, early)

    assert "paused" == web.control.pause(early).state
    assert "resumed" == web.control.resume(early).state
    desk.gates.open("go")
    assert RunStatus.COMPLETED is desk.ended(server, early).status


def test_resuming_what_was_never_paused_changes_nothing(desk: Desk) -> None:
    """CO-15: better: a success without an effect; nobody is called and no event is written."""
    server = patient(desk)
    run_id = server.submit_run("go")

    assert "not_paused" == desk.asm.control.resume(run_id).state

    assert ["run_queued"] == [event.type for event in all_events(server, run_id=run_id)]
    assert [("resume", "operator", "not_paused")] == history(desk, run_id)


def test_an_agent_that_never_looks_is_not_hurt_by_a_pause(desk: Desk) -> None:
    """CO-17: declared and not kept: the wish is on record, the run goes on to its end, nothing blocks."""

    def agent(ctx: Any, given: Any) -> Any:
        desk.gates.of(given).wait(20)
        return given

    desk.asm.register("boastful", agent, capabilities=["pause"])
    server = desk.start("boastful")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)

    assert "paused" == desk.asm.control.pause(run_id).state
    desk.gates.open("x")

    run = desk.ended(server, run_id)
    assert (RunStatus.COMPLETED, None) == (run.status, run.paused_at)


@pytest.mark.parametrize("how", ["cancel", "interrupt"])
def test_a_paused_run_can_be_stopped_and_that_is_final(desk_on_each: Desk, how: str) -> None:
    """CO-10, CO-24: it leaves its rest at once; neither pause nor resume brings it back, and both are refused."""
    desk = desk_on_each
    server = patient(desk)
    desk.work()
    run_id = server.submit_run("never")
    stepping(server, run_id)
    control = desk.asm.control
    control.pause(run_id)
    resting(desk, run_id)

    getattr(control, how)(run_id)

    run = desk.ended(server, run_id)
    assert ({"cancel": "cancelled", "interrupt": "interrupted"}[how], None) == (run.status, run.paused_at)
    for ask in (control.resume, control.pause):
        with pytest.raises(errors.InvalidOperation, match="final"):
            ask(run_id)
    assert run.status == server.get_run(run_id).status
    assert [("pause", "paused"), (how, "requested"), ("resume", "refused"), ("pause", "refused")] == [
        (operation, result) for operation, _, result in history(desk, run_id)
    ]
    assert [] == all_events(server, type="went_on")


@pytest.mark.parametrize("agent", ["echo", "boom"])
def test_a_run_that_ended_by_itself_is_left_as_it_is(desk: Desk, agent: str) -> None:
    """CO-23, CO-24, CO-25: the state is the run's own; a stop succeeds without an effect, a pause is refused."""
    desk.asm.registry._specs.pop(agent)
    desk.asm.register(agent, getattr(desk, f"_{agent}"), capabilities={"pause"})
    server = desk.start(agent)
    desk.work()
    run_id = server.submit_run(1)
    run = desk.ended(server, run_id)
    before = all_events(server)

    assert (run.status, None) == state(desk, run_id)
    for ask in (desk.asm.control.cancel, desk.asm.control.interrupt):
        assert ("already_terminal", run.status) == (ask(run_id).state, ask(run_id).status)
    for refused in (desk.asm.control.pause, desk.asm.control.resume):
        with pytest.raises(errors.InvalidOperation):
            refused(run_id)

    assert before == all_events(server)
    assert run == server.get_run(run_id)


def test_a_stop_that_was_asked_for_forbids_a_pause(desk: Desk) -> None:
    """CO-24: what is on its way out is not asked to wait."""

    def agent(ctx: Any, given: Any) -> Any:
        desk.gates.of(given).wait(20)

    desk.asm.register("slow", agent, capabilities={"pause"})
    server = desk.start("slow")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)
    desk.asm.control.cancel(run_id)

    with pytest.raises(errors.InvalidOperation, match="asked to stop"):
        desk.asm.control.pause(run_id)

    assert "stopping" == state(desk, run_id)[0]
    desk.gates.open("x")
    desk.ended(server, run_id)


def test_a_pause_goes_with_the_run_to_its_next_attempt(desk_on_each: Desk) -> None:
    """A run that waits in line, or was given back, keeps its pause; it starts in its turn and rests then."""
    desk = desk_on_each
    attempts: list[int] = []

    def agent(ctx: Any, given: Any) -> Any:
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            desk.gates.of("fail").wait(20)
            raise ValueError("try again")
        waited = ctx.wait_if_paused()
        return [waited, ctx.attempt]

    desk.asm.register("retried", agent, max_attempts=2, capabilities={"pause"})
    server = desk.start("retried")
    run_id = server.submit_run(None)
    assert "paused" == desk.asm.control.pause(run_id).state
    desk.work()
    wait_until(lambda: attempts == [1], description="it started in its turn, paused as it is")
    desk.gates.open("fail")

    wait_until(lambda: attempts == [1, 2], description="it was entered again")
    resting(desk, run_id)
    desk.asm.control.resume(run_id)

    assert [True, 2] == server.await_run(run_id).output


def test_the_time_a_run_is_paused_counts(desk: Desk) -> None:
    """run_timeout goes on and ends a paused run as any other."""
    server = patient(desk)
    desk.work()
    run_id = server.submit_run("never", run_timeout=0.5)
    stepping(server, run_id)

    desk.asm.control.pause(run_id)

    assert (RunStatus.TIMEOUT, "run_timeout") == (
        desk.ended(server, run_id).status,
        (server.get_run(run_id).error or {})["code"],
    )


def test_a_coroutine_rests_without_holding_its_loop(desk: Desk) -> None:
    """`await_if_paused` lets the agent's other tasks go on, and a stop cancels it there."""
    ticks: list[str] = []

    async def agent(ctx: Any, given: Any) -> Any:
        async def tick() -> None:
            while True:
                ticks.append(ctx.run.run_id)
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        try:
            while not await ctx.await_if_paused():
                await ctx.asleep(0.01)
            return "went on"
        except asyncio.CancelledError:
            ctx.emit("cleaned_up")
            raise
        finally:
            ticking.cancel()

    desk.asm.register("loop", agent, capabilities={"pause"})
    server = desk.start("loop", max_concurrent_runs=2)
    desk.work()
    goes_on, stopped = server.submit_run(1), server.submit_run(2)
    desk.running(server, 2)

    for run_id in (goes_on, stopped):
        desk.asm.control.pause(run_id)
        resting(desk, run_id)
        seen = len(ticks)
        wait_until(lambda seen=seen: len(ticks) > seen + 5, description="its loop goes on")  # type: ignore[misc]
    desk.asm.control.resume(goes_on)
    desk.asm.control.cancel(stopped)

    assert "went on" == server.await_run(goes_on).output
    assert RunStatus.CANCELLED is desk.ended(server, stopped).status
    assert 1 == len(all_events(server, run_id=stopped, type="cleaned_up"))


def test_cancel_all_answers_for_each(desk: Desk) -> None:
    """CO-18: a receipt or the error that refused it, and one refusal hinders no other."""
    server = desk.start()
    known = [server.submit_run(number) for number in range(2)]
    unknown = new_id("run")

    answers = desk.asm.control.cancel_all([known[0], unknown, "nonsense", known[1]], by="alice")

    assert [known[0], unknown, "nonsense", known[1]] == list(answers)
    assert ["withdrawn"] * 2 == [answers[run_id].state for run_id in known]
    assert all(isinstance(answers[word], errors.RunNotFound) for word in (unknown, "nonsense"))
    assert {} == desk.asm.control.cancel_all([])


def test_a_whole_session_is_interrupted_and_only_what_is_open(desk_on_each: Desk) -> None:
    """CO-19, CO-20: better: a receipt for each open run; what had ended is left alone, and others' sessions too."""
    desk = desk_on_each
    server, other = desk.start("gate"), desk.start("gate")
    desk.work()
    done = server.submit_run("done")
    desk.gates.open("done")
    desk.ended(server, done)
    running, *waiting = [server.submit_run(f"r{number}") for number in range(3)]
    bystander = other.submit_run("by")
    desk.running(server)
    desk.running(other)

    receipts = desk.asm.control.interrupt_session(server.session_id, by="alice")

    assert {running: "requested", waiting[0]: "withdrawn", waiting[1]: "withdrawn"} == {
        run_id: receipt.state for run_id, receipt in receipts.items()
    }
    assert {StopKind.INTERRUPT} == {receipt.kind for receipt in receipts.values()}
    assert RunStatus.INTERRUPTED is desk.ended(server, running).status
    assert RunStatus.COMPLETED is server.get_run(done).status
    assert [("interrupt", "alice", "withdrawn")] == history(desk, waiting[0])
    assert [] == history(desk, done)
    assert {} == desk.asm.control.interrupt_session(server.session_id)
    assert [bystander] == other.status().in_flight_runs
    with pytest.raises(errors.SessionNotFound):
        desk.asm.control.interrupt_session("nowhere")
    desk.gates.open("by")
    desk.ended(other, bystander)


def test_the_history_outlives_the_process(desk_on_each: Desk) -> None:
    """CO-27: better: it is in SQL: another process, and one started later, read the same."""
    desk = desk_on_each
    server = desk.start()
    run_id = server.submit_run(1)
    desk.asm.control.cancel(run_id, by="alice")
    before = desk.asm.control.get_operation_history(run_id)

    desk.restart()

    assert 1 == len(before)
    assert before == desk.asm.control.get_operation_history(run_id)
    assert before == desk.another().control.get_operation_history(run_id)


def test_a_slow_agent_delays_no_other_operation(desk: Desk) -> None:
    """CO-26: better: no agent's code runs inside a control call."""

    def agent(ctx: Any, given: Any) -> None:
        ctx.on_stop(lambda: desk.gates.of("leave").wait(20))
        desk.gates.of("leave").wait(20)

    desk.asm.register("slow", agent)
    server = desk.start("slow", max_concurrent_runs=2)
    desk.work()
    runs = [server.submit_run(number) for number in range(2)]
    desk.running(server, 2)

    receipts = [desk.asm.control.interrupt(run_id) for run_id in runs]

    assert ["requested"] * 2 == [receipt.state for receipt in receipts]
    assert ["stopping"] * 2 == [state(desk, run_id)[0] for run_id in runs]
    desk.gates.open("leave")
    for run_id in runs:
        assert RunStatus.INTERRUPTED is desk.ended(server, run_id).status


@pytest.mark.parametrize("by", ["", "x" * 201, "two\nlines", None, 7])
def test_who_asks_must_be_said_in_a_line(desk: Desk, by: Any) -> None:
    """CO-21: the history is read by people: an actor is text of 1 to 200 characters."""
    run_id = desk.start().submit_run(1)
    control = desk.asm.control

    for ask in (control.cancel, control.interrupt, control.pause, control.resume, control.interrupt_session):
        with pytest.raises(errors.ValidationError, match="who asks"):
            ask(run_id, by=by)

    assert ("pending", None) == state(desk, run_id)


@pytest.mark.parametrize("capabilities", ["pause", ["two words"], [1], [""]])
def test_capabilities_are_words(desk: Desk, capabilities: Any) -> None:
    """CO-16: a string is no collection of words; a mistake is told at registration."""
    with pytest.raises(errors.ValidationError, match="collection of words"):
        AgentSessions(desk.config).register("agent", lambda ctx, given: given, capabilities=capabilities)
