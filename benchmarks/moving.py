"""Each hot move alone: how much of this process's CPU it takes, made in one thread with no worker beside it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from asm_celery.model import Event, new_id
from asm_celery.moves.outcome import Outcome
from asm_celery.states import RunStatus
from benchmarks.figures import Figures, Size
from benchmarks.plain_module import noop
from benchmarks.stage import Stage

EXECUTOR = "bench:1:moves"
# its messages are heard by no worker
UNHEARD = "unheard"


def moves(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure submits, then for each run its start, one event and its end: a run of each session at a time."""
    with stage.installation() as here:
        here.asm.register("idle", lambda ctx, given: None)
        runtime, queue = here.asm._runtime(), here.config.default_queue
        coordinator = runtime.coordinator
        # opens the gate of a Redis that is new, and has it grant leases
        runtime.recovery.repair()
        runtime.recovery.announce(EXECUTOR, "moves", 10 * size.submits, [queue])
        servers = [here.asm.start_session("idle", max_queued_runs=10_000) for _ in range(size.sessions)]
        count = size.submits // size.sessions
        while True:
            spent: defaultdict[str, float] = defaultdict(float)
            for _ in range(count):
                with _counted(spent, "submit"):
                    runs = [server.submit_run("m") for server in servers]
                with _counted(spent, "begin and claim"):
                    claims = [
                        coordinator.start(run, 1, EXECUTOR, new_id("clm"), knows=runtime.registry.get)
                        for run in runs
                    ]
                with _counted(spent, "append one event"):
                    for claim in claims:
                        assert claim is not None, "an idle session's run may start at once"
                        said = Event.new("note", claim.run.session_id, run_id=claim.run.run_id, data={"n": 1})
                        coordinator.append(claim, [said], 0)
                with _counted(spent, "finish"):
                    for claim in claims:
                        assert claim is not None
                        coordinator.finish(claim, Outcome(status=RunStatus.COMPLETED), [], 1)
            with _counted(spent, "plain Celery's send"):
                for _ in range(count * len(servers)):
                    noop.apply_async(("m",), queue=UNHEARD)
            yield {
                f"moves: {move}, CPU µs": seconds / count / len(servers) * 1e6
                for move, seconds in spent.items()
            }


@contextmanager
def _counted(spent: defaultdict[str, float], move: str) -> Iterator[None]:
    began = time.process_time()
    yield
    spent[move] += time.process_time() - began
