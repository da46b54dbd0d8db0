"""Faults of the network between the linked workers and the stores."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.faults.nemesis import Hit, fault
from tests.faults.preset import LEASE_S, QUIET_S, STORE_S, WORKER_S
from tests.faults.proxy import Mode
from tests.faults.stage import Stage

CUT_S = 1.6 * LEASE_S


def _linked(stage: Stage) -> set[int]:
    return {pid for worker in stage.workers.values() if worker.is_linked for pid in worker.executors()}


def _cut(stage: Stage, hit: Hit, *names: str, mode: Mode = Mode.HOLE) -> None:
    hit.cuts.update(names)
    hit.cut_off |= _linked(stage)
    if set(names) == set(stage.links) == {"redis", "sql"}:
        hit.pids |= hit.cut_off
        hit.victims |= stage.running_at(hit.pids)
    for name in names:
        stage.links[name].set(mode)


def _heal(stage: Stage) -> None:
    for link in stage.links.values():
        link.delay_s = 0.0
        link.set(Mode.PASS)


@fault("network", bound_s=STORE_S)
def redis_black_hole(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Drop all packets between two workers and Redis, without a word, for longer than a lease."""
    _cut(stage, hit, "redis")
    yield CUT_S
    _heal(stage)


@fault("network", bound_s=STORE_S, on="postgresql")
def sql_black_hole(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Drop all packets between two workers and SQL, without a word, for longer than a lease."""
    _cut(stage, hit, "sql")
    yield CUT_S
    _heal(stage)


@fault("network", bound_s=WORKER_S, on="postgresql")
def cut_off(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Cut two workers off from Redis and SQL both, for longer than a lease: they must fence themselves."""
    _cut(stage, hit, "redis", "sql")
    yield CUT_S
    _heal(stage)


@fault("network", bound_s=STORE_S)
def redis_refused(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Reset all connections of two workers to Redis, and every new one, for some seconds."""
    _cut(stage, hit, "redis", mode=Mode.REFUSE)
    yield dice.uniform(1.0, 6.0)
    _heal(stage)


@fault("network", bound_s=STORE_S, on="postgresql")
def sql_refused(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Reset all connections of two workers to SQL, and every new one, for some seconds."""
    _cut(stage, hit, "sql", mode=Mode.REFUSE)
    yield dice.uniform(1.0, 6.0)
    _heal(stage)


@fault("network", bound_s=STORE_S)
def redis_half_open(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Let Redis forget two workers' connections without telling them."""
    _cut(stage, hit, "redis", mode=Mode.HALF_OPEN)
    yield dice.uniform(1.0, 4.0)
    _heal(stage)


@fault("network", bound_s=STORE_S, on="postgresql")
def sql_half_open(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Let PostgreSQL forget two workers' connections without telling them."""
    _cut(stage, hit, "sql", mode=Mode.HALF_OPEN)
    yield dice.uniform(1.0, 4.0)
    _heal(stage)


@fault("network", bound_s=QUIET_S)
def slow_network(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Hold back every packet of two workers."""
    for link in stage.links.values():
        link.delay_s = dice.uniform(0.01, 0.15)
    yield dice.uniform(1.0, 4.0)
    _heal(stage)


@fault("network", bound_s=QUIET_S, on="postgresql")
def answers_lost(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Cut connections to SQL in the middle of an answer, so that commits are not known to have happened."""
    for _ in range(12):
        stage.links["sql"].cut_after(dice.randint(1, 4000))
        yield dice.uniform(0.1, 0.4)


@fault("network", bound_s=QUIET_S)
def replies_lost(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Cut connections to Redis in the middle of an answer, so that scripts are not known to have run."""
    for _ in range(12):
        stage.links["redis"].cut_after(dice.randint(1, 2000))
        yield dice.uniform(0.1, 0.4)
