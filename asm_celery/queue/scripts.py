"""Load the Lua files: one file a verb, shared functions pulled in by ``-- include: name`` lines.

Every script is sent with a ``#!lua`` header, so that the server refuses a growing one as a whole when its
memory is full instead of breaking off half-way; the releasing ones say ``flags=allow-oom``.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("lua")
_INCLUDE: Final = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


def verbs() -> list[str]:
    """Return the names of all scripts, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.lua"))


@cache
def source(verb: str) -> str:
    """Return the text of a script with its includes resolved, each once, before their first use."""
    text = (FOLDER / f"{verb}.lua").read_text()
    header, text = text.split("\n", 1) if text.startswith("#!") else ("#!lua", text)
    parts: list[str] = []
    _collect(text, parts, set())
    return "\n".join([header, *parts, text])


def _collect(text: str, parts: list[str], seen: set[str]) -> None:
    for name in _INCLUDE.findall(text):
        if name in seen:
            continue
        seen.add(name)
        included = (FOLDER / "includes" / f"{name}.lua").read_text()
        _collect(included, parts, seen)
        parts.append(included)
