"""A doorbell that rings for a run while its refused claim is still being given back is not lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asm_celery.config import Config
from asm_celery.model import Lease
from asm_celery.server import SessionServer
from asm_celery.states import RunStatus
from tests.integration.station import Station, station


def test_a_doorbell_that_comes_before_the_refused_attempt_has_left_is_answered(config: Config) -> None:
    """The claim meets a pause; `resume` grants the same claim again before the first attempt is forgotten."""
    # the doorbell is not repeated within this test: one that is lost stalls the run
    with station(config.model_copy(update={"ring_s": 60})) as here:
        server = here.session(lambda ctx, given: given)
        coordinator = here.runtime.coordinator
        plain_dispatch, plain_give_back = here.dispatch, coordinator.give_back
        words: list[str] = []

        def dispatch(leases: Sequence[Lease]) -> None:
            if leases and not here.leases:
                server.pause()
            plain_dispatch(leases)

        def give_back(*arguments: Any, **options: Any) -> str:
            words.append(plain_give_back(*arguments, **options))
            resume(here, server)
            return words[-1]

        here.dispatch = dispatch  # type: ignore[method-assign]
        coordinator.give_back = give_back  # type: ignore[method-assign]
        run_id = server.submit_run("x")

        run = here.ended(server, run_id)

        assert ["returned"] == words
        first, again = (lease.claim for lease in here.leases)
        assert first == again
        assert (RunStatus.COMPLETED, 1) == (run.status, run.attempt)


def resume(here: Station, server: SessionServer) -> None:
    """Resume, and wait until the doorbell of that has been answered."""
    before = len(here._threads)
    server.resume()
    for thread in here._threads[before:]:
        thread.join(10)
