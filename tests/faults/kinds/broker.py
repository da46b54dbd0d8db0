"""Faults of the broker: doorbells that are lost, repeated, forged, or revoked."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from kombu.exceptions import OperationalError
from redis import RedisError

from asm_celery.dispatch import TASK
from tests.faults.nemesis import Hit, fault
from tests.faults.preset import DOORBELL_S, QUIET_S, STOP_S
from tests.faults.stage import Stage


def _key(stage: Stage, name: str) -> str:
    """Return the key of one of Celery's own lists, sets and hashes."""
    prefix = stage.asm.celery_app.conf.broker_transport_options.get("global_keyprefix", "")
    return f"{prefix}{name}"


@contextmanager
def _thief(stage: Stage, treat: Callable[[bytes], object]) -> Iterator[list[bytes]]:
    """Stand in line with the workers, several times over, and treat the doorbells that come our way."""
    key, over = _key(stage, stage.config.default_queue), threading.Event()
    caught: list[bytes] = []

    def steal() -> None:
        client: Any = stage.redis.another()
        while not over.is_set():
            try:
                got = client.brpop([key], timeout=0.3)
            except RedisError:
                over.wait(0.1)
                continue
            if got is not None:
                caught.append(got[1])
                treat(got[1])
        client.close()

    thieves = [threading.Thread(target=steal, daemon=True) for _ in range(6)]
    for thief in thieves:
        thief.start()
    try:
        yield caught
    finally:
        over.set()
        for thief in thieves:
            thief.join(30.0)


@fault("broker", bound_s=DOORBELL_S)
def doorbells_lost(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Steal doorbells from the broker's list for some seconds."""
    with _thief(stage, lambda bell: None) as caught:
        yield dice.uniform(1.0, 4.0)
    hit.note = f"{len(caught)} lost"


@fault("broker")
def doorbells_repeated(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Take doorbells from the broker's list and put each back three times, late and in any order."""
    late: list[bytes] = []
    known: set[bytes] = set()
    with _thief(stage, late.append):
        for _ in range(30):
            yield 0.1
            taken, late[:] = late[:], []
            # those that come our way again are not tripled again: nobody could ever take them all
            bells = [bell for bell in taken for _ in range(1 if bell in known else 3)]
            known.update(taken)
            dice.shuffle(bells)
            _put_back(stage, dice, bells)
    _put_back(stage, dice, late)
    hit.note = f"{len(known)} repeated"


def _put_back(stage: Stage, dice: random.Random, bells: list[bytes]) -> None:
    client: Any = stage.redis.client
    for bell in bells:
        # what Redis does not take is a lost doorbell
        with suppress(RedisError):
            (client.lpush if dice.random() < 0.5 else client.rpush)(
                _key(stage, stage.config.default_queue), bell
            )


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
        with suppress(OperationalError):
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
    with suppress(OperationalError):
        stage.asm.celery_app.control.revoke(run_id, terminate=terminate)
    yield 0.1
    # a monitor's word may be lost, and then somebody asks again
    stage.patiently(lambda: server.cancel_run(run_id))
