"""Without any one of the guards a named test fails: none is there by habit, and none goes unnoticed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from asm_celery.config import Config
from tests import named_tests
from tests.acceptance.conftest import FULL
from tests.guards.guards import GUARDS, STROKE_MOVES, Guard
from tests.guards.removal import removed
from tests.world import World

# what a broken promise looks like in a test: a failed assertion, or a refusal that did not come; any other
# error would be an accident of the removal
BROKEN = (AssertionError, pytest.fail.Exception)


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("name", GUARDS)
def test_a_removed_guard_is_missed(name: str, request: pytest.FixtureRequest) -> None:
    """Its test fails in the same process, on the same servers, with these few words taken away."""
    guard = GUARDS[name]
    test = _test(guard.path, guard.test)

    with removed(guard.place, guard.old, guard.new):
        failures = [cause for cause in _outcomes(test, _config(guard, request)) if cause is not None]

    assert failures, f"{guard.test} does not miss {name}"


@pytest.mark.skipif(not FULL, reason="it shows that the removal itself is sound; ASM_TEST_FULL=1 runs it")
@pytest.mark.breaks_invariants
@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_that_stays_is_not_missed(name: str, request: pytest.FixtureRequest) -> None:
    """Its test passes where the same module or script was loaded anew with its guard in place."""
    guard = GUARDS[name]
    test = _test(guard.path, guard.test)

    with removed(guard.place, guard.old, guard.old):
        failures = [cause for cause in _outcomes(test, _config(guard, request)) if cause is not None]

    assert not failures


def test_every_guard_names_a_test_that_exists() -> None:
    """The suite runs it whole, too."""
    missing = [guard.test for guard in GUARDS.values() if guard.test not in named_tests.tests_of(guard.path)]

    assert not missing


def _config(guard: Guard, request: pytest.FixtureRequest) -> Config:
    database = "postgresql" if guard.place == STROKE_MOVES else "sqlite"
    config: Config = request.getfixturevalue(f"{database}_config")
    return config


def _test(path: str, name: str) -> Callable[..., None]:
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    found: Callable[..., None] = getattr(module, name)
    return found


def _outcomes(test: Callable[..., None], config: Config) -> Iterator[BaseException | None]:
    """Call a test with each of its cases; yield how each failed, None where it passed."""
    for values in _cases(test):
        needs_world = "world" in inspect.signature(test).parameters
        world = World(config) if needs_world else None
        try:
            test(**values, **({"world": world} if needs_world else {}))
            yield None
        except BROKEN as cause:
            yield cause
        finally:
            if world is not None:
                world.close()


def _cases(test: Callable[..., None]) -> list[dict[str, Any]]:
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    choices = [[(mark.args[0], value) for value in mark.args[1]] for mark in marks]
    return [dict(chosen) for chosen in product(*choices)]
