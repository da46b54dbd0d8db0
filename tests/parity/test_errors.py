"""Rows ER-1 to ER-8 of the parity table: codes and errors."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asm_celery
from asm_celery import errors
from asm_celery.errors import CODES, AsmError, ValidationError, category, is_code, is_retryable, of_code

# The taxonomy of the original, by family; * marks what it calls retryable.
TAXONOMY = {
    "validation": "validation_error invalid_input missing_required_field invalid_format",
    "state": "invalid_status invalid_transition invalid_event_type invalid_capability_type "
    "missing_required_capability stream_closed context_mismatch invalid_cursor session_mismatch run_mismatch",
    "resource": "not_found session_not_found run_not_found capability_not_found already_exists "
    "duplicate_capability",
    "provider": "provider_error provider_unavailable* provider_rate_limited* provider_timeout* "
    "provider_authentication_failed provider_quota_exceeded",
    "storage": "storage_error storage_connection_failed* dependency_not_available migration_required "
    "storage_write_failed storage_read_failed",
    "runtime": "timeout* cancelled policy_violation internal_error unknown_error",
    "concurrency": "max_sessions_exceeded max_runs_exceeded capability_not_supported invalid_operation",
    "tool": "tool_error tool_not_found tool_execution_failed tool_permission_denied",
}
WORTH_RETRYING_HERE = {"max_sessions_exceeded", "max_runs_exceeded"}
EVERY = [(family, word) for family, words in TAXONOMY.items() for word in words.split()]


@pytest.mark.parametrize(("family", "word"), EVERY)
def test_every_code_of_the_original_is_known(family: str, word: str) -> None:
    """ER-1, ER-4, ER-5: with its family, and retryable where trying again may help."""
    code = word.removesuffix("*")

    assert is_code(code)
    assert family == category(code)
    assert (word.endswith("*") or code in WORTH_RETRYING_HERE) == is_retryable(code)
    assert is_retryable(AsmError(code=code)) == is_retryable(code)


@pytest.mark.parametrize("odd", ["no_such_code", "", None, 5, "Timeout"])
def test_nothing_else_is_a_code(odd: Any) -> None:
    """ER-1, ER-4: and its family is unknown."""
    assert not is_code(odd)
    assert "unknown" == category(odd)
    assert not is_retryable(odd)


def test_an_error_takes_code_message_and_details() -> None:
    """ER-2: a message by default for each code; details, provider's words and a time."""
    plain = AsmError(code="run_not_found")
    told = AsmError("said", code="provider_error", details={"a": 1}, provider_error={"exit_code": 3})

    assert CODES["run_not_found"].message == plain.message
    assert ("said", {"a": 1}, {"exit_code": 3}) == (told.message, told.details, told.provider_error)
    assert plain.timestamp.tzinfo is not None
    assert all(code.message for code in CODES.values())


def test_wrapping_remembers_the_cause() -> None:
    """ER-3: its text is the message unless another is given; type and text are in the details."""
    cause = KeyError("lost")

    wrapped, named = AsmError.wrap("storage_error", cause), AsmError.wrap("timeout", cause, "too late")

    assert ("'lost'", "too late") == (wrapped.message, named.message)
    assert isinstance(wrapped, errors.StorageError)
    assert {"original_exception": "KeyError", "original_message": "'lost'"} == wrapped.details


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_map_and_back_is_the_same_error(code: str) -> None:
    """ER-6: through JSON, with null for what is not there."""
    error = of_code(code, "said", details={"n": 1})

    plain = json.loads(json.dumps(error.to_map()))
    back = AsmError.from_map(plain)

    assert (type(error), code, "said", {"n": 1}) == (type(back), back.code, back.message, back.details)
    assert plain["provider_error"] is None


@pytest.mark.parametrize("odd", [{}, {"code": "no_such_code"}, {"code": None}])
def test_a_map_without_a_known_code_is_refused(odd: dict[str, Any]) -> None:
    """ER-6."""
    with pytest.raises(ValidationError):
        AsmError.from_map(odd)


def test_an_error_reads_as_code_and_message() -> None:
    """ER-7: it is an exception."""
    with pytest.raises(AsmError) as raised:
        raise of_code("session_not_found", "there is none")

    assert "[session_not_found] there is none" == str(raised.value)


def test_every_code_that_is_used_is_in_the_table() -> None:
    """ER-8: what the source names as a code, and what the original forgot."""
    used = {"query_error", "maintenance_error", "command_failed", "command_timeout", *_named_codes()}

    assert {"agent_error", "worker_lost", "queue_timeout"} < used
    # what the command line says of its own words is no error of the library
    assert {"usage"} >= used - CODES.keys()


def _named_codes() -> Iterator[str]:
    root = Path(asm_celery.__file__).parent
    for path in [*root.rglob("*.py"), *(root.parent / "workers").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code":
                yield from _words(node.value)
            elif isinstance(node, ast.Call) and _name(node.func) in ("of_code", "wrap", "_error"):
                yield from _words(node.args[0]) if node.args else ()
            elif isinstance(node, ast.AnnAssign | ast.Assign) and "default_code" in ast.unparse(node):
                yield from _words(node.value)
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "code":
                        yield from _words(value)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)


def _words(value: ast.expr | None) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
