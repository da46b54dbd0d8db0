"""Faults of processes: workers, their children and guards, clients, clocks."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable, Iterator

from tests.faults import system
from tests.faults.member import Member
from tests.faults.nemesis import Hit, NotHere, fault
from tests.faults.preset import CHILD_S, LEASE_S, QUIET_S, STORE_S, WORKER_S
from tests.faults.stage import Stage

FROZEN_S = 1.6 * LEASE_S
# shorter than anything that could be taken for a death
PAUSED_S = 0.4 * LEASE_S


def _strike(stage: Stage, hit: Hit, pids: Iterable[int]) -> list[int]:
    """Take note of who is hit, and of what they execute."""
    struck = list(pids)
    hit.pids.update(struck)
    hit.victims.update(stage.running_at(struck))
    return struck


def _worker(stage: Stage, dice: random.Random, kind: str | None = None) -> Member:
    def fits() -> list[Member]:
        return [one for one in stage.workers.values() if kind in (None, one.kind) and one.is_ready]

    # the last one may have just been killed by a run
    stage.waited(fits, 60.0)
    fitting = fits()
    # one that executes something, if there is any
    busy = [one for one in fitting if stage.running_at(one.executors())]
    return dice.choice(busy or fitting)


def _child(stage: Stage, dice: random.Random) -> list[int]:
    children = _worker(stage, dice, "prefork").children()
    busy = [pid for pid in children if stage.running_at([pid])]
    return [dice.choice(busy or children)]


@fault("worker", bound_s=CHILD_S)
def child_killed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL a prefork child."""
    yield 0.0 * len(system.send(signal.SIGKILL, _strike(stage, hit, _child(stage, dice))))


@fault("worker", bound_s=WORKER_S)
def prefork_main_killed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL the main process of a prefork worker; its children follow it."""
    worker = _worker(stage, dice, "prefork")
    _strike(stage, hit, worker.children())
    worker.send(signal.SIGKILL)
    yield 0.0


@fault("worker", bound_s=WORKER_S)
def threads_worker_killed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL a threads worker."""
    yield 0.0 * len(
        system.send(signal.SIGKILL, _strike(stage, hit, _worker(stage, dice, "threads").executors()))
    )


@fault("worker", bound_s=WORKER_S)
def machine_lost(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL main process, children and guard of a worker at once."""
    yield 0.0 * len(system.send(signal.SIGKILL, _strike(stage, hit, _worker(stage, dice).all())))


@fault("worker", bound_s=WORKER_S, alone=True)
def all_workers_killed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL all processes of all workers at once."""
    everybody = [pid for worker in stage.workers.values() for pid in worker.all()]
    system.send(signal.SIGKILL, _strike(stage, hit, everybody))
    yield 0.5
    # the bound counts from when there is somebody again
    stage.waited(lambda: any(worker.is_ready for worker in stage.workers.values()), 60.0)


@fault("worker", bound_s=WORKER_S + STORE_S, alone=True)
def everything_killed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL workers, clients and Redis at once, and have Redis back empty."""
    members = [*stage.workers.values(), *stage.clients.values()]
    system.send(signal.SIGKILL, _strike(stage, hit, [pid for member in members for pid in member.all()]))
    stage.redis.kill()
    stage.redis.forget()
    yield dice.uniform(0.5, 2.0)
    stage.redis.start()
    stage.waited(lambda: any(worker.is_ready for worker in stage.workers.values()), 60.0)


@fault("worker", bound_s=QUIET_S)
def guard_killed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL the guard process of a worker."""
    yield 0.0 * len(system.send(signal.SIGKILL, _worker(stage, dice).guard()))


@fault("worker", bound_s=CHILD_S)
def child_paused(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGSTOP a prefork child for less than half a lease: nobody may call it dead."""
    frozen = system.send(signal.SIGSTOP, _child(stage, dice))
    yield PAUSED_S
    system.send(signal.SIGCONT, frozen)


@fault("worker", bound_s=CHILD_S)
def child_frozen(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGSTOP a prefork child for longer than a lease, then SIGCONT: a zombie."""
    frozen = system.send(signal.SIGSTOP, _strike(stage, hit, _child(stage, dice)))
    yield FROZEN_S
    system.send(signal.SIGCONT, frozen)


@fault("worker", bound_s=WORKER_S)
def threads_worker_frozen(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGSTOP a threads worker for longer than a lease, then SIGCONT."""
    frozen = system.send(signal.SIGSTOP, _strike(stage, hit, _worker(stage, dice, "threads").executors()))
    yield FROZEN_S
    system.send(signal.SIGCONT, frozen)


@fault("worker", bound_s=WORKER_S)
def machine_frozen(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGSTOP all processes of a worker, its guard too, for longer than a lease, then SIGCONT."""
    frozen = system.send(signal.SIGSTOP, _strike(stage, hit, _worker(stage, dice).all()))
    yield FROZEN_S
    system.send(signal.SIGCONT, frozen)


@fault("worker", bound_s=QUIET_S)
def prefork_main_paused(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGSTOP the main process of a prefork worker for longer than a lease: its children go on."""
    worker = _worker(stage, dice, "prefork")
    main = worker.main()
    system.send(signal.SIGSTOP, [main])
    yield FROZEN_S
    system.send(signal.SIGCONT, [main])


@fault("worker", bound_s=QUIET_S)
def deploy(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGTERM a worker; its supervisor starts it again."""
    worker = _worker(stage, dice)
    main = worker.main()
    worker.send(signal.SIGTERM)
    yield 0.0
    stage.waited(lambda: not system.is_alive(main), 30.0)


@fault("worker", bound_s=QUIET_S)
def hurried_deploy(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGTERM a worker, and again a moment later."""
    worker = _worker(stage, dice)
    main = worker.main()
    worker.send(signal.SIGTERM)
    yield 0.4
    system.send(signal.SIGTERM, [main])
    stage.waited(lambda: not system.is_alive(main), 30.0)


@fault("worker", bound_s=WORKER_S)
def cold_shutdown(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGQUIT a worker, which is Celery's cold shutdown."""
    worker = _worker(stage, dice)
    main = worker.main()
    _strike(stage, hit, worker.executors())
    worker.send(signal.SIGQUIT)
    yield 0.0
    stage.waited(lambda: not system.is_alive(main), 30.0)


@fault("worker", bound_s=QUIET_S)
def restart_by_hup(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGHUP a worker: it starts itself anew."""
    worker = _worker(stage, dice)
    worker.send(signal.SIGHUP)
    yield 1.0


@fault("client", bound_s=QUIET_S)
def client_killed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL a client process with all its submitters, awaiters and subscribers."""
    dice.choice(list(stage.clients.values())).send(signal.SIGKILL)
    yield 0.0


@fault("client", bound_s=QUIET_S)
def client_frozen(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGSTOP a client process for some seconds, then SIGCONT: its subscribers were slow."""
    client = dice.choice(list(stage.clients.values()))
    client.send(signal.SIGSTOP)
    yield dice.uniform(1.0, 6.0)
    client.send(signal.SIGCONT)


def _set_clock(stage: Stage, hit: Hit, seconds: int) -> None:
    if not stage.clock.environment:
        raise NotHere("no C compiler to make what shifts a clock")
    stage.clock.set(seconds)
    hit.note = f"{seconds:+d} s"


@fault("clock")
def clock_ahead(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Set a worker's wall clock ahead by minutes to a day, and back."""
    _set_clock(stage, hit, dice.randint(60, 86_400))
    yield dice.uniform(1.0, 4.0)
    stage.clock.set(0)


@fault("clock")
def clock_back(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Set a worker's wall clock back by minutes to a day, and ahead again."""
    _set_clock(stage, hit, -dice.randint(60, 86_400))
    yield dice.uniform(1.0, 4.0)
    stage.clock.set(0)


@fault("clock")
def clock_jumping(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Set a worker's wall clock to another time several times a second."""
    for _ in range(10):
        _set_clock(stage, hit, dice.randint(-3600, 3600))
        yield 0.2
    stage.clock.set(0)
