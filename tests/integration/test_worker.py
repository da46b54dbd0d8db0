"""The life of real Celery workers: start, death of a child, deploy, and the one inside a process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery
from sqlalchemy import text

from asm_celery.config import Config
from asm_celery.model import Run
from asm_celery.server import SessionServer
from asm_celery.sessions import AgentSessions
from asm_celery.states import RunStatus
from asm_celery.worker.inprocess import InProcessWorker
from tests.waiting import wait_until
from tests.workers import WorkerProcess

StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def asm(sqlite_config: Config) -> Iterator[AgentSessions]:
    """The web backend's side: it has no agents."""
    with AgentSessions(sqlite_config) as made:
        yield made


def _running(server: SessionServer, run_id: str) -> Run:
    def look() -> Run | None:
        run = server.get_run(run_id)
        return run if run.status is RunStatus.RUNNING else None

    return wait_until(look, description=f"{run_id} is running")


def _ended(server: SessionServer, run_id: str) -> Run:
    def look() -> Run | None:
        run = server.get_run(run_id)
        return run if run.is_terminal else None

    return wait_until(look, description=f"{run_id} has ended", timeout=30)


def _wait_until_streamed(server: SessionServer, run_id: str) -> None:
    def look() -> bool:
        return bool(server.get_events(after=0, limit=10, run_id=run_id, type="message_streamed"))

    wait_until(look, description=f"the agent of {run_id} was entered")


def _executors(asm: AgentSessions) -> set[str]:
    with asm._runtime().store.read() as tx:
        return set(tx.executors._connection.execute(text("SELECT executor FROM executors")).scalars())


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_executes_runs_and_leaves_in_good_order(
    asm: AgentSessions, start_worker: StartWorker, pool: str
) -> None:
    """In every pool; afterwards no executor of it is known."""
    worker = start_worker(pool=pool, concurrency=2)

    assert {"a": 1} == asm.start_session("echo").execute_run({"a": 1}, timeout=20).output
    assert "a b" == asm.start_session("stream").execute_run("a b", timeout=20).output
    worker.terminate()
    worker.wait()

    assert set() == _executors(asm)


def test_the_main_process_of_a_prefork_worker_stays_clean(
    asm: AgentSessions, start_worker: StartWorker, sqlite_config: Config
) -> None:
    """It forks at any time: no database, no connection of ours, and two threads without a lock that a child uses."""
    worker = start_worker(pool="prefork", concurrency=2)
    asm.start_session("echo").execute_run(1, timeout=20)

    main = psutil.Process(worker.pid)

    assert 3 == main.num_threads()
    database = sqlite_config.database_url.removeprefix("sqlite:///")
    assert not [file.path for file in main.open_files() if file.path.startswith(database)]


def test_a_killed_child_is_replaced_and_its_run_decided(
    asm: AgentSessions, start_worker: StartWorker
) -> None:
    """The run fails as worker_lost when its lease has been silent, and the pool is full again."""
    worker = start_worker(pool="prefork", concurrency=2)
    server = asm.start_session("sleeper")
    run_id = server.submit_run(600)
    victim = int(str(_running(server, run_id).executor).split(":")[1])
    main = psutil.Process(worker.pid)

    os.kill(victim, signal.SIGKILL)

    def is_full() -> bool:
        return len([child for child in main.children() if child.pid != victim]) == 2

    wait_until(is_full, description="the child is replaced")
    assert "worker_lost" == (_ended(server, run_id).error or {})["code"]
    assert 0.01 == server.execute_run(0.01, timeout=20).output


def test_a_terminated_child_stores_the_end_of_its_run_first(
    asm: AgentSessions, start_worker: StartWorker
) -> None:
    """SIGTERM to the whole group, as systemd sends it: no run needs to be found by its silence."""
    worker = start_worker(pool="prefork", concurrency=2)
    once, again = asm.start_session("stream"), asm.start_session("stream")
    endless = {"text": "begun and never ended", "delay": 600}
    ends, returns = once.submit_run(endless), again.submit_run(endless, max_attempts=2)
    children = set()
    for server, run_id in ((once, ends), (again, returns)):
        _wait_until_streamed(server, run_id)
        children.add(int(str(server.get_run(run_id).executor).split(":")[1]))

    for child in children:
        os.kill(child, signal.SIGTERM)

    run = _ended(once, ends)
    assert (RunStatus.INTERRUPTED, "worker_shutdown") == (run.status, (run.error or {})["code"])
    wait_until(
        lambda: again.get_run(returns).claims == 2, description="the other is entered again", timeout=20
    )
    # a hand-back is no fault of the run: it uses up no attempt
    assert 1 == again.get_run(returns).attempt
    again.cancel_run(returns, wait=True, timeout=20)
    assert "was silent" not in worker.log


def test_a_cancelled_command_hears_the_first_rung_in_a_prefork_worker(
    asm: AgentSessions, start_worker: StartWorker
) -> None:
    """Celery's children ignore SIGINT; the commands they start do not inherit that."""
    start_worker(pool="prefork", concurrency=1)
    server = asm.start_session("shell")
    run_id = server.submit_run("trap 'echo bye; exit 0' INT; echo begun; while :; do sleep 0.05; done")
    _wait_until_streamed(server, run_id)

    server.cancel_run(run_id, wait=True, timeout=20)

    run = server.get_run(run_id)
    assert (RunStatus.CANCELLED, "begun\nbye\n") == (run.status, run.output)


def test_a_terminated_worker_finishes_its_run_and_starts_no_other(
    asm: AgentSessions, start_worker: StartWorker
) -> None:
    """What waits is left to the next worker, also to one of the same name that comes at once."""
    worker = start_worker(pool="prefork", concurrency=1, name="same")
    busy, waiting = asm.start_session("sleeper"), asm.start_session("echo")
    last = busy.submit_run(1.5)
    _running(busy, last)

    worker.terminate()
    wait_until(lambda: "Warm shutdown" in worker.log, description="it was told to stop")
    left = [waiting.submit_run(number) for number in range(3)]
    worker.wait()

    assert RunStatus.COMPLETED == busy.get_run(last).status
    assert {RunStatus.PENDING} == {waiting.get_run(run_id).status for run_id in left}

    start_worker(pool="threads", concurrency=1, name="same")
    assert [0, 1, 2] == [_ended(waiting, run_id).output for run_id in left]


def test_a_terminated_prefork_worker_ends_after_its_grace(
    asm: AgentSessions, start_worker: StartWorker, sqlite_env: dict[str, str]
) -> None:
    """Its children learn of it without a signal; what still runs is interrupted, and the worker ends."""
    worker = start_worker(pool="prefork", concurrency=1, env={**sqlite_env, "ASM_SHUTDOWN_GRACE_S": "0.3"})
    server = asm.start_session("sleeper")
    run_id = server.submit_run(600)
    _running(server, run_id)

    worker.terminate()
    worker.wait()

    run = server.get_run(run_id)
    assert (RunStatus.INTERRUPTED, "worker_shutdown") == (run.status, (run.error or {})["code"])


def test_a_worker_consumes_the_queues_of_its_agents(
    asm: AgentSessions, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Without -Q all of them; a worker given -Q only those."""
    Path(tmp_path, "queues.py").write_text(
        "from asm_celery import AgentSessions\n"
        "asm = AgentSessions.from_env()\n"
        "@asm.agent('fast', queue='fast_q')\n"
        "def fast(ctx, given): return 'fast'\n"
        "@asm.agent('slow', queue='slow_q')\n"
        "def slow(ctx, given): return 'slow'\n"
        "app = asm.celery_app\n"
    )
    start_worker("queues", pool="threads", queues=["fast_q"])
    fast, slow = asm.start_session("fast"), asm.start_session("slow")
    assert "fast" == fast.execute_run(None, timeout=20).output
    waits = slow.submit_run(None)

    start_worker("queues", pool="threads")

    assert "slow" == _ended(slow, waits).output


def test_an_existing_application_keeps_its_settings(sqlite_config: Config) -> None:
    """Only the task and our steps are added; its own tasks and settings are its own."""
    theirs = Celery("theirs", broker=sqlite_config.celery_broker_url, set_as_current=False)
    theirs.conf.update(
        result_backend="cache+memory://", task_default_queue="theirs", worker_prefetch_multiplier=7
    )
    said = ("result_backend", "task_default_queue", "worker_prefetch_multiplier", "broker_transport_options")
    before = [theirs.conf[name] for name in said]
    with AgentSessions(sqlite_config, celery_app=theirs) as asm:
        asm.register("echo", lambda ctx, given: given)
        theirs.amqp.queues.select_add(sqlite_config.default_queue)
        worker = InProcessWorker(theirs, 2)
        worker.start()
        try:
            assert 1 == asm.start_session("echo").execute_run(1, timeout=20).output
        finally:
            worker.stop()

    assert before == [theirs.conf[name] for name in said]
    assert "asm.run" in theirs.tasks


def _inside(config: Config, agent: Any) -> tuple[AgentSessions, InProcessWorker]:
    asm = AgentSessions(config)
    asm.register("agent", agent)
    worker = InProcessWorker(asm.celery_app, 2)
    worker.start()
    return asm, worker


def test_workers_inside_a_process_follow_each_other(
    sqlite_config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    """Starting and stopping leaves no thread, no flag and no signal handler, and says nothing on stdout."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    for number in range(2):
        asm, worker = _inside(sqlite_config, lambda ctx, given: given)
        assert number == asm.start_session("agent").execute_run(number, timeout=20).output
        worker.stop()
        asm.close()

    ours = [thread.name for thread in threading.enumerate() if thread.name.startswith("asm-")]
    assert [] == ours
    assert before == {number: signal.getsignal(number) for number in before}
    assert "" == capfd.readouterr().out


def test_two_workers_inside_a_process_do_not_meet(sqlite_config: Config) -> None:
    """Each executes its own application's runs, and stopping one leaves the other at work."""
    other_config = Config(**{**sqlite_config.model_dump(), "namespace": "other", "default_queue": "other"})
    one, first = _inside(sqlite_config, lambda ctx, given: "one")
    other, second = _inside(other_config, lambda ctx, given: "other")
    try:
        assert "one" == one.start_session("agent").execute_run(None, timeout=20).output
        assert "other" == other.start_session("agent").execute_run(None, timeout=20).output

        second.stop()

        assert "one" == one.start_session("agent").execute_run(None, timeout=20).output
    finally:
        for worker, asm in ((second, other), (first, one)):
            worker.stop()
            asm.close()


def test_stopping_a_worker_inside_a_process_waits_for_its_runs(sqlite_config: Config) -> None:
    """And asks those that are still executing after the grace to leave."""
    config = Config(**{**sqlite_config.model_dump(), "shutdown_grace_s": 0.3})

    def agent(ctx: Any, given: Any) -> str:
        ctx.sleep(given)
        return "done"

    asm, worker = _inside(config, agent)
    server = asm.start_session("agent", max_concurrent_runs=2)
    long, short = server.submit_run(600), server.submit_run(0.2)
    _running(server, long)
    _running(server, short)

    worker.stop()

    assert RunStatus.COMPLETED == server.get_run(short).status
    run = server.get_run(long)
    assert (RunStatus.INTERRUPTED, "worker_shutdown") == (run.status, (run.error or {})["code"])
    asm.close()


def test_a_worker_inside_a_process_without_broker_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`start` raises instead of waiting for ever, and can be stopped."""
    monkeypatch.setattr("asm_celery.worker.inprocess.START_S", 1.0)
    config = Config(redis_url=f"unix://{tmp_path}/nobody.sock", database_url=f"sqlite:///{tmp_path}/asm.db")
    asm = AgentSessions(config)

    with pytest.raises(Exception, match="did not start"):
        InProcessWorker(asm.celery_app, 1).start()

    asm.close()
