"""The Celery door under nonsense: real workers, and a broker into which anybody writes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings

from asm_celery import AgentSessions
from asm_celery.states import RunStatus
from asm_celery.worker.lines import MARK
from asm_celery.worker.remote import REFUSED
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.doors.posting import BUILT_IN, CRIES, broadcasts, doorbell, forger, messages
from tests.waiting import wait_until
from tests.workers import WorkerProcess

pytestmark = pytest.mark.either_database
FULL = bool(os.environ.get("ASM_TEST_FULL"))
# for each pool, and at full size on each of two databases
SIZE = 500 if FULL else 50
MOST_BYTES = 300 << 20


def peak_bytes(pid: int) -> int:
    """Return the most memory a living process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"process {pid} is gone")


def drained(client: redis.Redis, name: str) -> bool:
    """Say whether the workers have taken all that was posted."""
    return client.llen(name) == 0


@pytest.mark.timeout(120 if not FULL else 1800)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_no_message_and_no_command_hurts_a_worker(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger, gate: Gate, pool: str
) -> None:
    """Nothing is executed, what runs goes on, the process stays the same and small, and the next run starts."""
    started = worker(pool=pool, concurrency=2)
    server, paused = asm.start_session("gate"), asm.start_session("echo")
    ended = asm.start_session("echo").execute_run("x", timeout=60).run_id
    running = server.submit_run({"gate": str(gate), "value": "mine"})
    paused.pause()
    waiting = paused.submit_run("y")
    wait_until(lambda: ledger.entered() == [ended, running], description="one ended, one executes")
    name = f"{asm.config.keys.root}celery:{asm.config.default_queue}"

    with contextlib.closing(redis.Redis.from_url(asm.config.redis_url)) as client:

        @settings(
            max_examples=SIZE,
            deadline=None,
            database=None,
            derandomize=not FULL,
            suppress_health_check=list(HealthCheck),
        )
        @given(messages([ended, running, waiting]))
        def post(message: bytes) -> None:
            client.lpush(name, message)

        post()
        told = forger(asm)
        for command, arguments in broadcasts([ended]):
            told.control.broadcast(command, arguments=arguments)
        for channel in client.pubsub_channels("*pidbox*"):
            for cry in CRIES:
                client.publish(channel, cry)
        wait_until(lambda: drained(client, name), description="all was taken", timeout=60 + 3 * SIZE)
    gate.open()

    assert "mine" == server.await_run(running, timeout=60).output
    assert "good" == asm.start_session("echo").execute_run("good", timeout=60).output
    assert [ended, running] == ledger.entered()[:2]
    assert 3 == len(ledger.entered())
    assert (1, RunStatus.PENDING) == (server.get_run(running).attempt, asm.get_run(waiting).status)
    is_same(started)


def is_same(started: WorkerProcess) -> None:
    """It is the process that was started, it never gave up, and it needed no more memory than it is worth."""
    assert not started.has_ended
    assert peak_bytes(started.pid) < MOST_BYTES
    assert "Unrecoverable error" not in started.log
    assert "exited with" not in started.log


def test_a_worker_ends_and_changes_for_no_remote_command(asm: AgentSessions, worker: StartWorker) -> None:
    """Each that could is refused, and told; those that look are answered."""
    started = worker(pool="threads")
    app = forger(asm)
    commands = [command for command in broadcasts([]) if command[0] in REFUSED]

    answers = [
        answer
        for name, arguments in commands
        for answer in app.control.broadcast(name, arguments=arguments, reply=True, limit=1, timeout=10)
    ]

    assert len(commands) == len(answers)
    assert all("error" in told for answer in answers for told in answer.values())
    assert app.control.inspect(timeout=10, limit=1).ping()
    wait_until(lambda: started.log.count("was refused") == len(commands), description="each was told")
    assert "good" == asm.start_session("echo").execute_run("good", timeout=60).output


def test_built_in_tasks_do_not_exist(asm: AgentSessions, worker: StartWorker, ledger: Ledger) -> None:
    """A chord, a map or a chunk of our own task is a message of an unknown task."""
    started = worker(pool="threads")
    app = forger(asm)
    run_id = asm.start_session("echo").execute_run("x", timeout=60).run_id
    registered = app.control.inspect(timeout=10, limit=1).registered()

    for name in BUILT_IN:
        app.send_task(name, args=[{"task": "asm.run"}, [[run_id, 1, "s", 1]]], retry=False)

    assert [["asm.run"]] == list((registered or {}).values())
    wait_until(
        lambda: all(f"'{name}'" in started.log for name in BUILT_IN), description="each was thrown away"
    )
    assert [run_id] == ledger.entered()


def test_a_doorbell_may_not_bring_anything_along(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger
) -> None:
    """Limits of time, a time to begin, a name and tasks to follow are not heeded; what it rings for is run."""
    started = worker(pool="prefork", concurrency=1)
    app = forger(asm)
    paused = asm.start_session("work")
    paused.pause()
    run_id = paused.submit_run(0.5)
    more = {"time_limit": 0.01, "soft_time_limit": 0.01, "eta": None, "shadow": "a\nERROR forged\x1b[2J"}

    app.send_task("asm.run", args=doorbell(run_id, 1, "s", 1)[0], retry=False, **more)
    app.send_task("asm.run", args=(run_id, 1, "s", 1), retry=False, countdown=3600)
    app.send_task("asm.run", args=(run_id, 1, "s", 1), retry=False, link=app.signature("os.system", ["true"]))
    wait_until(lambda: started.log.count("no such lease") == 2, description="two were dropped as spare")
    paused.resume()

    assert 0.5 == paused.await_run(run_id, timeout=60).output
    wait_until(lambda: "is no doorbell" in started.log, description="the one with a follower was told")
    assert "os.system" not in started.log.replace("dropped what is no doorbell", "", 1).split("body", 1)[0]
    assert "forged" not in started.log


def test_nothing_a_user_says_makes_a_line_of_the_log(asm: AgentSessions, worker: StartWorker) -> None:
    """Each line of a worker's log begins as Celery's lines do or has our mark; nothing moves the cursor."""
    started = worker(pool="threads", loglevel="DEBUG")
    forged = "x\n[2026-01-01 00:00:00,000: ERROR/MainProcess] forged\x1b[31m\r\x08 %s %(name)s {0}"
    server = asm.start_session("fail", metadata={"a": forged})
    app = forger(asm)

    server.cancel_run(server.submit_run(forged, metadata={"b": forged}), wait=True, timeout=60)
    app.send_task("asm.run", args=(forged, 1, forged, 1), retry=False)
    app.send_task(f"no.{forged}", args=(forged,), task_id=forged, retry=False)
    app.control.broadcast("revoke", arguments={"task_id": forged})
    app.control.broadcast(forged)

    wait_until(lambda: started.log.count("forged") >= 4, description="it was told of")
    begun = started.log[started.log.index(" ready.") :].splitlines()
    assert [] == [line for line in begun[1:] if "forged" in line and line.startswith("[2026-01-01")]
    assert any(line.startswith(MARK) or "\\n" in line for line in begun)
    assert "\x1b" not in started.log[started.log.index(" ready.") :]
