"""Faults of Redis: lost, cut, stopped, full, read-only, and keys that are gone or of the wrong type."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

from redis import RedisError

from tests.faults import system
from tests.faults.nemesis import Hit, fault
from tests.faults.preset import DOORBELL_S, QUIET_S, RING_S, STORE_S
from tests.faults.stage import Stage


@fault("redis", bound_s=STORE_S)
def flushall(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """FLUSHALL."""
    stage.redis.client.flushall()
    yield 0.0


@fault("redis", bound_s=STORE_S)
def flushall_twice(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """FLUSHALL, and again while the first is being repaired."""
    stage.redis.client.flushall()
    yield dice.uniform(0.05, 1.2)
    stage.redis.client.flushall()


@fault("redis", bound_s=STORE_S)
def redis_back_empty(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL Redis and start it without its data."""
    hit.cuts.add("redis")
    stage.redis.kill()
    stage.redis.forget()
    yield dice.uniform(0.0, 2.0)
    stage.redis.start()


@fault("redis", bound_s=STORE_S)
def redis_away(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL Redis, leave it away for twice a lease, start it without its data."""
    hit.cuts.add("redis")
    stage.redis.kill()
    stage.redis.forget()
    yield 8.0
    stage.redis.start()


@fault("redis", bound_s=STORE_S)
def redis_restarted(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL Redis and start it on its append-only file."""
    hit.cuts.add("redis")
    stage.redis.kill()
    yield dice.uniform(0.0, 1.0)
    stage.redis.start()


@fault("redis", bound_s=STORE_S)
def redis_tail_cut(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL Redis, cut off the end of its append-only file, start it on what is left."""
    hit.cuts.add("redis")
    stage.redis.kill()
    share = dice.uniform(0.001, 0.3)
    stage.redis.cut_tail(share)
    hit.note = f"{share:.1%} lost"
    yield dice.uniform(0.0, 1.0)
    stage.redis.start()


@fault("redis", bound_s=STORE_S)
def redis_frozen(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGSTOP Redis for some seconds: its peers are half-open."""
    hit.cuts.add("redis")
    system.send(signal.SIGSTOP, [stage.redis.pid])
    yield dice.uniform(1.0, 7.0)
    system.send(signal.SIGCONT, [stage.redis.pid])


@fault("redis")
def scripts_flushed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SCRIPT FLUSH, several times."""
    for _ in range(3):
        stage.redis.client.script_flush()
        yield 0.2


@fault("redis")
def connections_killed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """CLIENT KILL of all ordinary connections, several times."""
    for _ in range(dice.randint(1, 4)):
        stage.redis.client.client_kill_filter(_type="normal", skipme=True)
        yield dice.uniform(0.1, 0.6)


@fault("redis")
def subscribers_killed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """CLIENT KILL of all pub/sub connections, several times, as a full output buffer does."""
    for _ in range(dice.randint(1, 4)):
        stage.redis.client.client_kill_filter(_type="pubsub")
        yield dice.uniform(0.1, 0.6)


@fault("redis")
def redis_paused(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """CLIENT PAUSE of all clients."""
    pause_s = dice.uniform(0.5, 4.0)
    stage.redis.client.client_pause(int(pause_s * 1000))
    yield pause_s


@fault("redis")
def redis_busy(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """DEBUG SLEEP: the server answers nobody."""
    stage.redis.client.execute_command("DEBUG", "SLEEP", f"{dice.uniform(0.5, 3.0):.2f}")
    yield 0.0


@fault("redis", bound_s=DOORBELL_S)
def redis_full(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Lower maxmemory below what is used: every growing write is refused."""
    stage.redis.client.config_set("maxmemory", 1_000_000)
    yield dice.uniform(1.0, 4.0)
    stage.redis.client.config_set("maxmemory", 0)


@fault("redis", bound_s=DOORBELL_S)
def redis_read_only(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """REPLICAOF nowhere, as after a failover, then NO ONE."""
    stage.redis.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    yield dice.uniform(0.5, 4.0)
    stage.redis.client.execute_command("REPLICAOF", "NO", "ONE")


def _some(stage: Stage, dice: random.Random, pattern: str) -> list[bytes]:
    keys: list[bytes] = list(
        stage.redis.client.scan_iter(match=f"{stage.config.keys.root}{pattern}", count=1000)
    )
    return dice.sample(keys, min(len(keys), 3))


def _evict(stage: Stage, dice: random.Random, hit: Hit, *patterns: str) -> None:
    keys = [key for pattern in patterns for key in _some(stage, dice, pattern)]
    if keys:
        stage.redis.client.delete(*keys)
    hit.note = f"{len(keys)} keys"


# Found by the comparison with SQL, of which there is one each ring_s; then it is rung.
_COMPARED_S = RING_S + DOORBELL_S


@fault("redis", bound_s=_COMPARED_S)
def runs_evicted(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Evict the hashes of some runs."""
    _evict(stage, dice, hit, "run:*")
    yield 0.0


@fault("redis", bound_s=_COMPARED_S)
def queues_evicted(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Evict the lines, open runs and hashes of some sessions."""
    _evict(stage, dice, hit, "open:*", "session:*", "line:*")
    yield 0.0


@fault("redis", bound_s=_COMPARED_S)
def leases_evicted(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Evict the set of leases and what is held by sessions."""
    _evict(stage, dice, hit, "leases", "held:*", "load:*")
    yield 0.0


@fault("redis", bound_s=_COMPARED_S)
def workers_evicted(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Evict the announcements of the workers."""
    _evict(stage, dice, hit, "workers:*", "executors", "capacity")
    yield 0.0


@fault("redis", bound_s=STORE_S)
def gate_evicted(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Evict the gate: everything is restored."""
    stage.redis.client.delete(f"{stage.config.keys.root}gate")
    yield 0.0


@fault("redis", bound_s=STORE_S)
def settings_evicted(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Evict the limits together with the gate, as whoever loses one loses both."""
    root = stage.config.keys.root
    stage.redis.client.delete(f"{root}settings", f"{root}gate")
    yield 0.0


@fault("redis", bound_s=STORE_S)
def wrong_type_planted(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Put a value of the wrong type where a session's open runs are, and take it away after a while."""
    client: Any = stage.redis.client
    keys = _some(stage, dice, "open:*")
    for key in keys:
        client.set(key, "planted")
    hit.note = f"{len(keys)} keys"
    yield dice.uniform(0.5, 3.0)
    for key in keys:
        if client.type(key) == b"string":
            client.delete(key)


@fault("redis", bound_s=QUIET_S)
def redis_flooded(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Keep Redis busy with somebody else's long commands."""
    over = threading.Event()

    def load() -> None:
        client: Any = stage.redis.client
        while not over.is_set():
            try:
                client.eval("local n = 0 for i = 1, 3000000 do n = n + i end return n", 0)
            except RedisError:
                over.wait(0.1)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    yield dice.uniform(1.0, 3.0)
    over.set()
    thread.join(10.0)
