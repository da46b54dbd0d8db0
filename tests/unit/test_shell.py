"""The shipped shell agent: real commands, streamed, and nothing left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from asm_celery.errors import AsmError, InvalidInput, StopRun
from tests.unit.attempts import Held, held
from tests.waiting import wait_until
from workers.process_group import LADDER
from workers.shell import ShellAgent

QUICK = tuple((number, 0.3) for number, _ in LADDER)


def _streamed(it: Held) -> str:
    return it.tally.text or ""


def _alive(group: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _start(it: Held, given: Any, agent: ShellAgent | None = None) -> tuple[threading.Thread, list[Any]]:
    ended: list[Any] = []

    def execute() -> None:
        try:
            ended.append((agent or ShellAgent(QUICK))(it.context, given))
        except BaseException as cause:  # noqa: BLE001 - the test asks for it
            ended.append(cause)

    thread = threading.Thread(target=execute, daemon=True)
    thread.start()
    return thread, ended


def test_output_is_streamed_line_by_line_and_returned() -> None:
    """Stdout and stderr together, as they come."""
    with held() as it:
        result = ShellAgent()(it.context, "echo one; echo two >&2; printf three")

        wait_until(lambda: len(it.log.events) == 3, description="three lines are stored")
        assert ["one\n", "two\n", "three"] == [event.data["content"] for event in it.log.events]
        assert (0, "one\ntwo\nthree") == (result["exit_code"], result["output"])
        assert result["duration_ms"] >= 0


def test_a_list_is_started_without_a_shell() -> None:
    """Its arguments mean nothing but themselves."""
    with held() as it:
        assert "$HOME;\n" == ShellAgent()(it.context, {"command": ["echo", "$HOME;"]})["output"]


def test_cwd_and_env_are_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own settings, with its passwords, are not passed on."""
    monkeypatch.setenv("ASM_DATABASE_URL", "postgresql://asm:secret@db/asm")
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "a:secret")
    monkeypatch.setenv("INHERITED", "yes")
    with held() as it:
        command = {
            "command": "pwd; echo $A $INHERITED [$ASM_DATABASE_URL$PGPASSWORD$FLOWER_BASIC_AUTH]",
            "cwd": str(tmp_path),
            "env": {"A": "b"},
        }

        assert f"{tmp_path}\nb yes []\n" == ShellAgent()(it.context, command)["output"]


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("kill -KILL $$", 137)])
def test_a_command_that_fails_fails_the_run(command: str, code: int) -> None:
    """With its exit code, as a shell says it."""
    with held() as it, pytest.raises(AsmError) as raised:
        ShellAgent()(it.context, f"echo why; {command}")

    assert "command_failed" == raised.value.code
    assert code == raised.value.details["exit_code"]
    assert "why\n" == raised.value.details["output"]


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        {},
        {"command": ""},
        {"command": []},
        {"command": [1]},
        {"command": "true", "shell": "zsh"},
        {"command": "true", "cwd": "/no/such/folder"},
        {"command": "true", "env": {"A": 1}},
        {"command": "true", "timeout": "1"},
        {"command": ["/no/such/program"]},
    ],
)
def test_what_is_no_command_is_refused(given: Any) -> None:
    """Before anything is started."""
    with held() as it, pytest.raises(InvalidInput):
        ShellAgent()(it.context, given)


def test_a_long_line_and_any_bytes_are_streamed() -> None:
    """In pieces that fit an event; what is not UTF-8 is replaced."""
    with held() as it:
        script = "head -c 100000 /dev/zero | tr '\\0' x; printf '\\377\\303\\244'"

        result = ShellAgent()(it.context, script)

        assert "x" * 100_000 + "\ufffdä" == _streamed(it)
        assert result["output"].endswith("x\ufffdä")


def test_a_command_that_obeys_is_ended_by_the_first_rung() -> None:
    """Its last words are kept."""
    with held() as it:
        script = "trap 'echo bye; exit 0' INT; echo pid $$; while :; do sleep 0.05; done"
        thread, ended = _start(it, script, ShellAgent(((signal.SIGINT, 20.0),)))
        wait_until(lambda: "pid" in _streamed(it), description="the command has begun")

        it.attempt.stop("cancel")

        thread.join(20)
        assert isinstance(ended[0], StopRun)
        assert _streamed(it).endswith("bye\n")


def test_a_command_that_ignores_everything_is_killed_with_its_group() -> None:
    """The ladder ends with what nobody ignores, and children in the background go too."""
    with held() as it:
        script = "trap '' INT TERM; (trap '' INT TERM; sleep 600) & echo pid $$; sleep 600; sleep 600"
        thread, ended = _start(it, script)
        wait_until(lambda: "\n" in _streamed(it), description="the command has begun")
        group = int(_streamed(it).split()[1])
        assert len(_alive(group)) >= 2

        it.attempt.stop("cancel")

        thread.join(20)
        assert isinstance(ended[0], StopRun)
        wait_until(lambda: not _alive(group), description="nothing of the group is alive")


def test_children_in_the_background_end_with_the_command() -> None:
    """Also after a normal end: the run does not wait for them, and they do not outlive it."""
    with held() as it:
        began = time.monotonic()
        result = ShellAgent()(it.context, "sleep 600 & echo pid $$")

        group = int(result["output"].split()[1])
        wait_until(lambda: not _alive(group), description="nothing of the group is alive")
        assert time.monotonic() - began < 20


def test_a_command_that_takes_too_long_is_ended() -> None:
    """By its own timeout, with a code that says so."""
    with held() as it, pytest.raises(AsmError) as raised:
        ShellAgent(QUICK)(it.context, {"command": "echo begun; sleep 600", "timeout": 0.3})

    assert "command_timeout" == raised.value.code
    assert "begun\n" == raised.value.details["output"]


def test_a_command_that_closes_its_output_is_still_waited_for() -> None:
    """The end of the output is not the end of the command."""
    with held() as it:
        assert 0 == ShellAgent()(it.context, "exec >&- 2>&-; sleep 0.2")["exit_code"]


def test_a_failed_emit_leaves_no_command_behind() -> None:
    """Whatever ends the agent ends the command."""
    with held() as it:
        thread, ended = _start(it, "echo pid $$; while :; do echo more; sleep 0.02; done")
        wait_until(lambda: "more" in _streamed(it), description="the command has begun")
        group = int(_streamed(it).split()[1])

        it.writer.close(it.outbox)

        thread.join(20)
        assert isinstance(ended[0], AsmError)
        wait_until(lambda: not _alive(group), description="nothing of the group is alive")
