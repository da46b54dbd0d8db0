"""Flower, as operators have it: each run is a task under its run id, and says whose it is."""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asm_celery import AgentSessions, errors
from asm_celery.embedded_watch import WatchedProcess
from tests.acceptance.conftest import MODULE, Gate, StartWorker
from tests.waiting import wait_until
from tests.workers import ROOT


class Flower:
    """A Flower on the loopback, asked by its HTTP API; it cannot outlive the test run."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ASM_")}
        # fmt: off
        self._process = WatchedProcess(
            [
                sys.executable, "-m", "celery", "-A", MODULE, "flower", "--address=127.0.0.1", f"--port={port}",
                f"--conf={ROOT / 'ops' / 'flowerconfig.py'}",
            ],
            log=folder / "flower.log",
            env={**inherited, "PYTHONPATH": str(ROOT), "FLOWER_UNAUTHENTICATED_API": "1", **env},
        )
        # fmt: on

    def get(self, path: str) -> Any:
        """Return what the API answers, None for 404 and while nothing answers at all."""
        assert not self._process.has_ended, self._process.last_lines()
        try:
            with urllib.request.urlopen(f"{self._url}/api/{path}", timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as cause:
            cause.close()
            if cause.code != 404:
                raise
        except OSError:
            # it does not listen yet
            pass
        return None

    def state(self, task_id: str) -> str | None:
        """Return the state of a task; None when Flower has not heard of it."""
        task = self.get(f"task/info/{task_id}")
        return None if task is None else task["state"]

    def stop(self) -> None:
        """End it."""
        self._process.stop()


@pytest.fixture
def flower(env: dict[str, str], tmp_path: Path) -> Iterator[Flower]:
    """A Flower of this test's installation."""
    started = Flower(env, tmp_path)
    yield started
    started.stop()


@pytest.mark.either_database
def test_each_run_is_a_task_under_its_run_id(
    asm: AgentSessions, flower: Flower, worker: StartWorker, gate: Gate
) -> None:
    """Named by its agent, with the session in its arguments; its state agrees with `status()`."""
    one = worker(pool="prefork", options=["-E"])
    probe = asm.start_session("echo")
    # Flower hears what is sent from when it listens
    wait_until(
        lambda: flower.state(probe.submit_run("are you there?", on_busy="interrupt")),
        description="Flower hears the worker",
        timeout=30,
    )
    probe.drain()
    gated = asm.start_session("gate", session_id="chat-42")
    running, queued = (gated.submit_run({"gate": str(gate), "value": "secret"}) for _ in range(2))
    echo = asm.start_session("echo")
    completed = echo.submit_run("secret")
    echo.await_run(completed)
    failing = asm.start_session("fail")
    failed = failing.submit_run("secret", max_attempts=2)
    with pytest.raises(errors.RunFailed):
        failing.await_run(failed)

    wait_until(lambda: flower.state(running) == "STARTED", description="Flower shows the running run")
    wait_until(lambda: flower.state(completed) == "SUCCESS", description="Flower shows the completed run")

    assert ([running], [queued]) == (gated.status().in_flight_runs, gated.status().queued_runs)
    # what waits is in our line and not in Celery's
    assert flower.state(queued) is None
    task = flower.get(f"task/info/{running}")
    assert (running, "asm.run gate") == (task["uuid"], task["name"])
    assert "session='chat-42'" in task["args"]
    assert f"run={running!r}" in task["args"]
    assert one.name in task["worker"]
    tasks = flower.get("tasks?limit=1000")
    assert {running, completed, failed} <= tasks.keys()
    names = {task["uuid"]: task["name"] for task in tasks.values()}
    assert ("asm.run echo", "asm.run fail") == (names[completed], names[failed])
    # a second claim is a task of its own, under the run id and the claim's number
    assert "asm.run fail" == names[f"{failed}.2"]
    # inputs and outputs are nobody's business here
    assert "secret" not in json.dumps(tasks)

    gate.open()
    gated.drain()
    for run_id in (running, queued):
        wait_until(
            lambda run_id=run_id: flower.state(run_id) == "SUCCESS", description="Flower shows its end"
        )
    assert ([], []) == (gated.status().in_flight_runs, gated.status().queued_runs)
    for ended in (failed, f"{failed}.2"):
        wait_until(
            lambda ended=ended: flower.state(ended) not in ("STARTED", "RECEIVED"), description="it ended"
        )
