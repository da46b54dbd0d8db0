"""Messages that anybody who reaches the broker may send: told once, nothing executed, nobody hurt."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from asm_celery import AgentSessions, Config
from asm_celery.model import new_id
from asm_celery.states import RunStatus
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.doors.posting import forger
from tests.waiting import wait_until

pytestmark = pytest.mark.either_database

TOLD = "dropped what is no doorbell"
SPARE = "no such lease waits"


def post(app: Celery, body: Any, headers: dict[str, Any], **properties: Any) -> None:
    """Put a message on the workers' queue as it is, past all of Celery's own forms."""
    with app.connection_for_write() as connection:
        producer = connection.Producer(auto_declare=True)
        producer.publish(
            body,
            routing_key=app.conf.task_default_queue,
            declare=[app.amqp.queues[app.conf.task_default_queue]],
            headers=headers,
            **properties,
        )


@pytest.fixture
def other_url(sqlite_file: Path, tmp_path: Path) -> str:
    """The database of another installation."""
    return f"sqlite:///{shutil.copy(sqlite_file, tmp_path / 'other.db')}"


NONSENSE: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("no arguments", (), {}),
    ("too few", ("run",), {}),
    ("too many", (new_id("run"), 1, "s", 1, "more"), {}),
    ("an id that is none", ("../../etc/passwd", 1, "s", 1), {}),
    ("an id that is a key", ("*", 1, "s", 1), {}),
    ("an id of another type", ({"run": 1}, 1, "s", 1), {}),
    ("a claim in words", (new_id("run"), "1", "s", 1), {}),
    ("no claim", (new_id("run"), None, "s", 1), {}),
    ("a negative claim", (new_id("run"), -1, "s", 1), {}),
    ("a claim without end", (new_id("run"), 10**30, "s", 1), {}),
    ("a claim that is true", (new_id("run"), True, "s", 1), {}),
    ("a version in words", (new_id("run"), 1, "s", "1"), {}),
    ("further names", (new_id("run"), 1, "s", 1), {"agent": "os.system"}),
    ("names instead of places", (), {"run_id": new_id("run"), "claim": 1, "session_id": "s", "version": 1}),
]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_nonsense_is_told_once_and_the_worker_lives_on(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger, pool: str
) -> None:
    """Wrong number, types or values of the arguments: a line each, and not one traceback."""
    started = worker(pool=pool, concurrency=2)
    app = forger(asm)

    for _, given, named in NONSENSE:
        app.send_task("asm.run", args=given, kwargs=named, retry=False)

    wait_until(lambda: started.log.count(TOLD) == len(NONSENSE), description="each was told")
    assert "x" == asm.start_session("echo").execute_run("x", timeout=30).output
    assert len(NONSENSE) == started.log.count(TOLD)
    assert "Traceback" not in started.log
    assert 1 == len(ledger.entered())


def test_a_doorbell_of_a_later_release_asks_for_an_upgrade(asm: AgentSessions, worker: StartWorker) -> None:
    """A format that this worker does not know is not guessed at."""
    started = worker(pool="threads")
    run_id = new_id("run")

    forger(asm).send_task("asm.run", args=(run_id, 1, "s", 99, {"what": "ever"}), retry=False)

    wait_until(lambda: "upgrade this worker" in started.log, description="it was told")
    assert 1 == started.log.count("upgrade this worker")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_doorbells_for_what_may_not_run_start_nothing(
    asm: AgentSessions, config: Config, other_url: str, worker: StartWorker, ledger: Ledger, pool: str
) -> None:
    """Unknown, ended, paused, of another installation, of another claim than its own: each is dropped."""
    started = worker(pool=pool, concurrency=2)
    server, paused = asm.start_session("echo"), asm.start_session("echo")
    ended = server.execute_run("x", timeout=30).run_id
    paused.pause()
    waiting = paused.submit_run("y")
    changes = {"namespace": f"{config.namespace}x", "database_url": other_url}
    with AgentSessions(config.model_copy(update=changes)) as other:
        elsewhere = other.start_session("echo").submit_run("z")
        app = forger(asm)
        messages = [
            (new_id("run"), 1, server.session_id, 1),
            (ended, 1, server.session_id, 1),
            (ended, 2, server.session_id, 1),
            (waiting, 1, server.session_id, 1),
            (waiting, 7, paused.session_id, 1),
            (elsewhere, 1, server.session_id, 1),
        ]

        for given in messages:
            app.send_task("asm.run", args=given, task_id=str(uuid.uuid4()), retry=False)

        wait_until(lambda: started.log.count(SPARE) == len(messages), description="each was dropped")
        assert [ended] == ledger.entered()
        assert RunStatus.COMPLETED is server.get_run(ended).status
        assert [waiting] == paused.status().queued_runs
        assert RunStatus.PENDING is other.get_run(elsewhere).status
    paused.resume()
    assert "y" == paused.await_run(waiting, timeout=30).output


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_doorbell_with_a_later_claim_hurts_no_run(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger, pool: str
) -> None:
    """What executes keeps its claim: only a claim that was committed takes it away."""
    started = worker(pool=pool, concurrency=4)
    server = asm.start_session("gate")
    run_id = server.submit_run({"gate": str(gate), "value": "mine"})
    wait_until(lambda: ledger.entered() == [run_id], description="it executes")
    app = forger(asm)

    own = server.get_run(run_id).claims
    # the second repeats the doorbell of what executes, and is told only where another child hears it; one at
    # a time, because of several at once the latest may answer for all
    for claim in (own + 1, own, own + 2, 99):
        app.send_task("asm.run", args=(run_id, claim, server.session_id, 1), retry=False)
        told = f"run={run_id} claim={claim} dropped: {SPARE}"
        wait_until(
            lambda told=told, claim=claim: claim == own or told in started.log, description="it was dropped"
        )  # type: ignore[misc]
    gate.open()

    assert "mine" == server.await_run(run_id, timeout=30).output
    assert ([run_id], own) == (ledger.entered(), server.get_run(run_id).claims)


def test_a_run_that_was_rung_for_with_a_later_claim_can_be_stopped(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """The forged attempt is forgotten, and the real one is still known by its process."""
    started = worker(pool="threads", concurrency=4)
    server = asm.start_session("gate")
    run_id = server.submit_run({"gate": str(gate)})
    wait_until(lambda: ledger.entered() == [run_id], description="it executes")
    own = server.get_run(run_id).claims
    forger(asm).send_task("asm.run", args=(run_id, own + 1, server.session_id, 1), retry=False)
    wait_until(lambda: SPARE in started.log, description="it was dropped")

    server.cancel_run(run_id, wait=True, timeout=30)

    assert RunStatus.CANCELLED is server.get_run(run_id).status


def test_what_is_no_task_at_all_is_thrown_away(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger
) -> None:
    """No JSON, a pickle, no headers, an unknown task: Celery says so, and the next run starts."""
    started = worker(pool="threads")
    app = forger(asm)
    task = {"task": "asm.run", "id": str(uuid.uuid4()), "lang": "py"}

    post(app, b"{not json", task, content_type="application/json", content_encoding="utf-8")
    post(app, b"\x80\x04N.", task, content_type="application/x-python-serialize", content_encoding="binary")
    post(app, json.dumps({"hello": "world"}), {}, content_type="application/json", content_encoding="utf-8")
    app.send_task("os.system", args=["true"], retry=False)

    assert "x" == asm.start_session("echo").execute_run("x", timeout=30).output
    for words in ("DecodeError", "Refusing to deserialize", "Received and deleted", "os.system"):
        wait_until(lambda words=words: words in started.log, description=f"{words} was told")  # type: ignore[misc]
    assert 1 == len(ledger.entered())
