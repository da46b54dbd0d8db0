"""Each script is one verb with one contract: its header, its size, its includes and its wrapper agree."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from asm_celery.errors import CoordinationUnavailable
from asm_celery.keys import Keys
from asm_celery.queue import scripts
from asm_celery.queue.run_queue import Entry, Held, Line, RunQueue
from asm_celery.queue.upkeep import Odd
from asm_celery.queue.wire import Wire

MOST_LINES: Final = 60
INCLUDES: Final = sorted((scripts.FOLDER / "includes").glob("*.lua"))
FILES: Final = [*sorted(scripts.FOLDER.glob("*.lua")), *INCLUDES]

# Methods that are no script of their own, and what they do instead.
NO_SCRIPT: Final = {
    "check_server": "asks for the version and the eviction policy",
    "clear": "unlinks what a scan finds",
    "fields": "is one HGETALL",
    "members": "reads sets in one round trip",
    "names": "scans the keys",
    "remove": "is one UNLINK",
    "known": "scans a set in pieces",
    "may_compare": "is one SET",
    "count_subscribers": "calls subscribers for many sessions in one round trip",
}

ENTRY: Final = Entry(run_id="r", agent="a", position=1, queue="q", status="pending", claims=0)

# A call of each wrapper, for what it sends.
CALLS: Final[dict[str, tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "announce": (("e", "w", 1, ["q"]), {"hold_s": 1.0, "ring_s": 1.0}),
    "audit": ((((Line(session_id="s", slots=1, state="active", version=0), ENTRY),),), {}),
    "begin": (("r", 1, "e", "n"), {}),
    "begin_restore": (("o",), {"hold_s": 1.0}),
    "enqueue": ((Line(session_id="s", slots=1, state="active", version=0), []), {}),
    "finish": (("r",), {}),
    "give_back": (
        ("r", 1, "e", Line(session_id="s", slots=1, state="active", version=0), []),
        {"verdict": "keep"},
    ),
    "hold": ((True, 1), {}),
    "limiter_acquire": (("runs", "r"), {"hold_s": 1.0, "session_id": "s"}),
    "limiter_release": (("runs", "r"), {}),
    "limiter_renew": (([("runs", "r")],), {"hold_s": 1.0}),
    "limiter_set": ((1, None), {}),
    "limiter_status": ((), {}),
    "observe": ((), {}),
    "open_gate": (("o",), {}),
    "renew": (("e", {"r": 1}), {}),
    "retire": (("w",), {}),
    "rewrite": (
        (
            Odd(run_id="r", word="unknown", seen=""),
            Line(session_id="s", slots=1, state="active", version=0),
            [],
        ),
        {"whole_run": True},
    ),
    "ring": ((), {}),
    "session_state": (("s", "active", 1), {}),
    "subscribers": (("s",), {}),
    "sweep": (("known", "r"), {}),
    "take_over": ((Held(run_id="r", session_id="s", claim=1, executor="e", beat=0), "o"), {}),
}


@pytest.mark.parametrize("verb", scripts.verbs())
def test_header_has_its_five_parts_in_order(verb: str) -> None:
    """What it does and its guarantee, KEYS, ARGV, Returns, Never."""
    header = _header(verb)

    starts = [
        number
        for part in ("Guarantee: ", "KEYS[1] string  the namespace root", "Returns ", "Never: ")
        for number, line in enumerate(header)
        if line.startswith(part)
    ]

    assert 4 == len(starts), header
    assert sorted(starts) == starts
    assert 0 < starts[0], "what it does comes first"


@pytest.mark.parametrize("verb", scripts.verbs())
def test_header_names_every_argument_and_no_other(verb: str) -> None:
    """ARGV is numbered from 1 without a gap, and the code reads what the header names."""
    header, code = "\n".join(_header(verb)), _code(verb)
    named = [int(number) for number in re.findall(r"ARGV\[(\d+)", header)]
    read = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", code)}

    assert list(range(1, len(named) + 1)) == named
    assert read <= set(named)
    if "ARGV[" not in header:
        assert "ARGV" not in code


@pytest.mark.parametrize("verb", scripts.verbs())
def test_wrapper_sends_as_many_arguments_as_the_header_names(verb: str) -> None:
    """A call sends at least each fixed argument, and more only where the header says ``...``."""
    header = "\n".join(_header(verb))
    numbers = re.findall(r"ARGV\[(\d+)(\.\.\.)?\]", header)
    fixed = [number for number, more in numbers if not more]
    positional, named = CALLS[verb]

    sent = _sent(verb, positional, named)

    assert len(fixed) <= len(sent)
    if len(fixed) == len(numbers):
        assert len(fixed) == len(sent)


@pytest.mark.parametrize("verb", scripts.verbs())
def test_wrapper_is_the_only_one_to_call_its_script(verb: str) -> None:
    """One verb, one name: the method of the script's name calls it; `count_subscribers` is the exception."""
    code = "".join(inspect.getsource(part) for part in RunQueue.__mro__[:-1])

    calls = re.findall(rf'self\._(?:call|granted)\(\s*"{verb}"', code)

    assert 1 == len(calls)
    assert f'"{verb}"' in inspect.getsource(getattr(RunQueue, verb))


def test_every_method_has_its_script() -> None:
    """A method without a script says above what it does instead."""
    methods = {name for name, _ in inspect.getmembers(RunQueue, inspect.isfunction) if name[0] != "_"}

    assert set(scripts.verbs()) | set(NO_SCRIPT) == methods
    assert not set(scripts.verbs()) & set(NO_SCRIPT)
    assert set(CALLS) == set(scripts.verbs())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_script_is_short(path: Path) -> None:
    """60 lines at most, 120 columns."""
    lines = path.read_text().splitlines()

    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 120


def test_every_include_resolves_and_is_used() -> None:
    """An include line names a file, and each file is pulled in by some script."""
    used = {name for verb in scripts.verbs() for name in _included(scripts.FOLDER / f"{verb}.lua")}
    files = {path.stem for path in INCLUDES}

    for path in INCLUDES:
        used |= set(_included(path))

    assert files == used


@pytest.mark.parametrize("verb", scripts.verbs())
def test_include_comes_once_and_before_its_use(verb: str) -> None:
    """The text sent defines each shared function once, above the first line that uses it."""
    lines = scripts.source(verb).splitlines()
    defined: dict[str, int] = {}
    for number, line in enumerate(lines):
        match = re.match(r"local function (\w+)", line)
        if match:
            assert match[1] not in defined, f"{match[1]} is defined twice"
            defined[match[1]] = number

    for number, line in enumerate(lines):
        for word in re.findall(r"\b(\w+)\(", line.partition("--")[0]):
            assert defined.get(word, 0) <= number, f"line {number + 1} uses {word} before it is defined"


@pytest.mark.parametrize("verb", scripts.verbs())
def test_script_takes_no_clock_and_builds_no_key(verb: str) -> None:
    """Time is the server's, and only `keys` knows how a key is spelled."""
    code = _code(verb)

    assert "'TIME'" not in code
    assert "root .." not in code
    assert "KEYS" not in code


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_loops_are_bounded(path: Path) -> None:
    """No ``while`` and no ``repeat``: every loop runs over something that has an end."""
    code = "\n".join(line.partition("--")[0] for line in path.read_text().splitlines())

    assert not re.findall(r"\b(while|repeat|goto)\b", code)


@pytest.mark.parametrize("verb", scripts.verbs())
def test_server_can_compile_the_script(redis_url: str, verb: str) -> None:
    """SCRIPT LOAD parses it on the real server."""
    client = redis.Redis.from_url(redis_url)

    digest = client.script_load(scripts.source(verb))

    assert [True] == client.script_exists(digest)
    client.close()


@pytest.mark.parametrize("verb", scripts.verbs())
def test_script_reads_no_undefined_name(redis_url: str, verb: str) -> None:
    """Every call runs through on an empty namespace: Lua finds a misspelled name only when it runs."""
    client = redis.Redis.from_url(redis_url)
    keys = Keys("t-scripts")
    positional, named = CALLS[verb]

    getattr(RunQueue(client, keys), verb)(*positional, **named)

    for key in client.scan_iter(match=f"{keys.root}*"):
        client.delete(key)
    client.close()


def _header(verb: str) -> list[str]:
    lines = (scripts.FOLDER / f"{verb}.lua").read_text().splitlines()
    if lines[0].startswith("#!"):
        lines = lines[1:]
    return [line.removeprefix("-- ") for line in _comment(lines) if not line.startswith("-- include:")]


def _comment(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("--"):
            return
        yield line


def _code(verb: str) -> str:
    lines = (scripts.FOLDER / f"{verb}.lua").read_text().splitlines()
    return "\n".join(line.partition("--")[0] for line in lines)


def _included(path: Path) -> list[str]:
    return re.findall(r"^-- include: (\w+)$", path.read_text(), re.MULTILINE)


def _sent(verb: str, positional: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    sent: list[Any] = []

    def ask(_wire: Wire, *commands: Any) -> None:
        # EVALSHA, its digest, the number of keys, the root
        sent.extend(commands[-1][4:])
        raise redis.RedisError("enough")

    with pytest.MonkeyPatch.context() as patch, redis.Redis() as nowhere:
        patch.setattr(Wire, "ask", ask)
        queue = RunQueue(nowhere, Keys("t-scripts"))
        with pytest.raises(CoordinationUnavailable):
            getattr(queue, verb)(*positional, **named)
    return sent
