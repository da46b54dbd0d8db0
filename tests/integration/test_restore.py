"""The full restore of Redis, where two do it at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asm_celery.config import Config
from asm_celery.moves import restore as restoring
from asm_celery.queue.connection import connect
from tests.waiting import wait_until
from tests.world import World


def test_a_run_that_starts_between_the_passes_of_a_restore_is_not_forgotten(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restorer so slow that its right has ended is followed by another, whose open gate lets a run start."""
    slow, quick = World(config, slots=0), World(config, slots=0)
    monkeypatch.setattr(restoring, "_RIGHT_S", 0.05)
    run_id = slow.submit(slow.session())
    restore = slow.runtime.recovery._restore
    pages, passes = restore.pages, []

    def meanwhile() -> Iterator[Any]:
        passes.append(1)
        if len(passes) == 2:
            restored = quick.runtime.recovery._restore.run_if_cold
            wait_until(restored, description="the right of the slow one ends, and another opens the gate")
            quick.announce()
            quick.start()
        yield from pages()

    monkeypatch.setattr(restore, "pages", meanwhile)
    restore.run_if_cold()

    assert {run_id} == slow.runtime.queue.known()
    assert 1 == slow.runtime.limiter.get_status().active_runs
    slow.close()
    quick.close()


def test_a_restorer_that_dies_half_way_is_followed_soon(
    sqlite_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is promoted while it has the right to restore, so the right is short, and renewed with each page."""
    dying, heir = World(sqlite_config, slots=0), World(sqlite_config, slots=0)
    run_id = dying.submit(dying.session())
    restore, queue = dying.runtime.recovery._restore, dying.runtime.queue

    class Killed(BaseException):
        """No code catches it."""

    def die(runs: object) -> None:
        raise Killed

    monkeypatch.setattr(restore, "write", die)
    with pytest.raises(Killed):
        restore.run_if_cold()

    assert "busy" == queue.begin_restore("another", hold_s=1.0)
    wait_until(
        heir.runtime.recovery._restore.run_if_cold,
        description="another restores and opens the gate",
        timeout=8.0,
    )
    assert {run_id} == queue.known()
    dying.close()
    heir.close()


def test_a_restorer_that_works_keeps_its_right(sqlite_config: Config) -> None:
    """It asks again with each page, and its time begins anew."""
    world = World(sqlite_config, slots=0)
    queue = world.runtime.queue

    assert "mine" == queue.begin_restore("one", hold_s=0.3)
    assert "mine" == queue.begin_restore("one", hold_s=60.0)
    remaining_ms: Any = connect(sqlite_config).pttl(f"{sqlite_config.keys.root}restoring")
    assert remaining_ms > 1000
    world.close()


def test_threads_of_one_process_restore_one_after_the_other(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right belongs to the process; the second thread finds an open gate and nothing to do."""
    world = World(config, slots=0)
    world.submit(world.session())
    restore = world.runtime.recovery._restore
    pages, inside, most = restore.pages, [], []

    def counted() -> Iterator[Any]:
        inside.append(1)
        most.append(len(inside))
        yield from pages()
        inside.pop()

    monkeypatch.setattr(restore, "pages", counted)
    with ThreadPoolExecutor(4) as threads:
        opened = [future.result() for future in [threads.submit(restore.run_if_cold) for _ in range(4)]]

    assert [False, False, False, True] == sorted(opened)
    assert {1} == set(most)
    world.close()
