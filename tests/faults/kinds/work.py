"""Faults that come with the work itself: runs that kill, hold, flood, and operators in a hurry."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from asm_celery.errors import AsmError, QueueFull
from tests.faults.nemesis import Hit, NotHere, fault
from tests.faults.preset import CHILD_S, LEASE_S, LIMIT, QUIET_S, STOP_S, WORKER_S
from tests.faults.stage import Stage

_GROUPS = Path("/sys/fs/cgroup/memory")


@fault("work", bound_s=WORKER_S)
def poison(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Submit runs that kill the process they run in, with one attempt and with two."""
    server = stage.session(max_concurrent_runs=2)
    for attempts in (1, 2):
        hit.runs.add(stage.submit(server, {"do": "poison"}, max_attempts=attempts))
    yield 0.0
    stage.waited(lambda: all(map(stage.has_ended, hit.runs)), 60.0)


@fault("work", bound_s=CHILD_S)
def out_of_memory(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Have the kernel kill a process for the memory it takes, in a cgroup of 200 MB."""
    group = _GROUPS / f"asm-chaos-{uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(200 << 20))
    except OSError as cause:
        raise NotHere(f"no memory cgroup can be made here: {cause.strerror}") from cause
    try:
        server = stage.session()
        given = {"do": "glutton", "megabytes": 400, "group": str(group / "cgroup.procs")}
        run_id = stage.submit(server, given)
        hit.runs.add(run_id)
        yield 0.0
        stage.waited(lambda: stage.has_ended(run_id), 60.0)
        hit.note = stage.rows("SELECT error FROM runs WHERE run_id = :run", run=run_id)[0][0] or "survived"
    finally:
        # whoever survived goes back to where all others are
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (_GROUPS / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()


@fault("work", bound_s=STOP_S)
def deaf_agent(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Cancel a run that hears nothing; what it takes until its end is within the stop bound."""
    server = stage.session()
    run_id = stage.submit(server, {"do": "deaf"}, run_timeout=60.0)
    stage.waited(lambda: stage.running(run_id), 20.0)
    stage.patiently(lambda: server.cancel_run(run_id))
    hit.victims |= stage.running_with_claims([run_id])
    yield 0.0


@fault("work", bound_s=QUIET_S)
def interpreter_held_briefly(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Have agents hold the interpreter for about half a second: nobody may call them dead."""
    server = stage.session(max_concurrent_runs=2)
    runs = [stage.submit(server, {"do": "hold_gil", "millions": 8}) for _ in range(2)]
    yield 1.0
    stage.waited(lambda: all(map(stage.has_ended, runs)), 30.0)


@fault("work", bound_s=WORKER_S)
def interpreter_held(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Have an agent hold the interpreter for longer than a lease: its process must be ended."""
    server = stage.session()
    run_id = stage.submit(server, {"do": "hold_gil", "millions": 10_000_000})
    hit.runs.add(run_id)
    yield LEASE_S
    stage.waited(lambda: stage.has_ended(run_id), 60.0)


@fault("work")
def chatty(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Submit runs that say thousands of words as quickly as they can."""
    server = stage.session(max_concurrent_runs=2)
    runs = [
        stage.submit(
            server, {"do": "chat", "events": dice.randint(1000, 2500), "breath_s": 0.0}, max_attempts=3
        )
        for _ in range(2)
    ]
    yield 0.5
    stage.waited(lambda: all(map(stage.has_ended, runs)), 60.0)


@fault("work")
def long_words(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Submit runs with events of 100 KB, outputs at the limit, and outputs beyond it."""
    server = stage.session(max_concurrent_runs=2)
    for given in (
        {"do": "chat", "events": 10, "words": 20_000},
        {"do": "huge", "bytes": 260_000},
        {"do": "huge", "bytes": 3_000_000},
    ):
        stage.submit(server, given)
    yield 0.5


@fault("work")
def flood(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Submit until the session refuses, and far beyond."""
    server = stage.session(max_queued_runs=30)
    accepted, refusals_s = 0, [0.0]
    for _ in range(80):
        began = time.monotonic()
        with contextlib.suppress(AsmError):
            try:
                server.submit_run({"do": "chat", "events": 5})
                accepted += 1
            except QueueFull:
                refusals_s.append(time.monotonic() - began)
    hit.note = (
        f"{accepted} accepted, slowest of {len(refusals_s) - 1} refusals {max(refusals_s) * 1000:.0f} ms"
    )
    yield 0.5


@fault("operator")
def cancel_storm(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Cancel and interrupt many runs from several threads at once, some twice."""
    server = stage.session(max_concurrent_runs=3)
    runs = [stage.submit(server, {"do": "chat", "events": 60}, max_attempts=2) for _ in range(20)]

    def stop() -> None:
        for run_id in dice.sample(runs, 15):
            with contextlib.suppress(AsmError):
                (server.cancel_run if dice.random() < 0.5 else server.interrupt_run)(run_id)

    threads = [threading.Thread(target=stop, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    yield 0.2
    for thread in threads:
        thread.join(60.0)


@fault("operator")
def pause_storm(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Pause and resume living sessions again and again."""
    rows = stage.rows("SELECT DISTINCT session_id FROM runs WHERE status IN ('pending', 'running') LIMIT 5")
    servers = [stage.patiently(lambda name=name: stage.asm.attach(name)) for (name,) in rows]
    for _ in range(6):
        for server in servers:
            with contextlib.suppress(AsmError):
                server.pause()
        yield dice.uniform(0.0, 0.3)
        for server in servers:
            stage.patiently(server.resume)


@fault("operator")
def hold_storm(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Hold and release the whole installation again and again."""
    try:
        for _ in range(5):
            with contextlib.suppress(AsmError):
                stage.asm.control.hold(by="chaos")
            yield dice.uniform(0.1, 0.5)
            with contextlib.suppress(AsmError):
                stage.asm.control.release(by="chaos")
    finally:
        stage.patiently(lambda: stage.asm.control.release(by="chaos"))


@fault("operator")
def limits_changed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Lower the limit to a few runs, several times, and raise it again."""
    try:
        for _ in range(3):
            stage.set_limit(dice.randint(1, LIMIT))
            yield dice.uniform(0.3, 1.0)
    finally:
        stage.set_limit(LIMIT)
