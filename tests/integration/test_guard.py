"""The guard: what it ends and what it spares, with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from asm_celery.worker import guard, process
from tests.commanding import Owner, Word
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="marks in the environment need /proc")

LIMIT_S = 1.5


@pytest.fixture
def owner() -> Iterator[Owner]:
    """A process that may have a guard and commands."""
    with Owner() as one:
        yield one


def _wait_ended(process: psutil.Process) -> None:
    wait_until(lambda: _has_ended(process), description=f"process {process.pid} has ended")


def _has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _pass_s(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, description="the time has passed")


def test_a_killed_process_leaves_nothing_of_its_commands(owner: Owner) -> None:
    """Neither grandchildren that ignore every signal, nor what left the group, nor the guard itself."""
    it, word = owner.guard(), owner.run()
    word.wait_begun()

    owner.kill()

    word.wait_gone()
    _wait_ended(it)


def test_a_killed_child_leaves_nothing_and_its_parents_commands_go_on(owner: Owner) -> None:
    """One guard serves a process and its forked children, each by its own life."""
    it, parents, childs = owner.guard(), owner.run(), Word()
    pid = owner.do(f"forked(STUBBORN, {childs.text!r})")
    parents.wait_begun()
    childs.wait_begun()

    os.kill(pid, signal.SIGKILL)

    childs.wait_gone()
    parents.wait_begun()
    assert not _has_ended(it)


def test_a_child_forked_before_there_was_a_guard_has_its_own(owner: Owner) -> None:
    """And that one outlives the child long enough."""
    childs = Word()
    pid = owner.do(f"forked(STUBBORN, {childs.text!r})")
    childs.wait_begun()

    os.kill(pid, signal.SIGKILL)

    childs.wait_gone()


@pytest.mark.parametrize("ending", ["close", "end"])
def test_the_guard_ends_with_its_process_in_good_order(owner: Owner, ending: str) -> None:
    """Without a signal, by the end of its pipe."""
    it = owner.guard()

    if ending == "close":
        owner.do("link().close()")
    else:
        owner.end()

    _wait_ended(it)


def test_the_guard_ends_what_is_left_when_its_process_becomes_another_program(owner: Owner) -> None:
    """The program started by exec has the same number, and knows nothing of the commands."""
    it, word = owner.guard(), owner.run()
    word.wait_begun()

    owner.tell("import os; os.execv('/bin/sleep', ['sleep', '600'])")

    word.wait_gone()
    _wait_ended(it)
    assert owner.is_alive()


def test_a_killed_guard_is_replaced_at_the_next_use(owner: Owner) -> None:
    """And the new one is told what the old one knew."""
    first, word = owner.guard(), owner.run()
    word.wait_begun()

    first.kill()
    _wait_ended(first)
    owner.do("link().tick()")
    second = owner.guard()
    owner.kill()

    assert first.pid != second.pid
    word.wait_gone()


def test_a_child_whose_parents_guard_was_killed_starts_its_own(owner: Owner) -> None:
    """It does not stay unguarded for the rest of its life."""
    owner.guard().kill()
    childs = Word()
    pid = owner.do(f"forked(STUBBORN, {childs.text!r})")
    childs.wait_begun()

    os.kill(pid, signal.SIGKILL)

    childs.wait_gone()


def test_the_guard_does_not_obey_what_ends_workers(owner: Owner) -> None:
    """Ctrl-C reaches a terminal's group, a service manager signals every process of a unit."""
    it = owner.guard()
    # the signals are ignored once it runs, and that it runs is seen by what it ends
    owner.run("sleep 600").wait_begun(1)
    _wait_guarding(it)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        it.send_signal(number)
    owner.do("link().tick()")

    assert os.getsid(it.pid) == it.pid
    assert owner.guard().pid == it.pid


def test_the_guard_is_small(owner: Owner) -> None:
    """It stands beside every worker; under 12 MB."""
    it = owner.guard()
    _wait_guarding(it)

    assert it.memory_info().rss < 12 * 2**20


def test_a_silent_process_is_killed_and_a_ticking_one_is_not(owner: Owner) -> None:
    """Each by its own ticks; nothing is counted before the first one."""
    with Owner() as silent, Owner() as unheard:
        for one in (owner, silent, unheard):
            one.do(f"link().watch(__import__('os').getpid(), {LIMIT_S})")
        word = silent.run()
        word.wait_begun()
        owner.do("ticking(0.1)")
        silent.do("link().tick()")

        wait_until(lambda: not silent.is_alive(), description="the silent one is dead")
        word.wait_gone()
        _pass_s(2 * LIMIT_S)

        assert owner.is_alive()
        assert unheard.is_alive()


def test_a_limit_that_was_lifted_kills_nobody(owner: Owner) -> None:
    """0 is no limit; a process that ends in good order needs no ticks any more."""
    owner.do(f"link().watch(__import__('os').getpid(), {LIMIT_S})")
    owner.do("link().tick()")
    owner.do("link().watch(__import__('os').getpid(), 0)")

    _pass_s(2 * LIMIT_S)

    assert owner.is_alive()


def test_a_guard_that_was_stopped_does_not_kill_in_haste(owner: Owner) -> None:
    """Who was silent while it did not look gets the whole limit again."""
    it = owner.guard()
    owner.do(f"link().watch(__import__('os').getpid(), {LIMIT_S})")
    owner.do("link().tick()")
    _wait_guarding(it)
    it.suspend()
    _pass_s(3 * LIMIT_S)

    it.resume()
    owner.do("ticking(0.1)")
    _pass_s(2 * LIMIT_S)

    assert owner.is_alive()
    assert not _has_ended(it)


def test_a_guard_that_is_stuck_is_replaced(owner: Owner) -> None:
    """It is killed first: at the end of its pipe it would kill living groups."""
    first, word = owner.guard(), owner.run()
    word.wait_begun()
    first.suspend()

    owner.do("[link().tick() for _ in range(10_000)] and None")

    _wait_ended(first)
    word.wait_begun()
    assert owner.guard().pid != first.pid
    owner.kill()
    word.wait_gone()


def test_a_message_that_is_not_understood_changes_nothing(owner: Owner) -> None:
    """Group 1 would mean every process there is."""
    it, word = owner.guard(), owner.run()
    word.wait_begun()

    for message in ("", "group", f"group {owner.pid} 1 0 x", "watch x y z", "tick x", "\0\xc3"):
        owner.do(f"__import__('os').write(link()._pipe, {message!r}.encode() + b'\\n') and None")
    owner.kill()

    word.wait_gone()
    _wait_ended(it)


def test_a_group_whose_number_is_anothers_by_now_is_spared() -> None:
    """A leader that was started at another time is not the one that was told."""
    with _session() as stranger:
        start = process.start_time(stranger.pid)

        process.kill_group(stranger.pid, start - 1)
        assert _answers(stranger)

        process.kill_group(stranger.pid, start)
        assert -signal.SIGKILL == stranger.wait(20)


def test_only_who_executes_nothing_any_more_has_ended() -> None:
    """Killed and not reaped, reaped, or its number another's; a living and a stopped one have not."""
    with _session() as stranger:
        start = process.start_time(stranger.pid)

        living = process.has_ended(stranger.pid, start)
        stranger.send_signal(signal.SIGSTOP)
        stopped = process.has_ended(stranger.pid, start)
        anothers = process.has_ended(stranger.pid, start - 1)
        stranger.kill()
        os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)
        killed = process.has_ended(stranger.pid, start)
        stranger.wait(20)
        reaped = process.has_ended(stranger.pid, start)

    assert (False, False, True, True, True) == (living, stopped, anothers, killed, reaped)


def test_only_executors_that_died_with_their_owner_are_buried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that left in good order, and not those of a process that lives."""
    started: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(guard, "_start_burial", lambda text, names: started.append((text, names)))
    monkeypatch.setattr(guard, "DIE_S", 0.1)
    ends = os.pipe()
    it = guard.Guard(ends[0])

    with _session() as dead, _session() as living:
        for name, one in (("lost", dead), ("left", dead), ("alive", living)):
            start = process.start_time(one.pid)
            it._obey(["executor", str(dead.pid), str(one.pid), str(start), name])
        it._obey(["burial", "how"])
        it._obey(["left", "left"])
        dead.kill()
        dead.wait(20)
        it._end(list(it._owners.values()))

    assert [("how", ["lost"])] == started
    for end in ends:
        os.close(end)


def test_a_process_is_spared_when_nothing_is_looked_for() -> None:
    """No token is in every environment."""
    with _session() as stranger:
        process.sweep([])
        process.sweep([os.urandom(8).hex()])

        assert _answers(stranger)


def test_a_command_of_a_process_killed_before_it_was_registered_never_runs(
    owner: Owner, tmp_path: Path
) -> None:
    """The race between the fork and the guard's knowing of it: the gate stays shut."""
    word, trace = Word(), tmp_path / "trace"
    owner.do("import os, signal")
    owner.do("link().group = lambda *_: os.kill(os.getpid(), signal.SIGKILL)")

    owner.tell(f"command('touch {trace}', {word.text!r})")

    wait_until(lambda: not owner.is_alive(), description="the owner is dead")
    word.wait_gone()
    assert not trace.exists()


@pytest.mark.parametrize("parent", ["living", "dead"])
def test_a_child_dies_with_its_parent(owner: Owner, parent: str) -> None:
    """By the kernel's signal, and also when the parent died before that was asked for."""
    word = Word()
    script = (
        "import sys, os; from asm_celery.worker.guard_link import die_with_parent; "
        "die_with_parent(int(sys.argv[1])); os.write(1, b'up'); os.read(0, 1)"
    )
    told = owner.pid if parent == "living" else 2**22
    owner.do("import subprocess, sys, os")
    owner.do(
        f"child = subprocess.Popen([sys.executable, '-c', {script!r}, {str(told)!r}], "
        f"stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={{**os.environ, 'TEST_WORD': {word.text!r}}})"
    )
    if parent == "dead":
        assert -signal.SIGKILL == owner.do("child.wait()")
        return
    assert b"up" == owner.do("child.stdout.read(2)")
    word.wait_begun(1)

    owner.kill()

    word.wait_gone()


def _wait_guarding(it: psutil.Process) -> None:
    """Wait until the program, and not its interpreter's start, sleeps in its poll."""
    path = Path(f"/proc/{it.pid}/status")
    wait_until(
        lambda: int(path.read_text().split("SigIgn:")[1].split()[0], 16) & (1 << (signal.SIGTERM - 1)),
        description="the guard ignores signals",
    )


@contextlib.contextmanager
def _session() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        ["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        yield process


def _answers(process: subprocess.Popen[bytes]) -> bool:
    """Say whether it lives: one that was just sent SIGKILL may still look alive, but says no more."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"?\n")
    process.stdin.flush()
    return process.stdout.readline() == b"?\n"
