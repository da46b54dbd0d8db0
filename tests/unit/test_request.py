"""What monitors see of a run's task, and what Celery's revoke and terminate mean for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.worker import state as worker_state
from celery.worker.control import Panel

from asm_celery.config import Config
from asm_celery.dispatch import OURS, TASK
from asm_celery.model import new_id
from asm_celery.runtime import Runtime
from asm_celery.states import RunStatus
from asm_celery.worker import signals as module
from asm_celery.worker.app import create_app
from asm_celery.worker.board import Board
from asm_celery.worker.children import ChildWatch
from asm_celery.worker.request import RunRequest
from tests.waiting import wait_until


class Eventer:
    """What monitors listen to."""

    enabled = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, dict[str, Any]]] = []

    def send(self, type: str, *, uuid: str, **fields: Any) -> None:
        self.sent.append((type, uuid, fields))

    @property
    def types(self) -> list[str]:
        return [type for type, _, _ in self.sent]


class Untouched:
    """A pool that nobody may ask for anything."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the pool was asked for {name!r}")


class Worker:
    """An application of ours and what its life was told, without anything that runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runtime = cast(Runtime, object())
        self.app: Celery = create_app(Config(), lambda: runtime)
        self.task = cast(Any, self.app.tasks[TASK])
        self.eventer = Eventer()
        self.cancelled: list[str] = []
        self.ended: list[tuple[str, int]] = []
        self.named: list[str] = []
        monkeypatch.setattr(module, "cancel_revoked", lambda _, task_id: self.cancelled.append(task_id))
        monkeypatch.setattr(self.task.life, "ask_to_end", lambda *claim: self.ended.append(claim))

    def request(self, task_id: str | None = None) -> RunRequest:
        """Return a request as Celery makes it of a message."""
        arguments: tuple[Any, ...] = (("run", 1, "ses", 1), {}, {})
        message = SimpleNamespace(
            headers={"id": task_id or self.task_id(), "task": TASK},
            body=arguments,
            payload=arguments,
            delivery_info={},
            properties={},
        )
        request: Any = RunRequest
        made: RunRequest = request(
            message, decoded=True, app=self.app, task=self.task, eventer=self.eventer, hostname="w@host"
        )
        return made

    def task_id(self, claim: int = 1) -> str:
        """Return the id of a claim of a new run."""
        run_id = new_id("run")
        self.named.append(run_id if claim == 1 else f"{run_id}.{claim}")
        return self.named[-1]

    def control(self, command: str, *args: Any, **arguments: Any) -> Any:
        """Have a control command executed as a worker's panel does."""
        state = SimpleNamespace(app=self.app, consumer=SimpleNamespace(pool=Untouched()))
        return Panel.data[command](state, *args, **arguments)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker's parts; what it revoked is forgotten with the test."""
    made = Worker(monkeypatch)
    yield made
    for task_id in [*made.named, "other"]:
        worker_state.revoked.pop_value(task_id)
        worker_state.requests.pop(task_id, None)


def lost() -> ExceptionInfo:
    """Return what Celery makes of a child that died."""
    try:
        raise WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL)")
    except WorkerLostError:
        return ExceptionInfo()


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (RunStatus.COMPLETED, "task-succeeded"),
        (RunStatus.FAILED, "task-failed"),
        (RunStatus.CANCELLED, "task-revoked"),
        (RunStatus.INTERRUPTED, "task-revoked"),
        (RunStatus.TIMEOUT, "task-revoked"),
        (RunStatus.PENDING, "task-retried"),
        (None, "task-succeeded"),
    ],
)
def test_monitors_show_how_the_run_ended(worker: Worker, ended: RunStatus | None, told: str) -> None:
    """And not that the task, which only carries it, went well; a spare doorbell is no failure."""
    request = worker.request()

    request.on_success((False, None if ended is None else ended.value, 0.1))

    assert [(told, request.id)] == [(type, uuid) for type, uuid, _ in worker.eventer.sent]


@pytest.mark.parametrize("ended", [*RunStatus, None])
def test_a_request_that_ended_is_not_active(worker: Worker, ended: RunStatus | None) -> None:
    """However it ended: `inspect active` must not show it for ever."""
    request = worker.request()
    worker_state.task_accepted(request)
    assert request in worker_state.active_requests

    request.on_success((False, ended and ended.value, 0.1))

    assert request not in worker_state.active_requests


def test_terminate_asks_for_the_end_of_the_claim_and_of_nothing_else(worker: Worker) -> None:
    """Celery's own would signal the pool's child, whatever that executes by now."""
    request = worker.request(worker.task_id(claim=3))
    worker_state.task_accepted(request)
    request.time_start = 1.0

    request.terminate(Untouched(), signal="SIGKILL")

    [(run_id, claim)] = worker.ended
    assert (worker.named[0], 3) == (f"{run_id}.{claim}", claim)
    # it is not over yet
    assert [] == worker.eventer.sent
    assert request in worker_state.active_requests


def test_terminate_of_a_request_that_waits_is_not_carried_out_later_by_the_pool(worker: Worker) -> None:
    """The child that takes it finds the run stopped."""
    request = worker.request()
    request.terminate(Untouched())

    request.on_accepted(cast(Any, 4711), 1.0)

    assert ["task-started"] == worker.eventer.types


def test_a_message_that_is_no_claim_ends_nothing(worker: Worker) -> None:
    """Anybody may send one."""
    worker.request("other").terminate(Untouched())

    assert [] == worker.ended


def test_a_child_that_was_ended_for_its_claim_is_told_as_revoked(worker: Worker) -> None:
    """It is what was asked for, and no failure of a task."""
    request = worker.request()
    worker_state.task_accepted(request)
    request.terminate(Untouched())

    request.on_failure(lost())

    assert ["task-revoked"] == worker.eventer.types
    assert request not in worker_state.active_requests


def test_a_child_that_died_by_itself_is_told_as_failed(worker: Worker) -> None:
    """Nobody asked for it."""
    request = worker.request()

    request.on_failure(lost())

    assert ["task-failed"] == worker.eventer.types


def test_what_ended_before_its_child_was_ended_is_told_as_it_ended(worker: Worker) -> None:
    """A run that completes in its grace has completed."""
    request = worker.request()
    request.terminate(Untouched())

    request.on_success((False, RunStatus.COMPLETED.value, 0.1))

    assert ["task-succeeded"] == worker.eventer.types


def heard(worker: Worker) -> Callable[[], bool]:
    """Say whether the last run that was named is cancelled; cancels are made in threads of their own."""
    return lambda: worker.named[-1] in worker.cancelled


def test_a_revoke_cancels_the_run(worker: Worker) -> None:
    """Also if this worker has never heard of the task: the run may wait, or run elsewhere."""
    answer = worker.control("revoke", task_id=worker.task_id(claim=2))

    wait_until(heard(worker), description="the run is cancelled")
    assert worker.named == worker.cancelled
    assert "ok" in answer
    assert worker.named[0] in worker_state.revoked


@pytest.mark.parametrize("terminate", [True, False])
def test_a_revoke_of_many_cancels_each_of_ours(worker: Worker, *, terminate: bool) -> None:
    """Tasks of others are Celery's alone."""
    ids = [worker.task_id(), "other", worker.task_id(), worker.task_id()]

    worker.control("revoke", task_id=ids, terminate=terminate)

    wait_until(lambda: len(worker.cancelled) == 3, description="three runs are cancelled")
    assert set(worker.named) == set(worker.cancelled)
    assert "other" in worker_state.revoked


def test_a_revoke_that_we_sent_cancels_nothing(worker: Worker) -> None:
    """The run is stopped already; Celery is told, and the claim is ended."""
    ours, theirs = worker.request(), worker.task_id()
    worker_state.requests[ours.id] = ours

    worker.control("revoke", task_id=ours.id, terminate=True, signal="SIGTERM", **{OURS: True})
    worker.control("revoke", task_id=theirs)

    wait_until(heard(worker), description="the other run is cancelled")
    assert [theirs] == worker.cancelled
    assert [(ours.id, 1)] == worker.ended
    assert ours.id in worker_state.revoked


def test_terminate_is_a_revoke_that_ends_the_claim_too(worker: Worker) -> None:
    """By name or by place, as Celery's own takes its arguments."""
    by_name, by_place = worker.request(), worker.request()
    worker_state.requests.update({by_name.id: by_name, by_place.id: by_place})

    worker.control("terminate", signal="SIGKILL", task_id=by_name.id)
    worker.control("terminate", "SIGKILL", [by_place.id])

    wait_until(lambda: len(worker.cancelled) == 2, description="both runs are cancelled")
    assert {by_name.id, by_place.id} == set(worker.cancelled)
    assert [(by_name.id, 1), (by_place.id, 1)] == worker.ended


def test_in_a_prefork_worker_a_revoke_is_said_to_a_child(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The main process has no connection; where no child can hear, the log says what to do."""
    board = Board(1)
    monkeypatch.setattr(worker.task.life, "_watch", ChildWatch(board, silence_s=10.0))
    worker.control("revoke", task_id=[worker.task_id(), "other"])
    assert {"do": "cancel", "task_id": worker.named[0]} == board.hear()

    board._incoming.close()
    worker.control("revoke", task_id=worker.task_id())

    assert f"the revoke of {worker.named[-1]} was not heard by any child: use asm cancel" in caplog.text
    assert [] == worker.cancelled
    board._outgoing.close()
    board._locks.close()


def test_an_application_without_our_task_keeps_its_revoke() -> None:
    """Importing us changes nothing for others."""
    app = Celery("theirs", broker="memory://", backend="disabled://", set_as_current=False)
    state = SimpleNamespace(app=app, consumer=SimpleNamespace(pool=Untouched()))

    answer = Panel.data["revoke"](state, task_id="other")
    worker_state.revoked.pop_value("other")

    assert {"ok": "tasks {'other'} flagged as revoked"} == answer
