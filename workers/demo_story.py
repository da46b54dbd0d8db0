"""What the demo does: real commands and texts of this checkout, and how each run will end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asm_celery.states import RunStatus, StopKind

ROOT: Final = Path(__file__).resolve().parent.parent

# How many functions and classes each file defines: a few hundred milliseconds of real parsing.
_PARSE: Final = """
import ast, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    count = lambda *kinds: sum(isinstance(node, kinds) for node in nodes)
    print(f"{path}: {count(ast.FunctionDef, ast.AsyncFunctionDef)} functions, {count(ast.ClassDef)} classes",
          flush=True)
"""
_MODULES: Final = "find asm_celery -name '*.py' | sort"
# The loop goes on as long as somebody reads what it prints.
_WATCH: Final = (
    "while find asm_celery workers -name '*.py' -exec cat {} + | tr -cs '[:alpha:]' '[\\n*]' | sort | uniq -c"
    " | sort -rn | sed -n '1,8p' | tr -s ' \\n' ' ' && echo; do sleep 0.2; done"
)
_WORD_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One run.

    Attributes:
        title: what it does, for people.
        ends: the status it must end with.
        stop: who stops it: cancel or interrupt; None: it ends by itself.
        stop_at: how many events of the session's first run to see before that.
    """

    title: str
    input: Any
    ends: RunStatus = RunStatus.COMPLETED
    stop: StopKind | None = None
    stop_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One session: its agent, its slots, and its runs in order."""

    name: str
    agent: str
    scenes: list[Scene]
    slots: int = 1


def story() -> list[Part]:
    """Return the sessions of the demo; they run side by side."""
    return [
        Part(
            name="count",
            agent="shell",
            scenes=[
                Scene(title="lines of each module", input=_shell(f"{_MODULES} | xargs wc -l")),
                Scene(
                    title="checksums of the scripts",
                    input=_shell(
                        'find asm_celery -name "*.lua" | sort | while read -r file; do cksum "$file"; done'
                    ),
                ),
                Scene(
                    title="a file that is not there",
                    input=_shell("wc -l pyproject.toml no/such/file"),
                    ends=RunStatus.FAILED,
                ),
                Scene(
                    title="the longest modules",
                    input=_shell(f"{_MODULES} | xargs wc -l | sort -rn | sed -n '2,6p'"),
                ),
            ],
        ),
        Part(
            name="parse",
            agent="shell",
            slots=2,
            scenes=[
                Scene(title=f"parse {folder}", input=_shell([sys.executable, "-c", _PARSE, folder]))
                for folder in ("asm_celery/moves", "asm_celery/worker", "workers")
            ],
        ),
        Part(
            name="read",
            agent="stream",
            scenes=[
                Scene(
                    title=f"read {_text(0).name}",
                    input=_words(_text(0)),
                    ends=RunStatus.INTERRUPTED,
                    stop=StopKind.INTERRUPT,
                    stop_at=60,
                ),
                Scene(
                    title=f"read {_text(1).name}",
                    input=_words(_text(1)),
                    ends=RunStatus.CANCELLED,
                    stop=StopKind.CANCEL,
                    stop_at=20,
                ),
                Scene(title=f"read the end of {_text(0).name}", input=_words(_text(0), last=60)),
            ],
        ),
        Part(
            name="watch",
            agent="shell",
            scenes=[
                Scene(
                    title="watch the most used words",
                    input=_shell(_WATCH),
                    ends=RunStatus.INTERRUPTED,
                    stop=StopKind.INTERRUPT,
                    stop_at=4,
                ),
                Scene(title="sizes in KiB", input=_shell("du -sk asm_celery tests workers")),
            ],
        ),
    ]


def _shell(command: str | list[str]) -> dict[str, Any]:
    return {"command": command, "cwd": str(ROOT), "timeout": 60}


def _words(path: Path, *, last: int = 0) -> dict[str, Any]:
    text = path.read_text()
    return {"text": " ".join(text.split(" ")[-last:]) if last else text, "delay": _WORD_S}


def _text(number: int) -> Path:
    """Return one of the checkout's texts; the first has enough words to be interrupted in."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml")]
    return [path for path in found if path.exists()][number]
