"""Whatever Redis does, work is accepted, what runs ends, and all goes on when Redis is well again."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asm_celery import errors
from asm_celery.config import Config
from asm_celery.embedded import EmbeddedServer
from asm_celery.model import Session
from asm_celery.moves import comparison
from asm_celery.queue.connection import KEEPALIVE, check_eviction, connect, reaching
from asm_celery.queue.upkeep import TYPES
from asm_celery.states import RunStatus
from asm_celery.worker.app import _settings
from tests.waiting import wait_until
from tests.world import World

FULL: Final = bool(os.environ.get("ASM_TEST_FULL"))
Fault = Callable[[redis.Redis], Callable[[], object] | None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server of this file's own, which may be told to misbehave."""
    with EmbeddedServer.start(tmp_path_factory.mktemp("redis"), persistent=False) as started:
        yield started


@pytest.fixture
def admin(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """Who makes it misbehave."""
    with redis.Redis.from_url(server.url) as client:
        yield client
        client.flushall()


@pytest.fixture
def here(sqlite_config: Config, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A process with room for eight runs on that server."""
    monkeypatch.setattr(comparison, "_PAUSE_S", 0.01)
    changes = {"redis_url": server.url, "lease_s": 60.0, "connect_timeout_s": 0.5}
    world = World(sqlite_config.model_copy(update=changes))
    yield world
    world.close()


def _out_of_memory(admin: redis.Redis) -> Callable[[], object]:
    admin.config_set("maxmemory", 1)
    return lambda: admin.config_set("maxmemory", 0)


def _read_only(admin: redis.Redis) -> Callable[[], object]:
    admin.replicaof("127.0.0.1", "1")
    return lambda: admin.replicaof("NO", "ONE")


def _without_replicas(admin: redis.Redis) -> Callable[[], object]:
    admin.config_set("min-replicas-to-write", 1)
    return lambda: admin.config_set("min-replicas-to-write", 0)


def _busy(admin: redis.Redis) -> Callable[[], object]:
    admin.config_set("busy-reply-threshold", 1)
    other = redis.Redis.from_url(f"unix://{admin.connection_pool.connection_kwargs['path']}")

    def loop() -> None:
        with suppress(redis.RedisError):
            other.eval("while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()

    def is_busy() -> bool:
        try:
            admin.ping()
        except redis.ResponseError as said:
            return "BUSY" in str(said)
        return False

    wait_until(is_busy, description="the server is busy")

    def heal() -> None:
        admin.script_kill()
        thread.join()
        other.close()

    return heal


def _paused(admin: redis.Redis) -> Callable[[], object]:
    admin.client_pause(60_000, all=False)
    return admin.client_unpause


def _scripts_forgotten(admin: redis.Redis) -> None:
    admin.script_flush()


def _connections_killed(admin: redis.Redis) -> None:
    admin.client_kill_filter(_type="normal", skipme=True)


def _flushed(admin: redis.Redis) -> None:
    admin.flushall()


def _gate_evicted(admin: redis.Redis) -> None:
    admin.delete(*admin.keys("*gate"))


def _leases_evicted(admin: redis.Redis) -> None:
    admin.delete(*admin.keys("*leases"))


def _another_type(admin: redis.Redis) -> None:
    for key in admin.keys("*known"):
        admin.delete(key)
        admin.set(key, "no set")


def _counter_garbled(admin: redis.Redis) -> None:
    # of the right type, so that only a script that counts stumbles over it
    for key in admin.keys("*turn"):
        admin.set(key, "no number")


FAULTS: list[Fault] = [
    _out_of_memory,
    _read_only,
    _without_replicas,
    _busy,
    _paused,
    _scripts_forgotten,
    _connections_killed,
    _flushed,
    _gate_evicted,
    _leases_evicted,
    _another_type,
    _counter_garbled,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_work_goes_on_through_a_fault_of_redis(here: World, admin: redis.Redis, fault: Fault) -> None:
    """Under it a submit is accepted, a running run ends, status answers; after it nothing is left behind."""
    first, second = here.session(), here.session()
    running, waiting = here.submit(first), here.submit(first)
    claim = here.start()
    here.runtime.recovery.beat("executor", {running: claim.number})

    heal = fault(admin)
    try:
        accepted = here.submit(second)
        assert RunStatus.COMPLETED == here.finish(claim).status
        assert [accepted] == here.server(second).status().queued_runs
        with suppress(errors.CoordinationUnavailable):
            here.runtime.limiter.get_status()
    finally:
        if heal is not None:
            heal()

    ended: list[str] = []

    def all_ended() -> bool:
        with suppress(errors.CoordinationUnavailable):
            here.tick()
            here.runtime.recovery.beat("executor", {})
        while here.bells.rung:
            started = here.try_start()
            if started is not None:
                ended.append(here.finish(started).run_id)
        return {waiting, accepted} == set(ended)

    wait_until(all_ended, description="what waited was executed")
    wait_until(
        lambda: here.tick() and not here.runtime.comparison.confirmed(),
        description="the doctor finds nothing",
    )
    assert 0 == here.runtime.limiter.get_status().active_runs


@pytest.mark.parametrize(
    "said",
    [
        redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
        redis.ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL"),
        redis.ResponseError("NOREPLICAS Not enough good replicas to write."),
        redis.ResponseError(
            "MISCONF Redis is configured to save RDB snapshots, script: 1, on @user_script:1."
        ),
        redis.exceptions.OutOfMemoryError("command not allowed script: 1, on @user_script:1."),
        redis.exceptions.ReadOnlyError("You can't write against a read only replica."),
        redis.exceptions.NoPermissionError("this user has no permissions script: 1, on @user_script:1."),
        redis.ConnectionError("Connection reset by peer"),
        redis.TimeoutError("Timeout reading from socket"),
    ],
    ids=lambda said: type(said).__name__ + str(said)[:4],
)
def test_what_the_server_refuses_is_retryable_and_no_damage(said: redis.RedisError) -> None:
    """Nothing is thrown away because the server could not answer."""
    with pytest.raises(errors.CoordinationUnavailable) as refused, reaching("redis://somewhere"):
        raise said

    assert refused.value.retryable
    assert not isinstance(refused.value, errors.CoordinationDamaged)


def test_a_server_that_evicts_is_refused_unless_allowed(sqlite_config: Config, admin: redis.Redis) -> None:
    """The error says what would happen and what to set; a setting allows it."""
    admin.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(errors.EvictionAllowed, match="maxmemory-policy noeviction") as refused:
            check_eviction(admin, sqlite_config)
        check_eviction(admin, sqlite_config.model_copy(update={"allow_eviction": True}))
    finally:
        admin.config_set("maxmemory-policy", "noeviction")
    check_eviction(admin, sqlite_config)

    assert "ASM_ALLOW_EVICTION" in refused.value.message


def test_every_connection_notices_a_peer_that_vanished(sqlite_config: Config) -> None:
    """Socket timeouts and keep-alive probes are set, for coordination, pub/sub and the broker."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        config = sqlite_config.model_copy(update={"redis_url": url})
        for blocking in (False, True):
            pool = connect(config, blocking=blocking).connection_pool
            with pool.make_connection()._connect() as opened:  # type: ignore[attr-defined]
                probes = {option: opened.getsockopt(socket.IPPROTO_TCP, option) for option in KEEPALIVE}
                assert KEEPALIVE == probes
                assert blocking or opened.gettimeout()

    options = _settings(config)["broker_transport_options"]
    assert KEEPALIVE == options["socket_keepalive_options"]
    assert 0 < options["socket_timeout"] <= 5


# what anybody may write
_WORDS = st.one_of(
    st.binary(max_size=40),
    st.integers(-(10**25), 10**25).map(str),
    st.sampled_from(["", "nan", "inf", "-inf", "1e300", "begun", "waiting", "dispatched", "held", "0", "-1"]),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
_SCORES = st.one_of(st.floats(allow_nan=False), st.integers(-(2**53), 2**53).map(float))
_NAMES = st.sampled_from(sorted(TYPES))


class _Deep(str):
    """Brackets in brackets; a failure must be able to name it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{self[:3]!s}... {len(self)}"


_DEEP = _Deep("[" * 100_000)


@st.composite
def damages(draw: st.DrawFn) -> tuple[Any, ...]:
    """A command that leaves something at a key of ours which we never write."""
    name, word, other = draw(_NAMES), draw(_WORDS), draw(_WORDS)
    kind = draw(st.sampled_from([TYPES[name], TYPES[name], "string", "hash", "set", "zset", "list"]))
    subject = draw(st.one_of(st.just(0), st.just(1), st.binary(min_size=1, max_size=10)))
    fields = [
        "state",
        "claims",
        "claim",
        "session",
        "queue",
        "beat",
        "not_before",
        "version",
        "slots",
        "line",
    ]
    fields += ["runs", "sessions", "hold", "hold_version", "ring_ms", "position", "executor", "agent"]
    match kind:
        case "string":
            return name, subject, TYPES[name] != kind, "SET", word
        case "hash":
            return name, subject, TYPES[name] != kind, "HSET", draw(st.sampled_from(fields) | _WORDS), other
        case "zset":
            return name, subject, TYPES[name] != kind, "ZADD", draw(_SCORES), word
        case "set":
            return name, subject, TYPES[name] != kind, "SADD", word
    return name, subject, True, "RPUSH", word


@pytest.mark.timeout(2400 if FULL else 120)
@settings(
    max_examples=1000 if FULL else 10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(found=st.lists(damages(), min_size=1, max_size=3), message=st.one_of(_WORDS, st.just(_DEEP)))
def test_what_anybody_writes_at_our_keys_harms_no_run(
    here: World, admin: redis.Redis, found: list[tuple[Any, ...]], message: Any
) -> None:
    """No error but typed ones, no harm in SQL; repair and doctor restore service, and all runs end in order."""
    admin.flushall()
    here.bells.rung.clear()
    here.tick()
    sessions: list[Session] = [here.session() for _ in range(2)]
    runs = [here.submit(session) for session in sessions for _ in range(2)]
    claim = here.start()
    root = here.config.keys.root
    for name, subject, is_wrong, verb, *rest in found:
        key = (root + name).encode()
        if name.endswith(":"):
            names = [runs[1], runs[2]] if name == "run:" else [session.session_id for session in sessions]
            names = [here.config.default_queue] * 2 if name in ("load:", "workers:") else names
            key += names[subject].encode() if isinstance(subject, int) else subject
        if is_wrong:
            admin.delete(key)
        with suppress(redis.ResponseError):
            admin.execute_command(verb, key, *rest)  # type: ignore[no-untyped-call]

    ended: list[str] = []
    open_claims, passes = [claim], iter(range(1_000_000))

    def all_ended() -> bool:
        while open_claims:
            ended.append(here.finish(open_claims.pop()).run_id)
        with suppress(errors.CoordinationUnavailable):
            here.announce()
        with suppress(errors.CoordinationUnavailable):
            here.runtime.recovery.repair()
            beat(here)
        if next(passes) % 10 == 9:
            # what repair leaves to the doctor
            with suppress(errors.CoordinationUnavailable):
                mend(here)
        while here.bells.rung:
            started = here.try_start()
            if started is not None:
                open_claims.append(started)
        return len(ended) == len(runs)

    wait_until(all_ended, description="all runs have ended", timeout=20)
    for at in (0, 2):
        assert runs[at : at + 2] == [run_id for run_id in ended if run_id in runs[at : at + 2]]
    admin.publish(here.config.keys.control("executor"), message)
    mend(here)
    assert [] == here.runtime.comparison.confirmed()
    here.bells.rung.clear()


def beat(world: World) -> None:
    """Say that the executor lives."""
    world.runtime.recovery.beat("executor", {})


def mend(world: World) -> None:
    """Do what ``asm doctor --fix`` does."""
    for _ in range(5):
        for one in world.runtime.comparison.confirmed():
            world.runtime.comparison.mend(one)
