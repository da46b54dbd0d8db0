"""The hold of the whole installation: nothing new starts anywhere, what runs goes on, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

import pytest
import redis

from asm_celery import AgentSessions, Config, SessionServer, errors
from asm_celery.aio import AsyncAgentSessions
from asm_celery.cli.program import run as asm_command
from asm_celery.states import SessionStatus
from tests.acceptance.command import Answer
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.conftest import environment
from tests.history import anomalies
from tests.waiting import wait_until

pytestmark = pytest.mark.either_database

Say = Callable[..., Answer]


@pytest.fixture
def say(config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Say]:
    """The command, in this process."""
    handlers = logging.getLogger().handlers
    for name, value in environment(config).items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> Answer:
        capsys.readouterr()
        code = int(asm_command(list(arguments)))
        said = capsys.readouterr()
        return Answer(code=code, out=said.out, err=said.err)

    yield call
    logging.getLogger().handlers = handlers


def held_back(asm: AgentSessions, servers: list[SessionServer], runs: list[str]) -> None:
    """See a worker's repair loop come by several times, and start none of these runs."""
    turn = f"{asm.config.keys.root}comparing"
    with contextlib.closing(redis.Redis.from_url(asm.config.redis_url)) as client:
        for _ in range(3):
            client.delete(turn)
            wait_until(lambda: client.exists(turn), description="a worker begins to compare")
    waiting = {run_id for server in servers for run_id in server.status().queued_runs}
    assert set(runs) <= waiting


def test_nothing_starts_while_the_installation_is_held(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """What runs goes on, runs are accepted, sessions keep their states; released, all start in their order."""
    worker(pool="threads", concurrency=4)
    busy, idle, paused = (asm.start_session("gate") for _ in range(3))
    running, *waiting = [busy.submit_run({"gate": str(gate), "value": number}) for number in range(3)]
    wait_until(lambda: busy.status().in_flight_runs == [running], description="the first run runs")
    paused.pause()

    hold = asm.control.hold(by="alice")
    later = [server.submit_run({"gate": str(gate)}) for server in (idle, paused, busy)]
    gate.open()
    wait_until(lambda: busy.get_run(running).is_terminal, description="what ran ends")
    held_back(asm, [busy, idle, paused], [*waiting, *later])

    assert (True, "alice") == (hold.is_held, hold.by)
    assert asm.control.hold(by="bob") == hold == asm.control.get_hold()
    assert [running] == ledger.entered()
    assert SessionStatus.ACTIVE is idle.status().status
    with pytest.raises(errors.DrainTimeout, match="held by alice"):
        idle.drain(timeout=0)
    with pytest.raises(errors.DrainTimeout, match="held by alice") as left:
        asm.control.drain(timeout=0)
    assert ({*waiting, *later}, []) == (set(left.value.queued), left.value.in_flight)

    assert not asm.control.release(by="bob").is_held
    for server in (busy, idle):
        server.drain(timeout=30)
    assert [later[1]] == paused.status().queued_runs, "a session paused by itself stays so"
    paused.resume()
    asm.control.drain(timeout=30)
    assert [] == anomalies(busy.get_events(limit=1000), slots=1, submitted=[running, *waiting, later[2]])


def test_the_hold_survives_the_loss_of_redis_and_of_every_worker(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """Redis is emptied and the workers are new: the restore opens the gate, and still nothing starts."""
    gate.open()
    first = worker(pool="threads", concurrency=2)
    asm.control.hold(by="alice")
    servers = [asm.start_session("gate") for _ in range(3)]
    runs = [server.submit_run({"gate": str(gate)}) for server in servers]

    first.kill()
    with contextlib.closing(redis.Redis.from_url(config.redis_url)) as client:
        client.flushall()
        worker(pool="threads", concurrency=2)
        wait_until(
            lambda: client.get(f"{config.keys.root}gate") is not None, description="the gate is open again"
        )
    held_back(asm, servers, runs)

    assert asm.control.get_hold().is_held
    assert [] == ledger.entered()
    asm.control.release()
    asm.control.drain(timeout=30)
    assert sorted(runs) == sorted(ledger.entered())


def test_a_hold_that_redis_did_not_hear_of_is_told_by_the_repair_loop(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """The setting is written and its process dies: from the next comparison on it holds, and so for a release."""
    gate.open()
    worker(pool="threads", concurrency=2)
    server = asm.start_session("gate")
    wait_until(lambda: server.execute_run({"gate": str(gate)}, timeout=30), description="it works")
    deaf = AgentSessions(
        config.model_copy(update={"redis_url": "redis://127.0.0.1:1/0", "connect_timeout_s": 0.3})
    )
    with deaf, contextlib.closing(redis.Redis.from_url(config.redis_url)) as client:
        settings = f"{config.keys.root}settings"

        assert deaf.control.hold(by="alice").is_held
        wait_until(lambda: client.hget(settings, "hold") == b"held", description="Redis was told")
        run_id = server.submit_run({"gate": str(gate)})
        held_back(asm, [server], [run_id])
        assert not deaf.control.release(by="alice").is_held

        server.await_run(run_id, timeout=30)
    assert run_id == ledger.entered()[-1]


def test_an_operator_holds_and_releases_from_the_command_line(
    asm: AgentSessions, worker: StartWorker, gate: Gate, say: Say
) -> None:
    """``asm pause|resume|drain --all``: the answers name who and what; ``asm status`` shows the hold."""
    gate.open()
    worker(pool="threads", concurrency=2)
    server = asm.start_session("gate")
    free = say("status")

    paused = say("--json", "pause", "--all")
    run_id = server.submit_run({"gate": str(gate)})
    shown, told = say("status"), say("--json", "status")
    checks = {check["name"]: check for check in say("--json", "doctor").objects}
    late = say("drain", "--all", "--timeout", "0.1")
    closing = say("drain", "--all", "--no-accept")
    neither, both = say("pause"), say("resume", "--all", server.session_id)
    resumed = say("resume", "--all")
    drained = say("drain", "--all", "--timeout", "30")

    assert "held" not in free.out
    assert (0, "hold", True) == (paused.code, paused.object["object"], paused.object["is_held"])
    assert "@" in paused.object["by"]
    assert f"held by {paused.object['by']}" in shown.out
    assert told.objects[-1]["hold"]["is_held"]
    assert ("warn", True) == (checks["hold"]["level"], "held by" in checks["hold"]["message"])
    assert (124, True) == (late.code, "held by" in late.err)
    assert (2, 2, 2) == (closing.code, neither.code, both.code)
    assert "name one, or say --all" in neither.err
    assert (0, "not held: what waits starts\n") == (resumed.code, resumed.out)
    assert (0, "nothing runs or waits\n") == (drained.code, drained.out)
    assert server.get_run(run_id).is_terminal


def test_a_coroutine_holds_and_drains_the_installation(asm: AgentSessions, config: Config) -> None:
    """The async face has the same verbs and the same errors."""

    async def main() -> None:
        async with AsyncAgentSessions(config) as sessions:
            await sessions.control.drain(timeout=0)
            assert (await sessions.control.hold(by="alice")).is_held
            server = await sessions.start_session("gate")
            run_id = await server.submit_run("x")
            with pytest.raises(errors.DrainTimeout, match="held by alice"):
                await sessions.control.drain(timeout=0.1)
            assert not (await sessions.control.release(by="alice")).is_held
            assert "alice" == (await sessions.control.get_hold()).by
            await server.cancel_run(run_id)

    asyncio.run(main())


def test_holds_from_many_sides_leave_one_truth(asm: AgentSessions, config: Config) -> None:
    """Each change is a compare-and-set: versions have no gap, and Redis says what SQL says at the end."""

    def turn(number: int) -> None:
        with AgentSessions(config) as other:
            (other.control.hold if number % 2 else other.control.release)(by=f"p{number}")

    async def all_at_once() -> None:
        await asyncio.gather(*(asyncio.to_thread(turn, number) for number in range(8)))

    asyncio.run(all_at_once())

    hold = asm._runtime().holding.tell()
    with contextlib.closing(redis.Redis.from_url(config.redis_url)) as client:
        told = client.hmget(f"{config.keys.root}settings", "hold", "hold_version")
    assert [b"held" if hold.is_held else b"open", str(hold.version).encode()] == told
    assert 1 <= hold.version <= 8


def test_a_lease_that_nobody_has_begun_is_given_back(asm: AgentSessions) -> None:
    """Its doorbell is spare then, so a run whose message is on its way does not start either."""
    runtime = asm._runtime()
    runtime.recovery.announce("executor", "worker", 1, [asm.config.default_queue])
    server = asm.start_session("gate")
    run_id = server.submit_run("x")

    asm.control.hold()

    assert not runtime.queue.begin(run_id, 1, "executor", "nonce")
    asm.control.release()
    assert runtime.queue.begin(run_id, 1, "executor", "nonce")
    server.cancel_run(run_id)


def test_states_of_sessions_survive_the_loss_of_redis(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """Redis is emptied while one session is paused and one closed: the restore brings both states back."""
    gate.open()
    worker(pool="threads", concurrency=2)
    paused, closed, free = (asm.start_session("gate") for _ in range(3))
    paused.pause()
    waits = paused.submit_run({"gate": str(gate)})
    closed.drain(timeout=30, accept=False)

    with contextlib.closing(redis.Redis.from_url(config.redis_url)) as client:
        client.flushall()
        wait_until(
            lambda: client.get(f"{config.keys.root}gate") is not None, description="the gate is open again"
        )
    worked = free.execute_run({"gate": str(gate), "value": "free"}, timeout=30)
    held_back(asm, [paused], [waits])

    assert [worked.run_id] == ledger.entered()
    assert SessionStatus.PAUSED is paused.status().status
    with pytest.raises(errors.SessionDraining):
        closed.submit_run({"gate": str(gate)})
    paused.resume()
    assert waits == paused.await_run(waits, timeout=30).run_id
    closed.complete()
