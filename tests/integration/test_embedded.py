"""The embedded server: on a socket only, one for a folder, and never an orphan."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from asm_celery import embedded_binary
from asm_celery.embedded import EmbeddedServer
from asm_celery.errors import DependencyNotAvailable
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
# Starts a server in the folder argv[1], says "PID is_shared", and stays until its stdin ends.
STARTER = """
import sys
from pathlib import Path
from asm_celery.embedded import EmbeddedServer
server = EmbeddedServer.start(Path(sys.argv[1]))
print(server.pid, server.is_shared, flush=True)
sys.stdin.read()
server.stop()
"""


@contextlib.contextmanager
def starter(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Run STARTER and kill it at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str]) -> tuple[int, bool]:
    """Return the server's pid and whether the process shares it."""
    assert process.stdout is not None
    pid, is_shared = process.stdout.readline().split()
    return int(pid), is_shared == "True"


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def group_of(pid: int) -> int:
    """Return the process group in which wrapper and server live."""
    return os.getpgid(pid)


def has_members(group: int) -> bool:
    """Say whether anything of a process group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_server_answers_on_its_socket_and_on_no_port(tmp_path: Path) -> None:
    """Only the user who started it can reach it."""
    with EmbeddedServer.start(tmp_path / "home") as server:
        socket = Path(server.url.removeprefix("unix://").partition("?")[0])
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            assert client.ping()
            assert {"port": "0"} == {key: str(value) for key, value in client.config_get("port").items()}
            assert server.pid == client.info("server")["process_id"]

        assert 0o700 == stat.S_IMODE(socket.stat().st_mode)
        assert 0o700 == stat.S_IMODE(server.home.stat().st_mode)
        assert "*\n" == (server.home / ".gitignore").read_text()


def test_nothing_is_left_after_stop_but_the_data(tmp_path: Path) -> None:
    """A stopped server leaves no process, no socket, and what was written."""
    server = EmbeddedServer.start(tmp_path / "home")
    group = group_of(server.pid)
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        client.set("kept", "yes")

    server.stop()
    server.stop()

    assert not is_alive(server.pid)
    wait_until(lambda: not has_members(group), description="wrapper and watcher are gone too")
    assert not (server.home / "r.sock").exists()
    with (
        EmbeddedServer.start(server.home) as again,
        contextlib.closing(redis.Redis.from_url(again.url)) as client,
    ):
        assert b"yes" == client.get("kept")


def test_a_server_without_persistence_forgets(tmp_path: Path) -> None:
    """`persistent=False` keeps no file of the data."""
    with (
        EmbeddedServer.start(tmp_path, persistent=False) as server,
        contextlib.closing(redis.Redis.from_url(server.url)) as client,
    ):
        client.set("kept", "no")

    with (
        EmbeddedServer.start(tmp_path, persistent=False) as again,
        contextlib.closing(redis.Redis.from_url(again.url)) as client,
    ):
        assert client.get("kept") is None


def test_another_process_reuses_the_server_and_leaves_it_running(tmp_path: Path) -> None:
    """Processes that name the same folder share one server; only its starter ends it."""
    with EmbeddedServer.start(tmp_path / "home") as server:
        with starter(server.home) as other:
            assert (server.pid, True) == answer(other)
            assert other.stdin is not None
            other.stdin.close()
            assert 0 == other.wait(20)

        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            assert client.ping()
            assert server.pid == client.info("server")["process_id"]


def test_of_two_processes_that_start_at_once_one_starts_a_server(tmp_path: Path) -> None:
    """The folder's lock decides who starts."""
    with starter(tmp_path / "home") as one, starter(tmp_path / "home") as other:
        answers = [answer(one), answer(other)]

    assert 1 == len({pid for pid, _ in answers})
    assert [False, True] == sorted(is_shared for _, is_shared in answers)


def test_no_orphan_is_left_when_the_starter_is_killed(tmp_path: Path) -> None:
    """Even SIGKILL of the process that started it ends the server."""
    with starter(tmp_path / "home") as process:
        pid, _ = answer(process)
        group = group_of(pid)
        process.send_signal(signal.SIGKILL)
        process.wait(20)

    wait_until(lambda: not has_members(group), description="server, wrapper and watcher are gone")
    with EmbeddedServer.start(tmp_path / "home") as server:
        assert not server.is_shared


def test_a_forked_child_neither_stops_the_server_nor_keeps_it_alive(tmp_path: Path) -> None:
    """A prefork child inherits the object, but not the server."""
    server = EmbeddedServer.start(tmp_path / "home")
    stay, go = os.pipe()
    child = os.fork()
    if child == 0:
        server.stop()
        os.close(go)
        os.read(stay, 1)
        os._exit(0)
    try:
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            assert client.ping()

        server.stop()

        assert not is_alive(server.pid)
    finally:
        os.close(stay)
        os.close(go)
        os.waitpid(child, 0)


def test_a_server_that_lost_its_watchdog_is_replaced(tmp_path: Path) -> None:
    """A server that nobody watches would run for ever: the next start ends it and keeps its data."""
    with starter(tmp_path / "home") as process:
        pid, _ = answer(process)
        with contextlib.closing(redis.Redis(unix_socket_path=str(tmp_path / "home/r.sock"))) as client:
            client.set("kept", "yes")
        wrapper = group_of(pid)  # it leads its group
        os.kill(wrapper, signal.SIGKILL)
        wait_until(lambda: not is_alive(wrapper), description="the wrapper is gone")

        with (
            EmbeddedServer.start(tmp_path / "home") as server,
            contextlib.closing(redis.Redis.from_url(server.url)) as client,
        ):
            assert not server.is_shared
            assert pid != server.pid
            assert b"yes" == client.get("kept")
        wait_until(lambda: not is_alive(pid), description="the unwatched server is gone")


def test_a_foreign_server_on_the_socket_is_not_touched(tmp_path: Path) -> None:
    """A server that was not started for the folder is refused, and lives on."""
    with EmbeddedServer.start(tmp_path / "foreign") as foreign:
        home = tmp_path / "home"
        home.mkdir()
        (home / "r.sock").symlink_to(foreign.home / "r.sock")

        with pytest.raises(DependencyNotAvailable, match=str(foreign.pid)):
            EmbeddedServer.start(home)

        assert is_alive(foreign.pid)


def test_a_long_or_odd_path_moves_the_socket_and_not_the_data(tmp_path: Path) -> None:
    """A socket's path is bounded by the system; the folder's is not."""
    for name in ("long" * 40, "odd ?#% name"):
        with EmbeddedServer.start(tmp_path / name) as server:
            socket = Path(server.url.removeprefix("unix://").partition("?")[0])
            with contextlib.closing(redis.Redis.from_url(server.url)) as client:
                assert client.ping()
            with EmbeddedServer.start(tmp_path / name) as shared:
                assert shared.is_shared

            assert 100 >= len(str(socket))
            assert (server.home / "valkey.log").exists()
            assert 0o700 == stat.S_IMODE(socket.parent.stat().st_mode)
        assert not socket.parent.exists()


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its log is in the error."""
    broken = tmp_path / "broken-server"
    broken.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "Valkey server v=9.9.9 sha=0"; exit 0; fi\n'
        "echo no memory for this; exit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("ASM_EMBEDDED_SERVER", str(broken))

    with pytest.raises(DependencyNotAvailable, match="no memory for this"):
        EmbeddedServer.start(tmp_path / "home")


def test_an_old_server_on_path_is_refused_with_the_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wheel PATH is searched, and what is too old is named."""
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=00000000:0 malloc=jemalloc bits=64'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(DependencyNotAvailable) as refused:
        embedded_binary.find()

    assert f"{old}: it is redis 6.2, 7.0 is needed" in refused.value.details["looked_at"]
    for remedy in ("pip install", "system's packages", "ASM_REDIS_URL"):
        assert remedy in refused.value.message


def test_a_named_binary_is_used_or_refused_but_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who names a server means that one."""
    usual = embedded_binary.find()
    monkeypatch.setenv("ASM_EMBEDDED_SERVER", str(usual))
    assert usual == embedded_binary.find()

    monkeypatch.setenv("ASM_EMBEDDED_SERVER", str(tmp_path / "nowhere"))
    with pytest.raises(DependencyNotAvailable, match="no such file"):
        embedded_binary.find()
