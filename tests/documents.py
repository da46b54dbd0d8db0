"""The parts of docs/ that the code itself says: ``python -m tests.documents`` writes them, a test compares.

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end: NAME -->``; what is around it is written
by hand.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from asm_celery import aio, errors, limiter, model, operations, server, sessions, testing
from asm_celery.cli.commands import asm as program
from asm_celery.cli.exits import MEANING
from asm_celery.codes import CODES
from asm_celery.config import Config
from asm_celery.events.subscription import Subscription
from asm_celery.queue import scripts
from asm_celery.states import diagram
from asm_celery.worker.context import RunContext
from benchmarks.targets import TARGETS, Target
from tests.faults import summary

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
_PART: Final = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
_SECTIONS: Final = {
    "Args:": "Arguments",
    "Attributes:": "Attributes",
    "Returns:": "Returns",
    "Raises:": "Raises",
    "Guarantee:": "Guarantee",
}


def pictures() -> str:
    """Return both state machines, a Mermaid block each."""
    return "\n\n".join(f"```mermaid\n{picture}\n```" for picture in diagram().split("\n\n"))


def settings() -> str:
    """Return the settings as a table."""
    meanings = dict(_attribute_docstrings(Config))
    return _table(
        ("setting", "environment", "default", "range", "meaning"),
        (
            (f"`{name}`", f"`ASM_{name.upper()}`", f"`{field.default!r}`", _range(field), meanings[name])
            for name, field in Config.model_fields.items()
        ),
    )


def codes() -> str:
    """Return the error codes as a table."""
    return _table(
        ("code", "family", "retryable", "class", "default message"),
        (
            (
                f"`{name}`",
                code.category,
                "yes" if code.retryable else "",
                _class_of(name),
                code.message,
            )
            for name, code in CODES.items()
        ),
    )


def targets() -> str:
    """Return what the benchmark's figures are aimed at as a table."""

    def shown(target: Target, database: str) -> str:
        bound = target.bound(database)
        return "" if bound is None else f"{target.word} {bound:g}"

    return _table(
        ("figure", "SQLite", "PostgreSQL"),
        ((name, shown(target, "sqlite"), shown(target, "postgresql")) for name, target in TARGETS.items()),
    )


def long_run() -> str:
    """Return the figures of the last long run under faults."""
    run = summary.of((DOCS / "reports" / "chaos-hour.md").read_text())
    return "\n\n".join(
        (
            "\n".join(run.head),
            _table(("what would have broken a promise", "which", "found"), run.promises),
            _table(("component", "fault", "times", "longest recovery", "bound"), run.faults),
        )
    )


def tree() -> str:
    """Return the tree of errors as the module draws it."""
    drawn = [line for line in (errors.__doc__ or "").splitlines() if re.match(r"AsmError|[├│└]", line)]
    return "\n".join(["```text", *drawn, "```"])


def keys() -> str:
    """Return the table of keys as `keys.lua` states it."""
    lines = (scripts.FOLDER / "includes" / "keys.lua").read_text().splitlines()
    stated = [line.removeprefix("--").removeprefix("   ") for line in lines if line.startswith("--   ")]
    return "\n".join(["```text", *stated, "```"])


def verbs() -> str:
    """Return the contract of each script, as its header states it."""
    return "\n\n".join(f"### {verb}\n\n{_contract(verb)}" for verb in scripts.verbs())


def commands() -> str:
    """Return the help of `asm` and of every command."""
    root = program.make_context("asm", [], resilient_parsing=True, terminal_width=100)
    helps = {"asm": program.get_help(root).partition("\n  Exit codes:")[0]}
    for name, command in sorted(program.commands.items()):
        context = command.make_context(name, [], parent=root, resilient_parsing=True)
        helps[f"asm {name}"] = command.get_help(context)
    return "\n\n".join(f"## {name}\n\n```text\n{text.strip()}\n```" for name, text in helps.items())


def exit_codes() -> str:
    """Return the exit codes as a table."""
    return _table(("code", "meaning"), ((str(int(code)), meaning) for code, meaning in MEANING.items()))


def face_of(*kinds: type, level: int = 2) -> Callable[[], str]:
    """Return what renders classes with their public methods."""
    return lambda: "\n\n".join(_class(kind, "#" * level) for kind in kinds)


PARTS: Final[dict[str, Callable[[], str]]] = {
    "pictures": pictures,
    "settings": settings,
    "codes": codes,
    "tree": tree,
    "targets": targets,
    "long_run": long_run,
    "keys": keys,
    "verbs": verbs,
    "commands": commands,
    "exit_codes": exit_codes,
    "doors": face_of(sessions.AgentSessions, server.SessionServer, Subscription),
    "operators": face_of(
        limiter.ConcurrencyLimiter,
        limiter.Limits,
        limiter.LimiterStatus,
        operations.ControlOperations,
        operations.OperationStatus,
        operations.ControlOperation,
    ),
    "seams": face_of(testing.Seams),
    "records": face_of(
        model.Session,
        model.Run,
        model.RunResult,
        model.Event,
        model.StopReceipt,
        model.SessionStatusReport,
    ),
    "context": face_of(RunContext),
    "coroutines": face_of(aio.AsyncAgentSessions, aio.AsyncSessionServer, aio.AsyncSubscription, level=3),
}


def documents() -> list[Path]:
    """Return the documents that have generated parts."""
    return sorted(path for path in DOCS.rglob("*.md") if _PART.search(path.read_text()))


def up_to_date(text: str) -> str:
    """Return a document's text with every generated part as the code says it now."""
    return _PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", text)


def parts_of(text: str) -> list[str]:
    """Return the names of a document's generated parts."""
    return [found[2] for found in _PART.finditer(text)]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _attribute_docstrings(kind: type) -> Iterator[tuple[str, str]]:
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    for one, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(one.target, ast.Name)
            assert isinstance(following.value, ast.Constant)
            yield one.target.id, _plain(str(following.value.value))


def _range(field: Any) -> str:
    low = [str(bound.ge) for bound in field.metadata if hasattr(bound, "ge")]
    high = [str(bound.le) for bound in field.metadata if hasattr(bound, "le")]
    if low:
        return f"{low[0]} to {high[0]}" if high else f"{low[0]} or more"
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(field.annotation))
    return ""


def _class_of(code: str) -> str:
    kind = type(errors.of_code(code)) if code not in _WITH_ARGUMENTS else None
    if kind is None:
        return ", ".join(f"`{name}`" for name in _WITH_ARGUMENTS[code])
    return "" if kind is errors.AsmError else f"`{kind.__name__}`"


# Errors that carry more than a message are not made from a code alone.
_WITH_ARGUMENTS: Final = {
    "max_runs_exceeded": ("QueueFull", "RunLimitExceeded"),
    "max_sessions_exceeded": ("SessionLimitExceeded",),
    "timeout": ("AwaitTimeout", "CancelTimeout", "DrainTimeout"),
    "cancelled": ("RunCancelled",),
    "interrupted": ("RunInterrupted",),
    "run_timeout": ("RunTimeout",),
    "queue_timeout": ("RunTimeout",),
    "agent_error": ("RunFailed",),
}


def _contract(verb: str) -> str:
    lines = (scripts.FOLDER / f"{verb}.lua").read_text().splitlines()
    header = []
    for line in lines:
        if line.startswith("-- include") or not line.startswith(("--", "#!")):
            break
        if line.startswith("--"):
            header.append(line.removeprefix("--").removeprefix(" "))
    return "\n".join(["```text", *header, "```"])


def _class(kind: type, hashes: str) -> str:
    name = kind.__name__
    parts = [f"{hashes} {name}", _prose(inspect.getdoc(kind) or "")]
    if is_dataclass(kind):
        fields = ", ".join(f"`{field}`" for field in kind.__dataclass_fields__)
        parts.append(f"Fields: {fields}.")
    for method, value in vars(kind).items():
        if method.startswith("_"):
            continue
        raw = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(raw, property):
            parts.append(f"{hashes}# {name}.{method}\n\n{_prose(inspect.getdoc(raw) or '')}")
        elif inspect.isfunction(raw):
            parts.append(
                f"{hashes}# {name}.{method}\n\n{_signature(raw)}\n\n{_prose(inspect.getdoc(raw) or '')}"
            )
    return "\n\n".join(parts)


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    shown, last_kind = [], None
    for name, parameter in signature.parameters.items():
        if name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and last_kind not in (
            parameter.KEYWORD_ONLY,
            parameter.VAR_POSITIONAL,
        ):
            shown.append("*")
        last_kind = parameter.kind
        shown.append(_parameter(parameter))
        if parameter.kind is parameter.POSITIONAL_ONLY:
            shown.append("/")
    word = "async " if inspect.iscoroutinefunction(function) else ""
    return f"```python\n{word}{function.__name__}({', '.join(shown)}) -> {signature.return_annotation}\n```"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    value = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}: {parameter.annotation}{value}"


def _prose(docstring: str) -> str:
    """Return a docstring as Markdown: sections as lists, one sentence a line."""
    blocks = re.split(r"\n\s*\n", docstring.strip())
    return "\n\n".join(_block(block) for block in blocks)


def _block(block: str) -> str:
    first, _, rest = block.partition("\n")
    if first in _SECTIONS:
        entries = _entries(rest)
        return f"*{_SECTIONS[first]}*\n\n" + "\n".join(f"* {_plain(entry)}" for entry in entries)
    return "\n".join(_sentences(_plain(block)))


def _entries(text: str) -> list[str]:
    entries: list[str] = []
    for line in inspect.cleandoc(f"\n{text}").splitlines():
        if entries and line.startswith(" "):
            entries[-1] += f" {line.strip()}"
        elif line.strip():
            entries.append(line.strip())
    return entries


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("``", "`").strip()


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.:]) (?=[A-Z`])", text)


if __name__ == "__main__":
    for document in documents():
        document.write_text(up_to_date(document.read_text()))
