"""The full restore of Redis, where two do it at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from asm_celery.config import Config
from tests.world import World


def test_a_run_that_starts_between_the_passes_of_a_restore_is_not_forgotten(config: Config) -> None:
    """Two threads of a worker restore at its start; the first to end opens the gate under the second."""
    world = World(config, slots=0)
    run_id = world.submit(world.session())
    restore = world.runtime.recovery._restore
    pages, passes = restore._pages, []

    def meanwhile() -> Iterator[Any]:
        passes.append(1)
        if len(passes) == 2:
            restore._pages = pages  # type: ignore[method-assign]
            world.announce()
            world.start()
        yield from pages()

    restore._pages = meanwhile  # type: ignore[method-assign]
    restore.run_if_cold()

    assert {run_id} == world.runtime.queue.known()
    assert 1 == world.runtime.limiter.get_status().active_runs
    world.close()
