"""Load the Lua files: one file a verb, shared functions pulled in by ``-- include: name`` lines.

Every script is sent with a ``#!lua`` header, so that the server refuses a growing one as a whole when its
memory is full instead of breaking off half-way; the releasing ones say ``flags=allow-oom``.  A process that
has its scripts ring doorbells writes the message above their text, so it is sent once and not with each call,
and two releases with two forms of it live side by side: their scripts have two digests.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

from asm_celery.model import Bell

FOLDER: Final = Path(__file__).with_name("lua")
_INCLUDE: Final = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


def verbs() -> list[str]:
    """Return the names of all scripts, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.lua"))


@cache
def source(verb: str, bell: Bell | None = None) -> str:
    """Return the text of a script with its includes resolved, each once, before their first use.

    Args:
        bell: what it pushes for a lease; None: whoever calls it sends what it returns.
    """
    text = (FOLDER / f"{verb}.lua").read_text()
    header, text = text.split("\n", 1) if text.startswith("#!") else ("#!lua", text)
    parts = ["local BELL, BELL_LIST"] if bell is None else [_constants(bell)]
    _collect(text, parts, set())
    return "\n".join([header, *parts, text])


def _constants(bell: Bell) -> str:
    return f"local BELL, BELL_LIST = {_quoted(bell.message)}, {_quoted(bell.list_prefix)}"


def _quoted(text: str) -> str:
    # a level of long bracket that does not stand in the text, so nothing in it can end the constant
    level = "=" * next(n for n in range(len(text)) if f"]{'=' * n}]" not in text)
    return f"[{level}[{text}]{level}]"


def _collect(text: str, parts: list[str], seen: set[str]) -> None:
    for name in _INCLUDE.findall(text):
        if name in seen:
            continue
        seen.add(name)
        included = (FOLDER / "includes" / f"{name}.lua").read_text()
        _collect(included, parts, seen)
        parts.append(included)
