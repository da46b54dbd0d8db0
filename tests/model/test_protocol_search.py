"""Every interleaving of small configurations is safe and leads home, and no guard is there for nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final
from uuid import uuid4

import pytest
import redis

from tests.model.arbiter import Arbiter
from tests.model.mutants import mutants
from tests.model.repairing import RepairedProtocol
from tests.model.search import Found, Search
from tests.model.server_states import ServerStates
from tests.model.spec import Spec

IS_FULL: Final = bool(os.environ.get("ASM_TEST_FULL"))

_ANY: Final = {"crash": 1, "lose": 1, "suspect": 1, "repeat": 1, "fail": 1, "withdraw": 1}
_LINE: Final = Spec(sessions=((1, 2),))
_PAIR: Final = Spec(sessions=((1, 1), (1, 1)), limit=1)

SMALL: Final = {
    "one slot, a crash or a doorbell twice": replace(_LINE, chances={"crash": 1, "repeat": 1}, together=1),
    "one slot, three runs in any order": Spec(sessions=((1, 3),), late=1),
    "one slot, anything once": replace(_LINE, max_attempts=2, late=1, chances=_ANY, together=1),
    "two slots, three runs": Spec(sessions=((2, 3),), late=1),
    "limit of one run, a crash or a lost doorbell": replace(
        _PAIR, chances={"crash": 1, "lose": 1}, together=1
    ),
    "limit of one run, anything once": replace(_PAIR, max_attempts=2, late=1, chances=_ANY, together=1),
    "limit of one session": Spec(sessions=((2, 2), (1, 1)), max_sessions=1, late=1),
    "workers too few, and silent for a while": Spec(
        sessions=((3, 3),), executors=1, late=0, chances={"lull": 1, "lose": 1}
    ),
    "no worker for a while": replace(_LINE, late=1, chances={"lull": 1}),
    "paused and resumed, a crash": Spec(sessions=((1, 1),), chances={"pause": 1, "crash": 1}),
    "asked to stop, and anything once": replace(
        _LINE, max_attempts=2, late=0, chances={"cancel": 1, "fail": 1, "crash": 1, "suspect": 1}, together=2
    ),
    "two slots, asked to stop, a suspicion": Spec(
        sessions=((2, 2),), max_attempts=2, late=0, chances={"cancel": 1, "suspect": 1}
    ),
    "drained, a crash": replace(_LINE, late=1, chances={"drain": 1, "crash": 1}),
    "Redis wiped": replace(_PAIR, late=0, chances={"wipe": 1}),
}

LARGE: Final = {
    "one slot, two crashes": replace(_LINE, executors=3, chances={"crash": 2, "repeat": 1}),
    "one slot, anything twice": replace(_LINE, max_attempts=2, late=1, chances=_ANY, together=2),
    "two slots, three runs, a crash": Spec(sessions=((2, 3),), late=1, chances={"crash": 1}),
    "limit of one run, anything twice": replace(_PAIR, max_attempts=2, late=1, chances=_ANY, together=2),
    "two repairers, anything twice": replace(
        _PAIR, repairers=2, max_attempts=2, late=0, chances=_ANY, together=2
    ),
    "paused and resumed, two runs, a crash": replace(_LINE, chances={"pause": 1, "crash": 1}),
    "two slots under a limit of one, asked to stop, a crash": Spec(
        sessions=((2, 2), (1, 1)),
        limit=1,
        max_attempts=2,
        late=0,
        chances={"cancel": 1, "crash": 1, "suspect": 1, "fail": 1},
        together=2,
    ),
    "three slots, four runs": Spec(sessions=((3, 4),), executors=3, late=0),
    "two slots, asked to stop, drained, a crash": Spec(
        sessions=((2, 3),), late=0, chances={"cancel": 1, "drain": 1, "crash": 1}
    ),
    "Redis wiped while it drains, a crash": replace(
        _LINE, late=1, chances={"wipe": 1, "drain": 1, "crash": 1}, together=2
    ),
    "Redis wiped, one slot, a crash": replace(_LINE, late=1, chances={"wipe": 1, "crash": 1}),
    "Redis wiped, limit of one run, a crash": replace(_PAIR, late=0, chances={"wipe": 1, "crash": 1}),
}

Explore = Callable[[Spec], Found]


@pytest.fixture(scope="module")
def explore(redis_url: str) -> Iterator[Explore]:
    """Explore a configuration on the real server."""
    client = redis.Redis.from_url(redis_url)

    def explore(spec: Spec) -> Found:
        states = ServerStates(client, f"model-{uuid4().hex[:12]}", spec.edit)
        try:
            return Search(RepairedProtocol(spec, Arbiter(spec, states))).run()
        finally:
            states.close()

    yield explore
    client.close()


@pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL.keys())
def test_every_interleaving_is_safe_and_leads_home(
    explore: Explore, spec: Spec, record_property: Callable[[str, object], None]
) -> None:
    """No promise breaks in any state, and from each there is a way to the end without another fault."""
    found = explore(spec)

    record_property("size", f"{found.states} states, {found.steps} steps")
    assert not found.broken, str(found)


@pytest.mark.skipif(not IS_FULL, reason="minutes; ASM_TEST_FULL=1 runs it")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("spec", LARGE.values(), ids=LARGE.keys())
def test_every_interleaving_is_safe_and_leads_home_with_more_faults(
    explore: Explore, spec: Spec, record_property: Callable[[str, object], None]
) -> None:
    """The same with more runs, processes and faults."""
    found = explore(spec)

    record_property("size", f"{found.states} states, {found.steps} steps")
    assert not found.broken, str(found)


@pytest.mark.parametrize("lacking", mutants())
def test_removed_guard_is_caught(explore: Explore, lacking: str) -> None:
    """Without this guard or repair the search finds a broken promise, or a state without a way home."""
    mutant = mutants()[lacking]

    found = explore(mutant.spec)

    assert mutant.caught in found.broken, str(found)
