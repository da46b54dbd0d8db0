"""Take one guard out of the code, in this process and for the length of a block.

The source of the guard's module is edited and executed anew; its functions and methods take the places of the
real ones.  A script is edited in its text, before a queue registers it.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

from asm_celery.queue import caller, scripts


@contextmanager
def removed(place: str, old: str, new: str) -> Iterator[None]:
    """Replace `old`, which must stand there once, by `new`.

    Args:
        place: a module such as ``asm_celery.store.run_moves``, or a script such as ``begin.lua``.
    """
    with _script(place, old, new) if place.endswith(".lua") else _module(place, old, new):
        yield


@contextmanager
def _script(name: str, old: str, new: str) -> Iterator[None]:
    path = next(scripts.FOLDER.rglob(name))
    text = path.read_text()
    _must_stand_once(text, old, name)

    def edited(verb: str, bell: scripts.Bell | None = None) -> str:
        return scripts.source(verb, bell).replace(old, new)

    with patch.object(caller, "source", edited):
        yield


@contextmanager
def _module(name: str, old: str, new: str) -> Iterator[None]:
    module = importlib.import_module(name)
    text = Path(str(module.__file__)).read_text()
    _must_stand_once(text, old, name)
    changed = types.ModuleType(name)
    changed.__dict__["__file__"] = module.__file__
    with patch.dict("sys.modules", {name: changed}):
        exec(compile(text.replace(old, new), str(module.__file__), "exec"), changed.__dict__)
    with ExitStack() as stack:
        for key, value in vars(changed).items():
            if getattr(value, "__module__", None) != name:
                continue
            real = getattr(module, key)
            if isinstance(value, type):
                _take_methods(stack, real, value)
            elif callable(value):
                stack.enter_context(patch.object(module, key, value))
        yield


def _take_methods(stack: ExitStack, real: type, changed: type) -> None:
    for key, value in list(vars(changed).items()):
        if isinstance(value, types.FunctionType) and key in vars(real):
            stack.enter_context(patch.object(real, key, value))


def _must_stand_once(text: str, old: str, where: str) -> None:
    # a guard that is not there any more would be found needless for the wrong reason
    assert 1 == text.count(old), f"{where} says {old!r} {text.count(old)} times"
