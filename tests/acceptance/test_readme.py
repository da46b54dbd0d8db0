"""The README's examples are files, and every one of them runs."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from asm_celery import AgentSessions, Config
from asm_celery.embedded_watch import WatchedProcess
from asm_celery.states import TERMINAL_EVENTS, RunStatus
from tests.waiting import wait_until
from tests.workers import ROOT, WorkerProcess

README = ROOT / "README.md"
EXAMPLES = ROOT / "docs" / "examples"


def code_blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def test_every_python_block_is_an_example_file_and_the_other_way_round() -> None:
    """The README shows each file word for word, and no other code."""
    files = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}

    assert sorted(files.values()) == sorted(code_blocks("python"))
    for name in files:
        assert f"docs/examples/{name}" in README.read_text()


def test_every_link_of_the_readme_leads_somewhere() -> None:
    """To a file of the checkout, or a heading of the README."""
    text = README.read_text()
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }

    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_hello_runs_in_an_empty_folder(tmp_path: Path) -> None:
    """The first example needs no server, streams its words, and leaves only its folder."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ASM_")}

    done = subprocess.run(
        [sys.executable, EXAMPLES / "hello.py"],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 0 == done.returncode, done.stderr
    lines = done.stdout.splitlines()
    words = ["run_queued", "run_started", *["message_streamed"] * 4, "run_completed"]
    assert words == [line.split()[1] for line in lines[:-1]]
    assert "You said: good morning " == lines[-1]
    assert [".asm"] == [path.name for path in tmp_path.iterdir()]


@pytest.fixture
def worker(
    start_worker: Callable[..., WorkerProcess], sqlite_config: Config, tmp_path: Path
) -> WorkerProcess:
    """The README's worker module, started as the README says."""
    shutil.copy(EXAMPLES / "worker_module.py", tmp_path)
    return start_worker("worker_module", pool="threads", concurrency=4)


@pytest.fixture
def client(sqlite_env: dict[str, str], tmp_path: Path) -> Iterator[httpx.Client]:
    """The README's FastAPI application behind a real server on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ASM_")}
    path = os.pathsep.join([str(ROOT), str(EXAMPLES)])
    # fmt: off
    server = WatchedProcess(
        [
            sys.executable, "-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1", "--port", str(port),
            "--timeout-graceful-shutdown", "2",
        ],
        log=tmp_path / "uvicorn.log", env={**inherited, **sqlite_env, "PYTHONPATH": path},
    )
    # fmt: on
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as made:
            wait_until(lambda: _answers(made, server), description="the web server answers", timeout=40)
            yield made
    finally:
        server.stop()


def _answers(client: httpx.Client, server: WatchedProcess) -> bool:
    assert not server.has_ended, server.last_lines()
    try:
        return client.get("/openapi.json").is_success
    except httpx.TransportError:
        return False


def follow(
    client: httpx.Client, chat: str, until: Callable[[str], bool], *, last_event_id: str | None = None
) -> list[tuple[str, str]]:
    """Read the stream as a browser does; return (id, event) of each message up to the first that is enough."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    seen: list[tuple[str, str]] = []
    with client.stream("GET", f"/chats/{chat}/events", headers=headers) as response:
        assert 200 == response.status_code
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
                continue
            if "id" in fields:
                seen.append((fields["id"], fields["event"]))
                if until(fields["event"]):
                    break
            fields = {}
    return seen


def say(client: httpx.Client, chat: str, text: str, **headers: str) -> Any:
    """Post a message; return the run id."""
    response = client.post(f"/chats/{chat}", json={"text": text}, headers=headers)
    assert 202 == response.status_code, response.text
    return response.json()["run_id"]


def test_the_web_backend_streams_and_resumes(
    client: httpx.Client, worker: WorkerProcess, sqlite_config: Config
) -> None:
    """A browser that comes back with Last-Event-ID gets what it missed, once, in order."""
    first = say(client, "7", "good morning")
    seen = follow(client, "7", lambda event: event == "message_streamed")
    seen += follow(client, "7", TERMINAL_EVENTS.__contains__, last_event_id=seen[-1][0])
    second = say(client, "7", "again", **{"Idempotency-Key": "k"})
    assert second == say(client, "7", "again", **{"Idempotency-Key": "k"})
    seen += follow(client, "7", TERMINAL_EVENTS.__contains__, last_event_id=seen[-1][0])

    assert list(range(1, len(seen) + 1)) == [int(place.partition(".")[0]) for place, _ in seen]
    assert 2 == sum(event == "run_completed" for _, event in seen)
    with AgentSessions(sqlite_config) as asm:
        assert ["This is message 1: good morning ", "This is message 2: again "] == [
            asm.get_run(run_id).output for run_id in (first, second)
        ]
    assert "withdrawn" != client.delete(f"/chats/7/runs/{first}").json()["state"]


def test_the_web_backend_answers_refusals(client: httpx.Client) -> None:
    """Errors of the library become answers with their code."""
    unknown = client.get("/chats/nobody/events")
    say(client, "8", "wait")
    odd = client.delete("/chats/8/runs/run_7")

    other = client.get("/chats/8/events", headers={"Last-Event-ID": "1.00000000"})

    assert (400, "cursor_mismatch") == (other.status_code, other.json()["code"])
    assert (404, "session_not_found") == (unknown.status_code, unknown.json()["code"])
    assert (404, "run_not_found") == (odd.status_code, odd.json()["code"])


def test_the_worker_module_executes_both_its_agents(worker: WorkerProcess, sqlite_config: Config) -> None:
    """Whatever queue they name: the worker consumes the queues of its agents."""
    with AgentSessions(sqlite_config) as asm:
        report = asm.start_session("report")

        result = report.execute_run({"pages": ["a", "b"]}, timeout=30)

        assert (RunStatus.COMPLETED, {"pages": 2}) == (result.status, result.output)
        assert [1, 2] == [event.data["page"] for event in report.get_events(type="page_written")]
        assert 3 == asm.get_run(result.run_id).max_attempts
        assert "This is message 1: hi " == asm.start_session("chat").execute_run("hi", timeout=30).output
