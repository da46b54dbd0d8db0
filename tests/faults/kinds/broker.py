"""Faults of the broker: doorbells that are lost, repeated, forged, or revoked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from asm_celery.dispatch import TASK
from tests.faults.nemesis import Hit, fault
from tests.faults.preset import DOORBELL_S, QUIET_S, STOP_S
from tests.faults.stage import Stage


def _key(stage: Stage, name: str) -> str:
    """Return the key of one of Celery's own lists, sets and hashes."""
    prefix = stage.asm.celery_app.conf.broker_transport_options.get("global_keyprefix", "")
    return f"{prefix}{name}"


def _bells(stage: Stage, turns: int) -> Iterator[list[bytes]]:
    """Look at the waiting doorbells several times."""
    client: Any = stage.redis.client
    for _ in range(turns):
        yield client.lrange(_key(stage, stage.config.default_queue), 0, -1)


@fault("broker", bound_s=DOORBELL_S)
def doorbells_lost(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Throw away what waits in the broker's list, for a second."""
    lost = 0
    for bells in _bells(stage, 200):
        lost += len(bells)
        stage.redis.client.delete(_key(stage, stage.config.default_queue))
        yield 0.005
    hit.note = f"{lost} lost"


@fault("broker")
def doorbells_repeated(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Copy each waiting doorbell twice, for two seconds."""
    copied = 0
    for bells in _bells(stage, 200):
        for bell in bells[:20]:
            stage.redis.client.lpush(_key(stage, stage.config.default_queue), bell)
            stage.redis.client.rpush(_key(stage, stage.config.default_queue), bell)
            copied += 2
        yield 0.01
    hit.note = f"{copied} copies"


@fault("broker")
def doorbells_forged(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Ring for runs that wait, run, have ended or do not exist, under made-up claims."""
    known = [row[0] for row in stage.rows("SELECT run_id FROM runs ORDER BY created_at DESC LIMIT 40")]
    chosen = [*dice.sample(known, min(20, len(known))), *(f"run_{uuid4().hex}" for _ in range(5))]
    app = stage.asm.celery_app
    for run_id in chosen:
        claim = dice.choice((1, 2, 3, 999))
        name = run_id if claim == 1 else f"{run_id}.{claim}"
        arguments = dice.choice(((run_id, claim, "chaos-forged", 1), (run_id, claim), ("nonsense",), ()))
        app.send_task(TASK, args=arguments, task_id=name, queue=stage.config.default_queue, retry=False)
    yield 0.5


@fault("broker", bound_s=DOORBELL_S)
def queue_purged(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Remove the queue and its binding, as a purge of the broker does."""
    queue = stage.config.default_queue
    names = (queue, f"_kombu.binding.{queue}", "unacked", "unacked_index")
    stage.redis.client.delete(*(_key(stage, name) for name in names))
    yield 0.0


@fault("broker", bound_s=STOP_S)
def revoked(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Revoke a run's task without terminate, as a monitor does."""
    yield from _revoke(stage, dice, hit, terminate=False)


@fault("broker", bound_s=STOP_S)
def terminated(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Revoke a running run's task with terminate, as a monitor does."""
    yield from _revoke(stage, dice, hit, terminate=True)


def _revoke(stage: Stage, dice: random.Random, hit: Hit, *, terminate: bool) -> Iterator[float]:
    server = stage.session()
    run_id = stage.submit(server, {"do": "work", "seconds": dice.choice((1.0, 30.0))}, run_timeout=20.0)
    stage.waited(lambda: stage.running(run_id), QUIET_S)
    stage.asm.celery_app.control.revoke(run_id, terminate=terminate)
    yield 0.1
    # a monitor's word may be lost, and then somebody asks again
    stage.patiently(lambda: server.cancel_run(run_id))
