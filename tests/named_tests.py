"""The tests that documents name, and the tests that there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_NAMED: Final = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")


def named_in(text: str) -> list[tuple[str, str]]:
    """Return the (path, test) a document names; test is empty where it names a whole file."""
    return _NAMED.findall(text)


@cache
def tests_of(path: str) -> frozenset[str]:
    """Return the names of the tests in a file, read and not imported; none where there is no file."""
    file = ROOT / path
    if not file.exists():
        return frozenset()
    body = ast.parse(file.read_text()).body
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(name for name in functions if name.startswith("test_"))


def missing_of(text: str) -> list[str]:
    """Return what a document names and is not there."""
    return [
        f"{path}::{test}" if test else path
        for path, test in named_in(text)
        if (test not in tests_of(path) if test else not (ROOT / path).exists())
    ]
