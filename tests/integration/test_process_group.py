"""A command of the shell agent leaves nothing behind: in this process, and in a worker that is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from asm_celery import AgentSessions, errors
from asm_celery.config import Config
from asm_celery.errors import StopRun
from asm_celery.worker.guard_link import link
from tests.commanding import STUBBORN, Word
from tests.waiting import wait_until
from tests.workers import WorkerProcess
from workers.process_group import LADDER, MARK, Command, ProcessGroup

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="marks in the environment need /proc")

QUICK = tuple((number, 0.2) for number, _ in LADDER)
GUARDED = "tests.integration.guarded_worker"


@pytest.fixture
def word() -> Word:
    """The mark of this test's command."""
    return Word()


def _group(word: Word, script: str, **more: object) -> ProcessGroup:
    return ProcessGroup(Command(argv=["/bin/sh", "-c", script], env=word.env, **more), QUICK)


@pytest.mark.parametrize(
    "background",
    [
        "sleep 600",
        "setsid sleep 600",
        "setsid sh -c 'setsid sleep 600 & sleep 600'",
        "trap '' TERM; sleep 600",
    ],
)
def test_what_a_command_left_in_the_background_ends_with_it(word: Word, background: str) -> None:
    """After a normal end, whether it stayed in the group or left it."""
    with _group(word, f"({background}) >/dev/null 2>&1 & echo done") as group:
        lines = list(group.lines())

    assert ["done\n"] == lines
    assert 0 == group.exit_code
    word.wait_gone()


def test_output_held_open_by_who_left_the_group_does_not_delay_the_end(word: Word) -> None:
    """It is found and killed when the command has ended."""
    with _group(word, "setsid sleep 600 & echo done") as group:
        assert ["done\n"] == list(group.lines())

    word.wait_gone()


def test_a_stop_leaves_nothing_of_a_command_that_ignores_it(word: Word) -> None:
    """Pipeline, background and what left the group."""
    with _group(word, STUBBORN) as group:
        word.wait_begun()
        stopper = threading.Thread(target=group.stop)
        stopper.start()
        assert [] == list(group.lines())
        stopper.join()

    word.wait_gone()


def test_an_error_of_the_code_that_reads_it_leaves_nothing(word: Word) -> None:
    """Whatever it is."""
    with pytest.raises(StopRun), _group(word, STUBBORN):
        word.wait_begun()
        raise StopRun("cancel")

    word.wait_gone()


def test_a_stop_in_the_middle_of_the_start_leaves_nothing(
    word: Word, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception raised in the body at any moment: the command was let go already, or never is."""
    begun = link().group

    def interrupted(pgid: int, token: str) -> None:
        begun(pgid, token)
        raise StopRun("cancel")

    monkeypatch.setattr(link(), "group", interrupted)
    group = _group(word, STUBBORN)

    with pytest.raises(StopRun):
        group.__enter__()

    word.wait_gone()
    # killed before its gate, or it found the gate closed for ever
    assert group.exit_code in (128 + signal.SIGKILL, 127)


def test_a_stop_in_the_middle_of_the_end_leaves_nothing(word: Word, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is begun again."""
    ended = link().ended
    told: list[int] = []

    def interrupted(pgid: int) -> None:
        told.append(pgid)
        if len(told) == 1:
            raise StopRun("cancel")
        ended(pgid)

    monkeypatch.setattr(link(), "ended", interrupted)

    with pytest.raises(StopRun), _group(word, STUBBORN) as group:
        word.wait_begun()

    word.wait_gone()
    assert 128 + signal.SIGKILL == group.exit_code
    assert 2 == len(told)


def test_a_command_hears_neither_the_gate_nor_the_guard(word: Word, tmp_path: Path) -> None:
    """Its standard input is empty, no descriptor of ours is open in it, its environment has one mark more."""
    # cat ends at once; what ls lists is its own folder of descriptors
    script = f"cat; ls /proc/self/fd | tr '\\n' ' '; echo; echo ${MARK}"
    with _group(word, script, cwd=str(tmp_path)) as group:
        descriptors, mark = group.lines()

    # the fourth is the folder itself
    assert "0 1 2 3 \n" == descriptors
    assert 16 == len(mark.strip())


def test_marks_of_an_outer_command_are_passed_on(word: Word, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is itself part of a command: whoever ends that finds the inner ones too."""
    monkeypatch.setenv(MARK, "0123456789abcdef")
    with _group(word, f"echo ${MARK}") as group:
        (marks,) = group.lines()

    assert marks.startswith("0123456789abcdef:")
    assert 33 == len(marks.strip())


def _started(start_worker: Callable[..., WorkerProcess], config: Config, module: str, word: Word) -> tuple:
    worker = start_worker(module, concurrency=2)
    asm = AgentSessions(config)
    run_id = asm.start_session("shell").submit_run({"command": STUBBORN, "env": word.env})
    word.wait_begun()
    main = psutil.Process(worker.pid)
    leader = next(one for one in word.carriers() if os.getpgid(one.pid) == one.pid)
    child = next(one for one in leader.parents() if one.ppid() == main.pid)
    return asm, run_id, worker, child


@pytest.mark.parametrize("module", [GUARDED, "workers.app"])
def test_a_killed_child_of_a_worker_leaves_nothing_of_its_command(
    start_worker: Callable[..., WorkerProcess], sqlite_config: Config, word: Word, module: str
) -> None:
    """With the guard of the worker, or, where that has none, with the child's own; the worker goes on."""
    asm, run_id, worker, child = _started(start_worker, sqlite_config, module, word)

    child.kill()

    word.wait_gone()
    with asm, pytest.raises(errors.RunFailed) as failed:
        asm.attach(asm.get_run(run_id).session_id).await_run(run_id, timeout=30)
    assert "worker_lost" == failed.value.code
    assert not worker.has_ended


def test_a_killed_worker_leaves_neither_children_nor_their_commands(
    start_worker: Callable[..., WorkerProcess], sqlite_config: Config, word: Word
) -> None:
    """Its children die with it, the guard ends their commands and then itself."""
    asm, _, worker, child = _started(start_worker, sqlite_config, GUARDED, word)
    others = psutil.Process(worker.pid).children()

    os.kill(worker.pid, signal.SIGKILL)

    word.wait_gone()
    wait_until(lambda: not any(map(_lives, [child, *others])), description="children and guard have ended")
    asm.close()


def test_the_guard_ends_with_a_worker_that_ends_in_good_order(
    start_worker: Callable[..., WorkerProcess], sqlite_config: Config
) -> None:
    """A deploy leaves no process behind."""
    worker = start_worker(GUARDED)
    (guard,) = (one for one in psutil.Process(worker.pid).children() if "guard.py" in " ".join(one.cmdline()))

    worker.terminate()
    worker.wait()

    wait_until(lambda: not _lives(guard), description="the guard has ended")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
