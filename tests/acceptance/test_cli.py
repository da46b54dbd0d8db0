"""The command line: every command as a process, its answers as JSON, its exit codes."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from asm_celery import AgentSessions, SessionServer
from asm_celery.cli.program import run
from asm_celery.config import Config
from asm_celery.embedded_watch import WatchedProcess
from tests import invariants
from tests.acceptance.command import PROGRAM, Answer, Command
from tests.conftest import environment
from tests.waiting import wait_until
from tests.workers import ROOT

# asked to stop, it takes until the ladder's last signal
STUBBORN = "trap '' INT TERM; echo here; while :; do sleep 0.1; done"

Here = Callable[..., Answer]


@pytest.fixture(scope="module")
def settings(redis_url: str, sqlite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """One installation for this file: a command takes a second to start, and so would each worker."""
    folder = tmp_path_factory.mktemp("cli")
    word = f"t{uuid4().hex[:12]}"
    config = Config(
        redis_url=redis_url,
        database_url=f"sqlite:///{shutil.copy(sqlite_file, folder / 'asm.db')}",
        namespace=word,
        default_queue=word,
        home=str(folder / "home"),
        beat_s=0.2,
        lease_s=10,
        repair_s=0.2,
    )
    yield config
    invariants.check(config)


@pytest.fixture(scope="module")
def asm(settings: Config) -> Command:
    """The command, as a process."""
    return Command(environment(settings))


@pytest.fixture(scope="module")
def sessions(settings: Config) -> Iterator[AgentSessions]:
    """The same installation from a library's side."""
    with AgentSessions(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
def worker(settings: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A worker started by ``asm worker``, which became Celery's own process: SIGTERM is its warm shutdown."""
    log = tmp_path_factory.mktemp("worker") / "log"
    # fmt: off
    process = WatchedProcess(
        ["env", "-C", ROOT, *PROGRAM, "--namespace", settings.namespace,
         "worker", "--pool", "threads", "--concurrency", "4", "--", "--without-mingle"],
        log=log, env=Command({**environment(settings), "ASM_NAMESPACE": "overridden"}).env, grace_s=20,
    )
    # fmt: on
    try:
        wait_until(lambda: " ready." in log.read_text(), description="the worker is ready", timeout=40)
        yield
    finally:
        process.stop()
    assert "Warm shutdown" in log.read_text()


@pytest.fixture
def here(
    settings: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    """The command without a process: for what needs none to be shown."""
    handlers = logging.getLogger().handlers
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> Answer:
        capsys.readouterr()
        code = int(run(list(arguments)))
        said = capsys.readouterr()
        return Answer(code=code, out=said.out, err=said.err)

    yield call
    logging.getLogger().handlers = handlers


def running(server: SessionServer) -> str:
    """Wait until the session executes a run; returns its id."""
    wait_until(lambda: server.status().in_flight_count, description="a run executes")
    return server.status().in_flight_runs[0]


def test_help_lists_the_exit_codes_and_needs_no_library() -> None:
    """``asm --help`` says what each exit code means, and imports neither Celery nor SQLAlchemy nor Redis."""
    asked = subprocess.run(
        [sys.executable, "-X", "importtime", *PROGRAM[1:], "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "124  the time allowed has passed" in asked.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in asked.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"celery", "kombu", "sqlalchemy", "alembic", "redis", "pydantic", "rich", "asyncio"}


def test_submit_waits_and_prints_the_output(asm: Command, worker: None) -> None:
    """Text from stdin comes back as text, nothing else is on stdout, and the exit code is 0."""
    answer = asm("submit", "echo", "-", "--wait", given="good morning")

    assert (0, "good morning\n") == (answer.code, answer.out)


def test_submit_accepts_and_tail_follows_to_the_end(asm: Command, here: Here, worker: None) -> None:
    """Without --wait the run's id is the answer; tail then prints each event once and ends with the run."""
    accepted = here(
        "--json", "submit", "echo", '{"n": 1}', "--json-input", "--session", "chat", "--key", "k1"
    )
    again = here("submit", "echo", '{"n": 1}', "--json-input", "--session", "chat", "--key", "k1")
    run_id = accepted.object["run_id"]
    followed = asm("tail", "chat", "--json", "--run", run_id)
    ends = here("tail", "chat", "--no-follow", "--type", "run_completed", "--after", "2")

    assert (0, "run", {"n": 1}) == (
        accepted.code,
        *(accepted.object[name] for name in ("object", "input")),
    )
    assert run_id == again.out.strip()
    assert (0, ["run_queued", "run_started", "run_completed"]) == (
        followed.code,
        [event["type"] for event in followed.objects],
    )
    assert [3, 4, 5] == [event["sequence"] for event in followed.objects]
    assert 1 == len(ends.out.splitlines())
    assert "run_completed" in ends.out


def test_a_failed_run_is_exit_code_1(here: Here, worker: None) -> None:
    """The run is the answer, and the error on stderr carries the run's own code."""
    answer = here("submit", "fail", "no such luck", "--wait", "--json")

    assert (1, "failed") == (answer.code, answer.object["status"])
    assert ("error", "no such luck", 1) == (
        answer.error["object"],
        answer.object["error"]["message"],
        answer.error["exit_code"],
    )


def test_cancel_and_interrupt_end_runs_whose_submitter_exits_with_3(
    asm: Command, sessions: AgentSessions, worker: None
) -> None:
    """Both wait for the end when asked to; whoever waits for the run learns it by exit code 3."""
    line = sessions.start_session("sleeper", session_id="stops")
    submitter = asm.start("--json", "submit", "sleeper", "60", "--json-input", "--session", "stops", "--wait")
    first = running(line)
    second = line.submit_run(60)

    withdrawn = asm("cancel", second, "--json")
    interrupted = asm("interrupt", first, "--wait", "--timeout", "20", "--json")
    waited = submitter.end()

    assert (0, "receipt", "withdrawn", "cancelled") == (
        withdrawn.code,
        *(withdrawn.object[name] for name in ("object", "state", "status")),
    )
    assert (0, "requested", "interrupted") == (
        interrupted.code,
        *(interrupted.object[name] for name in ("state", "status")),
    )
    assert (3, "interrupted") == (waited.code, waited.object["status"])


def test_the_first_ctrl_c_interrupts_the_run(asm: Command, sessions: AgentSessions, worker: None) -> None:
    """A submitter that waits ends its run, and says how it ended."""
    line = sessions.start_session("sleeper", session_id="ctrl-c")
    submitter = asm.start("submit", "sleeper", "60", "--json-input", "--session", "ctrl-c", "--wait")
    run_id = running(line)

    submitter.press_ctrl_c()

    assert 3 == submitter.end().code
    assert "interrupted" == line.get_run(run_id).status


def test_the_second_ctrl_c_leaves_the_run_to_end_by_itself(
    asm: Command, sessions: AgentSessions, worker: None
) -> None:
    """The first request stands; only the waiting ends, with 130."""
    line = sessions.start_session("shell", session_id="twice")
    submitter = asm.start("submit", "shell", STUBBORN, "--session", "twice", "--wait")
    run_id = running(line)
    wait_until(lambda: line.get_events(type="message_streamed"), description="the command traps signals")

    submitter.press_ctrl_c()
    said = submitter.next_word()
    wait_until(lambda: line.get_run(run_id).stop_requested, description="the stop was requested")
    submitter.press_ctrl_c()

    assert "Ctrl-C again" in said
    assert 130 == submitter.end().code
    assert "running" == line.get_run(run_id).status


def test_the_life_of_a_session(asm: Command, here: Here, sessions: AgentSessions, worker: None) -> None:
    """Pause, refuse, time out, resume, drain, complete and delete, each with its answer and exit code."""
    line = sessions.start_session("echo", session_id="life")

    paused = asm("--json", "pause", "life")
    waits = here("submit", "echo", "1", "--session", "life", "--wait", "--timeout", "0.2")
    busy = here("submit", "echo", "2", "--session", "life", "--on-busy", "reject", "--json")
    stuck = here("drain", "life", "--timeout", "0.1", "--json")
    open_runs = here("complete", "life", "--yes")
    resumed = asm("--json", "resume", "life")
    drained = asm("--json", "drain", "life", "--timeout", "20", "--no-accept")
    unasked = here("complete", "life")
    completed = asm("complete", "life", "--yes", "--json")
    late = here("submit", "echo", "3", "--session", "life")
    backward = here("resume", "life")
    unasked_again = here("delete", "life", "--json")
    deleted = asm("delete", "life", "--yes", "--json")
    gone = here("status", "life", "--json")

    assert (0, "paused") == (paused.code, paused.object["status"])
    assert 124 == waits.code
    assert "the session is paused" in waits.err
    assert (5, "session_busy", "") == (busy.code, busy.error["code"], busy.out)
    assert (124, "timeout", 1) == (stuck.code, stuck.error["code"], len(stuck.error["details"]["queued"]))
    assert 5 == open_runs.code
    assert (0, "active") == (resumed.code, resumed.object["status"])
    assert (0, "draining", 0) == (drained.code, drained.object["status"], drained.object["queued_count"])
    assert 2 == unasked.code
    assert "--yes" in unasked.err
    assert (0, "completed") == (completed.code, completed.object["status"])
    assert "for good" not in completed.out
    assert [5, 5, 2] == [late.code, backward.code, unasked_again.code]
    assert (0, "deleted", line.session_id) == (
        deleted.code,
        *(deleted.object[name] for name in ("object", "session_id")),
    )
    assert (4, "session_not_found", 4) == (gone.code, gone.error["code"], gone.error["exit_code"])


def test_status_reports_sessions_the_limiter_and_runs(
    asm: Command, here: Here, sessions: AgentSessions, settings: Config, worker: None
) -> None:
    """A page of sessions ends with the limiter; a session's report and a run are asked for by id."""
    line = sessions.start_session("sleeper", session_id="seen", max_concurrent_runs=2)
    run_id = line.submit_run(60)
    running(line)

    page = asm("status", "--json")
    one = here("status", "seen", "--json")
    text = here("status", "seen")
    ran = here("status", run_id, "--json")
    line.cancel_run(run_id, wait=True, timeout=20)

    *listed, limiter = page.objects
    seen = next(found for found in listed if found["session_id"] == "seen")
    assert {"session"} == {found["object"] for found in listed}
    assert (1, 0, 2) == (seen["in_flight_count"], seen["queued_count"], seen["max_concurrent_runs"])
    assert ("limiter", settings.max_parallel_runs) == (limiter["object"], limiter["max_parallel_runs"])
    assert limiter["active_runs"] >= 1
    assert ("report", [run_id], "active") == (
        one.object["object"],
        one.object["in_flight_runs"],
        one.object["status"],
    )
    assert run_id in text.out
    assert ("run", "running", "sleeper") == tuple(ran.object[name] for name in ("object", "status", "agent"))


def test_doctor_finds_all_well(asm: Command, worker: None) -> None:
    """With a worker, a migrated database and a warm Redis every check is ok."""
    answer = asm("doctor", "--json")

    levels = {check["name"]: check["level"] for check in answer.objects}
    assert dict.fromkeys(levels, "ok") == levels
    assert {"settings", "database", "schema", "redis", "memory", "gate", "workers", "difference"} <= set(
        levels
    )
    assert 0 == answer.code


def test_doctor_names_what_is_missing(here: Here, tmp_path: Path) -> None:
    """Without database and Redis it says so, with remedies, and makes nothing; the exit code is 69."""
    nowhere = tmp_path / "none.db"
    answer = here(
        "--database-url", f"sqlite:///{nowhere}", "--redis-url", "redis://:secret@127.0.0.1:1/0", "doctor"
    )

    failed = [line.split()[1] for line in answer.out.splitlines() if line.startswith("fail")]
    assert (69, ["database", "redis"]) == (answer.code, failed)
    assert "asm migrate" in answer.out
    assert "secret" not in answer.out + answer.err
    assert not nowhere.exists()


def test_migrate_makes_a_database_that_works(asm: Command, here: Here, tmp_path: Path) -> None:
    """Before it every command is told what to do; it may be repeated."""
    url = f"sqlite:///{tmp_path / 'new.db'}"

    before = here("--database-url", url, "status")
    made = asm("--database-url", url, "migrate", "--json")
    repeated = here("--database-url", url, "migrate")
    after = here("--database-url", url, "status", "--json")

    assert 69 == before.code
    assert "asm migrate" in before.err
    assert (0, "migration") == (made.code, made.object["object"])
    assert made.object["revision"] in repeated.out
    assert (0, ["limiter"]) == (after.code, [found["object"] for found in after.objects])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["submit", "echo"], 2),
        (["unknown"], 2),
        (["submit", "echo", "{", "--json-input"], 2),
        (["submit", "echo", "x", "--timeout", "1"], 2),
        (["submit", "not an agent", "x"], 2),
        (["--namespace", "not a word", "status"], 2),
        (["tail", "chat", "--type", "Not A Word"], 2),
        (["status", "no-such-session"], 4),
        (["status", "run_1"], 4),
        (["cancel", f"run_{'0' * 32}"], 4),
        (["--redis-url", "redis://127.0.0.1:1/0", "status"], 69),
    ],
)
def test_each_refusal_has_its_exit_code_and_one_line(
    here: Here, sessions: AgentSessions, arguments: list[str], code: int
) -> None:
    """One line on stderr says why; with --json it is an error object."""
    sessions.start_session("echo", session_id="there", if_exists="attach")
    text = here(*arguments)
    told = here(*arguments, "--json")

    assert (code, code) == (text.code, told.code)
    assert text.err.startswith("asm: ")
    assert 1 == text.err.count("\n")
    assert ("error", code) == (told.error["object"], told.error["exit_code"])
