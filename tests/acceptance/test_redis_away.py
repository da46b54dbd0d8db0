"""What is missing and what it gets: Redis, the database, its schema, the agent."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from asm_celery import AgentSessions, errors
from asm_celery.config import Config
from asm_celery.embedded import EmbeddedServer
from asm_celery.states import RunStatus
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.history import anomalies
from tests.waiting import wait_until


class OwnRedis:
    """A Valkey of this test alone: coordination and broker, which is taken away and given back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = EmbeddedServer.start(folder, persistent=False)
        self.url = self._server.url

    def take_away(self) -> None:
        """Stop it; what it held is gone."""
        self._server.stop()

    def kill(self) -> None:
        """End it by SIGKILL; what it held is gone."""
        os.kill(self._server.pid, signal.SIGKILL)
        self._server.stop()

    def give_back(self) -> None:
        """Start another, empty one at the same place."""
        self._server = EmbeddedServer.start(self._folder, persistent=False)
        assert self.url == self._server.url

    def freeze(self) -> None:
        """Let it answer nobody, and forget nothing."""
        os.kill(self._server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it answer again."""
        os.kill(self._server.pid, signal.SIGCONT)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    """A Valkey to take away."""
    server = OwnRedis(tmp_path / "redis")
    yield server
    server.thaw()
    server.take_away()


@pytest.fixture
def here(config: Config, own_redis: OwnRedis) -> Iterator[AgentSessions]:
    """A web process whose Redis is `own_redis`."""
    settings = config.model_copy(update={"redis_url": own_redis.url, "connect_timeout_s": 1.0})
    with AgentSessions(settings) as sessions:
        yield sessions


@pytest.mark.either_database
def test_what_is_submitted_while_redis_is_away_starts_when_it_is_back(
    here: AgentSessions, own_redis: OwnRedis, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """The run in flight ends meanwhile, awaiters learn of it, and the line goes on in order afterwards."""
    living = worker(pool="threads", redis_url=own_redis.url, connect_timeout_s=1.0)
    server, fresh = here.start_session("gate"), here.start_session("echo")
    runs = [server.submit_run({"gate": str(gate)}) for _ in range(2)]
    wait_until(lambda: ledger.entered() == runs[:1], description="the first run is in flight")
    told: list[str] = []
    waiting = threading.Thread(target=lambda: told.append(server.await_run(runs[0], timeout=60).status))
    waiting.start()

    own_redis.take_away()
    runs.append(server.submit_run({"gate": str(gate)}))
    accepted = fresh.submit_run("accepted")
    assert (runs[:1], runs[1:]) == (server.status().in_flight_runs, server.status().queued_runs)
    with pytest.raises(errors.AwaitTimeout):
        fresh.await_run(accepted, timeout=0.5)
    gate.open()
    waiting.join(30)
    assert [RunStatus.COMPLETED] == told
    assert RunStatus.PENDING == fresh.get_run(accepted).status

    own_redis.give_back()
    assert "accepted" == fresh.await_run(accepted, timeout=60).output
    server.drain(timeout=60)
    assert [] == anomalies(server.get_events(limit=1000), slots=1, submitted=runs)
    assert runs == ledger.entered(server.session_id)
    # the same worker: it needed no restart
    assert not living.has_ended


@pytest.mark.either_database
def test_what_is_said_while_redis_hangs_is_true_afterwards(
    here: AgentSessions, own_redis: OwnRedis, worker: StartWorker
) -> None:
    """A submit costs a bounded wait and no run; a resume that Redis did not hear of is told it again."""
    worker(pool="threads", redis_url=own_redis.url, connect_timeout_s=1.0)
    paused, server = here.start_session("echo"), here.start_session("echo")
    paused.pause()
    waiting = paused.submit_run("waiting")
    server.execute_run("warm")

    own_redis.freeze()
    began = time.monotonic()
    paused.resume()
    submitted = server.submit_run("submitted")
    took_s = time.monotonic() - began
    own_redis.thaw()

    assert took_s < 15
    # it forgot nothing, so nothing is restored: the repair loop compares
    assert "waiting" == paused.await_run(waiting, timeout=30).output
    assert "submitted" == server.await_run(submitted, timeout=30).output


def test_without_a_database_nothing_is_written(config: Config, database_url: str, tmp_path: Path) -> None:
    """A typed error within the connect timeout, from every verb, and no key in Redis."""
    with silent_server() as address:
        gone = (
            f"sqlite:///{tmp_path}/not/there/asm.db"
            if database_url.startswith("sqlite")
            else f"postgresql+psycopg://asm@{address}/asm"
        )
        (tmp_path / "not").write_text("a file where a folder should be")
        settings = config.model_copy(update={"database_url": gone, "connect_timeout_s": 1.0})
        with AgentSessions(settings) as asm:
            for ask in (
                lambda: asm.start_session("echo"),
                lambda: asm.attach("chat-42"),
                asm.list_sessions,
            ):
                began = time.monotonic()
                with pytest.raises(errors.StorageConnectionFailed) as refused:
                    ask()
                assert "storage_connection_failed" == refused.value.code
                assert refused.value.retryable
                # libpq waits two seconds at least
                assert time.monotonic() - began < 10
    with redis.Redis.from_url(config.redis_url) as client:
        assert [] == client.keys(f"{config.keys.root}*")


@pytest.mark.breaks_invariants
def test_a_database_without_the_schema_says_what_to_run(config: Config) -> None:
    """Every verb names ``asm migrate``, and nothing is left in Redis."""
    remove_schema(config.database_url)
    with AgentSessions(config) as asm:
        for ask in (
            lambda: asm.start_session("echo"),
            lambda: asm.attach("chat-42"),
            lambda: asm.delete_session("chat-42"),
            asm.list_sessions,
        ):
            with pytest.raises(errors.MigrationRequired, match="asm migrate") as refused:
                ask()
            assert "migration_required" == refused.value.code
    with redis.Redis.from_url(config.redis_url) as client:
        assert [] == client.keys(f"{config.keys.root}*")


@pytest.mark.either_database
def test_a_run_of_an_agent_that_no_worker_knows_ends_failed(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger
) -> None:
    """After `queue_timeout_s` it ends with `agent_not_found`; meanwhile it is in nobody's way."""
    worker(pool="threads", concurrency=1, queue_timeout_s=0.5)
    ghost, echo = asm.start_session("ghost"), asm.start_session("echo")
    lost = [ghost.submit_run(number) for number in range(2)]

    for number in range(10):
        assert number == echo.execute_run(number, timeout=30).output
    for run_id in lost:
        with pytest.raises(errors.RunFailed) as failed:
            ghost.await_run(run_id, timeout=30)
        assert ("agent_not_found", 0) == (failed.value.code, failed.value.result.attempts)
        assert "'ghost'" in str(failed.value)

    types = [event.type for event in ghost.get_events()]
    assert ["run_queued", "run_queued", "run_failed", "run_failed"] == types[2:]
    assert 10 == len(ledger.entered())
    wait_until(lambda: asm.limiter.get_status().active_runs == 0, description="no slot is held any more")


@pytest.mark.either_database
def test_a_run_waits_for_a_worker_that_knows_its_agent(asm: AgentSessions, worker: StartWorker) -> None:
    """A worker without the agent gives the run back without using an attempt; its successor runs it."""
    lacking = worker("workers.app", pool="threads")
    server = asm.start_session("work")
    run_id = server.submit_run(0.25)
    # it is asked, and it gives back: that is what its log tells
    wait_until(lambda: f"[{run_id}] received" in lacking.log, description="the first worker was asked")

    worker(pool="threads")
    # while both are there, each try may reach either, after a longer and longer delay
    lacking.stop()

    result = server.await_run(run_id, timeout=30)
    assert (0.25, 1) == (result.output, result.attempts)


@contextmanager
def silent_server() -> Iterator[str]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def remove_schema(database_url: str) -> None:
    """Make the database empty, as it is before ``asm migrate``."""
    if database_url.startswith("sqlite"):
        Path(database_url.removeprefix("sqlite:///")).unlink()
        return
    with psycopg.connect(database_url.replace("+psycopg", "", 1), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
