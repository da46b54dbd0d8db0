"""The shipped ACL: all of us works under it, and what could hurt the server or another namespace does not."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from asm_celery import AgentSessions, Config
from tests.conftest import environment
from tests.named_tests import ROOT
from tests.waiting import wait_until

PASSWORD = "a-password"  # made up
FORBIDDEN = [
    ("CONFIG", "GET", "*"), ("CONFIG", "SET", "dir", "/tmp"), ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"),
    ("SCAN", "0"), ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"), ("FUNCTION", "FLUSH"), ("EVAL", "return 1", "0"),
    ("SHUTDOWN", "NOSAVE"), ("REPLICAOF", "127.0.0.1", "1"), ("MONITOR",), ("SAVE",),
    ("BGREWRITEAOF",), ("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "PAUSE", "1"),
    ("ACL", "LIST"), ("ACL", "SETUSER", "asm", "+@all"), ("MODULE", "LIST"), ("SWAPDB", "0", "1"),
    ("MIGRATE", "127.0.0.1", "1", "x", "0", "1"), ("GET", "asm:{other}:gate"), ("SET", "x", "1"),
    ("PUBLISH", "asm:{other}:events:x", "1"), ("SUBSCRIBE", "asm:{other}:events:x"), ("PSUBSCRIBE", "*"),
    ("SORT", "asm:{other}:x"),
]  # fmt: skip


@pytest.fixture
def confined(sqlite_config: Config) -> Iterator[Config]:
    """The installation of the test, with the user of the file."""
    text = (ROOT / "ops" / "redis.acl").read_text()
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    line = next(line for line in text.splitlines() if line.startswith("user asm "))
    words = line.replace("NAMESPACE", sqlite_config.namespace).replace("DIGEST", digest).split()
    name = f"asm-{sqlite_config.namespace}"
    with contextlib.closing(redis.Redis.from_url(sqlite_config.redis_url)) as admin:
        admin.execute_command("ACL", "SETUSER", name, "reset", *words[2:])
        admin.acl_log_reset()
        url = sqlite_config.redis_url.replace("://", f"://{name}:{PASSWORD}@", 1)
        yield sqlite_config.model_copy(update={"redis_url": url})
        admin.acl_deluser(name)


def test_everything_works_under_the_shipped_acl(
    sqlite_config: Config, confined: Config, start_worker: Callable[..., Any]
) -> None:
    """Runs, events, stops, the limiter, the status and the doctor; and the server refused nothing of it."""
    start_worker("workers.app", pool="threads", env=environment(confined))
    with AgentSessions(confined) as asm:
        server = asm.start_session("sleeper")
        assert "x" == asm.start_session("echo").execute_run("x", timeout=60).output
        run_id = server.submit_run(60)
        with server.subscribe(type="run_started") as events:
            assert events.get(30)
        asm.limiter.acquire_session_slot("mine")
        asm.limiter.release_session_slot("mine")
        asm.control.hold()
        asm.control.release()
        waiting = server.submit_run(1)
        server.cancel_run(waiting)
        server.cancel_run(run_id, wait=True, timeout=30)
        assert "cancelled" == server.get_run(run_id).status
        assert 0 == server.status().in_flight_count
        wait_until(lambda: asm.celery_app.control.inspect(timeout=2).ping(), description="it answers")
    with contextlib.closing(redis.Redis.from_url(sqlite_config.redis_url)) as admin:
        name = f"asm-{confined.namespace}"
        assert [] == [entry for entry in admin.acl_log() if entry["username"] == name]


def test_every_command_of_the_scripts_is_allowed() -> None:
    """A script is asked for each command it calls, and stops in its middle at the first that is refused."""
    scripts = (ROOT / "asm_celery" / "queue" / "lua").rglob("*.lua")
    called = {word.lower() for path in scripts for word in re.findall(r"p?call\('(\w+)", path.read_text())}

    assert called <= set(re.findall(r"\+(\S+)", (ROOT / "ops" / "redis.acl").read_text()))


@pytest.mark.parametrize("command", FORBIDDEN, ids=[" ".join(one)[:40] for one in FORBIDDEN])
def test_a_forbidden_command_is_refused(confined: Config, command: tuple[str, ...]) -> None:
    """Not one of them is needed, and each could read, stop or empty the server, or reach another namespace."""
    with contextlib.closing(redis.Redis.from_url(confined.redis_url)) as client:
        assert client.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)
