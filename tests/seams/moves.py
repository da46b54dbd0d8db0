"""Every move, each with a scene: ``arrange(stage)`` returns the call that is broken."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from asm_celery.errors import SessionNotFound
from asm_celery.model import Event, Session
from asm_celery.moves.restore import Restore
from asm_celery.states import RunStatus, SessionStatus, StopKind
from tests.seams.stage import PAUSABLE, VICTIM, Stage

Act = Callable[[], object]
Arrange = Callable[[Stage], Act]

_ERROR: Final = {"code": "agent_error", "message": "boom", "details": {}}


def submit(stage: Stage) -> Act:
    """A second run of a session."""
    session, _ = stage.line(1)
    return lambda: stage.submit(session)


def submit_with_key(stage: Stage) -> Act:
    """A run with an idempotency key, which the caller submits again to another process."""
    session, _ = stage.line(1)

    def again() -> None:
        known = stage.stored(session) - set(stage.accepted[:1])
        repeated = stage.rescuer.world.submit(session, "x", idempotency_key="key")
        assert known <= {repeated}, f"{known} and then {repeated} for one key"
        assert 2 == len(stage.stored(session))

    stage.afterwards.append(again)
    return lambda: stage.submit(session, value="x", idempotency_key="key")


def submit_and_interrupt(stage: Stage) -> Act:
    """A run that stops the one that executes and withdraws the one that waits."""
    session, _ = stage.running()
    return lambda: stage.submit(session, on_busy="interrupt")


def start(stage: Stage) -> Act:
    """The answer to a doorbell."""
    stage.line()
    bell = stage.world.bells.rung.pop()
    return lambda: stage.world.try_start(bell, executor=VICTIM)


def start_of_an_attempt_to_repeat(stage: Stage) -> Act:
    """The answer to a doorbell of a run with two attempts."""
    stage.line(max_attempts=2)
    bell = stage.world.bells.rung.pop()
    return lambda: stage.world.try_start(bell, executor=VICTIM)


def start_too_early(stage: Stage) -> Act:
    """The answer to a doorbell that Redis should not have rung: SQL refuses, the lease is given back."""
    _, [first, _] = stage.line()
    # Redis forgets the first run, and so leases the second
    [bell] = stage.rescuer.world.runtime.queue.finish(first).leases
    return lambda: stage.world.try_start(bell, executor=VICTIM)


def start_without_its_agent(stage: Stage) -> Act:
    """The answer to a doorbell of a run whose agent this process lacks."""
    stage.line()
    bell = stage.world.bells.rung.pop()
    return lambda: stage.world.runtime.coordinator.start(
        bell.run_id, bell.claim, VICTIM, "nonce", knows=lambda name: None
    )


def append(stage: Stage) -> Act:
    """Two events of an attempt."""
    session, claim = stage.running()
    events = [
        Event.new(
            "message_streamed", session.session_id, run_id=claim.run.run_id, attempt=1, data={"n": number}
        )
        for number in (1, 2)
    ]
    return lambda: stage.world.runtime.coordinator.append(claim, events, 0)


def _finish(status: RunStatus, **options: Any) -> Arrange:
    def arrange(stage: Stage) -> Act:
        _, claim = stage.running(**options)
        error = _ERROR if status is RunStatus.FAILED else None
        return lambda: stage.world.finish(claim, status, error=error)

    return arrange


def finish_stopped(stage: Stage) -> Act:
    """The end of a run that was asked to stop."""
    _, claim = stage.running()
    stage.world.runtime.stopper.request(claim.run.run_id, StopKind.INTERRUPT)
    return lambda: stage.world.finish(claim, RunStatus.INTERRUPTED)


def finish_timed_out(stage: Stage) -> Act:
    """The end of a run that executed for too long."""
    _, claim = stage.running(run_timeout=60)
    stage.world.runtime.stopper.request(claim.run.run_id, StopKind.TIMEOUT, reason="run_timeout", by="timer")
    return lambda: stage.world.finish(claim, RunStatus.TIMEOUT)


def finish_at_a_shutdown(stage: Stage) -> Act:
    """The end of a run whose worker must go, and which may not be entered again."""
    _, claim = stage.running()
    error = {"code": "worker_shutdown", "message": "the worker was told to stop", "details": {}}
    return lambda: stage.world.finish(claim, RunStatus.INTERRUPTED, error=error)


def _stop(kind: StopKind, place: str) -> Arrange:
    def arrange(stage: Stage) -> Act:
        if place == "running":
            _, claim = stage.running()
            run_id = claim.run.run_id
        else:
            _, [leased, waiting] = stage.line()
            run_id = leased if place == "leased" else waiting
        return lambda: stage.world.runtime.stopper.request(run_id, kind)

    return arrange


def stop_session(stage: Stage) -> Act:
    """The interruption of all that is open."""
    session, _ = stage.running()
    return lambda: stage.world.runtime.control.stop_session(session.session_id, by="test")


def _move(target: SessionStatus, *before: SessionStatus) -> Arrange:
    def arrange(stage: Stage) -> Act:
        session = stage.session()
        control = stage.world.runtime.control
        if target is not SessionStatus.COMPLETED:
            stage.submit(session)
        for state in before:
            control.move_session(session.session_id, state)
        return lambda: control.move_session(session.session_id, target)

    return arrange


def delete(stage: Stage) -> Act:
    """The removal of a completed session, which its caller asks for once more."""
    session = stage.world.session()
    control = stage.world.runtime.control
    control.move_session(session.session_id, SessionStatus.COMPLETED)

    def remove() -> None:
        with suppress(SessionNotFound):
            control.delete_session(session.session_id)

    return remove


def pause_a_run(stage: Stage) -> Act:
    """The pause of a run that executes."""
    session = stage.world.runtime.submission.start_session(Session.new(PAUSABLE))
    stage.sessions.append(session)
    stage.submit(session)
    claim = stage.world.start(executor=VICTIM)
    return lambda: stage.world.runtime.pauser.pause(claim.run.run_id, by="test")


def hold(stage: Stage) -> Act:
    """The hold of the installation, which gives back what was not begun."""
    stage.line()
    return lambda: stage.world.runtime.holding.move(True, by="test")


def release(stage: Stage) -> Act:
    """Its end."""
    stage.world.runtime.holding.move(True, by="test")
    stage.line()
    return lambda: stage.world.runtime.holding.move(False, by="test")


def take_over(stage: Stage) -> Act:
    """The judgement of a silent attempt by this process, which dies in it."""
    stage.running(max_attempts=2)
    [silent] = stage.world.runtime.queue.observe()
    return lambda: stage.world.runtime.recovery.take_over(silent)


def bury(stage: Stage) -> Act:
    """The burial of an executor that was seen to die."""
    stage.running()
    return lambda: stage.world.runtime.recovery.bury(VICTIM)


def beat(stage: Stage) -> Act:
    """A beat that finds an attempt nobody executes any more, and one that Redis has lost."""
    stage.running()
    _, held = stage.running()
    stage.world.runtime.recovery.beat(VICTIM, {held.run.run_id: 1})
    stage.world.runtime.queue.finish(held.run.run_id)
    return lambda: stage.world.runtime.recovery.beat(VICTIM, {held.run.run_id: 1})


def restore(stage: Stage) -> Act:
    """The restore of an empty Redis, with runs that execute and runs that wait."""
    stage.running()
    stage.line()
    stage.rescuer.wipe()
    runtime = stage.world.runtime
    return lambda: Restore(stage.world.config, runtime.log, runtime.promoter).run_if_cold()


def compare(stage: Stage) -> Act:
    """The comparison, with a run that Redis does not know and one that it should not."""
    _, [_, forgotten] = stage.line()
    _, claim = stage.running()
    queue = stage.rescuer.world.runtime.queue
    queue.finish(forgotten)
    with stage.rescuer.world.runtime.log.transaction() as tx:
        run_id, session_id = claim.run.run_id, claim.run.session_id
        tx.runs.finish(run_id, claim.number, RunStatus.COMPLETED)
        tx.append(session_id, [Event.new("run_completed", session_id, run_id=run_id, attempt=1)])
    runtime = stage.world.runtime
    return runtime.comparison.compare


def repair(stage: Stage) -> Act:
    """A whole repair pass, over a doorbell nobody answered and a run that waited too long."""
    stage.line()
    session, _ = stage.running()
    stage.submit(session, queue_timeout=0.001)
    stage.rescuer.pass_time()
    return stage.world.runtime.recovery.repair


def announce(stage: Stage) -> Act:
    """The first announcement of a worker: its agents, the limits, its capacity."""
    stage.line()
    return lambda: stage.world.announce(executor=VICTIM)


def leave(stage: Stage) -> Act:
    """The last word of an executor."""
    stage.world.announce(executor=VICTIM)
    queues = [stage.world.config.default_queue]
    return lambda: stage.world.runtime.recovery.leave(VICTIM, queues)


def limiter_acquire(stage: Stage) -> Act:
    """A caller's own slot."""
    return lambda: stage.world.runtime.limiter.acquire_run_slot("ses_own", "run_own")


def limiter_release(stage: Stage) -> Act:
    """Its return, which lets a run start."""
    limiter = stage.world.runtime.limiter
    limiter.set_limits(max_parallel_runs=1)
    limiter.acquire_run_slot("ses_own", "run_own")
    stage.line()
    stage.afterwards.append(lambda: stage.rescuer.world.runtime.limiter.set_limits(max_parallel_runs=8))
    return lambda: limiter.release_run_slot("run_own")


def set_limits(stage: Stage) -> Act:
    """A change of the limits, which lets runs start."""
    limiter = stage.world.runtime.limiter
    limiter.set_limits(max_parallel_runs=1)
    stage.line()
    stage.line()
    return lambda: limiter.set_limits(max_parallel_runs=8)


def append_events(stage: Stage) -> Act:
    """A caller's own event of a session, written again under its id."""
    session, _ = stage.line()
    event = Event.new("note", session.session_id)
    return lambda: stage.world.runtime.submission.append_events(session, [event])


MOVES: Final[dict[str, Arrange]] = {
    "submit": submit,
    "submit with a key": submit_with_key,
    "submit and interrupt": submit_and_interrupt,
    "start": start,
    "start, two attempts": start_of_an_attempt_to_repeat,
    "start too early": start_too_early,
    "start without its agent": start_without_its_agent,
    "append": append,
    "finish completed": _finish(RunStatus.COMPLETED),
    "finish failed": _finish(RunStatus.FAILED),
    "finish failed, to be repeated": _finish(RunStatus.FAILED, max_attempts=2),
    "finish handed back": _finish(RunStatus.PENDING),
    "finish timed out": finish_timed_out,
    "finish at a shutdown": finish_at_a_shutdown,
    "finish stopped": finish_stopped,
    "cancel waiting": _stop(StopKind.CANCEL, "waiting"),
    "cancel leased": _stop(StopKind.CANCEL, "leased"),
    "cancel running": _stop(StopKind.CANCEL, "running"),
    "interrupt running": _stop(StopKind.INTERRUPT, "running"),
    "interrupt a session": stop_session,
    "pause": _move(SessionStatus.PAUSED),
    "resume": _move(SessionStatus.ACTIVE, SessionStatus.PAUSED),
    "drain": _move(SessionStatus.DRAINING),
    "complete": _move(SessionStatus.COMPLETED),
    "delete": delete,
    "pause a run": pause_a_run,
    "hold": hold,
    "release": release,
    "take over": take_over,
    "bury": bury,
    "beat": beat,
    "restore": restore,
    "compare": compare,
    "repair": repair,
    "announce": announce,
    "leave": leave,
    "limiter acquire": limiter_acquire,
    "limiter release": limiter_release,
    "set limits": set_limits,
    "append a caller's events": append_events,
}
