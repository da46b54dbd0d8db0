"""Rows CF-1 to CF-4 of the parity table: settings."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from asm_celery import Config, SessionServer
from asm_celery.errors import ValidationError

# The defaults that the original and this library share, and what they are called here.
SHARED_DEFAULTS = {
    "max_parallel_sessions": 100,
    "max_parallel_runs": 50,
    "max_queued_runs": 100,
    "subscriber_buffer": 1000,
    "max_output_bytes": 1_048_576,
    "connect_timeout_s": 5.0,
}


def test_an_argument_wins_over_an_override_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """CF-1: four layers; leaving the block restores."""
    assert 50 == Config().max_parallel_runs
    monkeypatch.setenv("ASM_MAX_PARALLEL_RUNS", "7")

    assert 7 == Config().max_parallel_runs == Config.from_env().max_parallel_runs
    with Config.override(max_parallel_runs=8):
        assert 8 == Config().max_parallel_runs
        with Config.override(max_parallel_sessions=9):
            assert (8, 9) == (Config().max_parallel_runs, Config().max_parallel_sessions)
        assert 10 == Config(max_parallel_runs=10).max_parallel_runs
    assert 7 == Config().max_parallel_runs


def test_an_override_is_seen_in_its_context_only() -> None:
    """CF-2: another thread reads the default."""
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(Config().max_queued_runs))

    with Config.override(max_queued_runs=3):
        thread.start()
        thread.join()
        assert 3 == Config().max_queued_runs

    assert [100] == seen


def test_a_default_ignores_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """CF-3: every setting has one; an unknown name is an error that names the nearest."""
    monkeypatch.setenv("ASM_MAX_QUEUED_RUNS", "7")

    with Config.override(max_queued_runs=3):
        assert 100 == Config.default("max_queued_runs")
    assert all(not field.is_required() for field in Config.model_fields.values())
    for call in (
        lambda: Config.default("max_queue_runs"),
        lambda: Config(max_queue_runs=1),
        lambda: Config.override(max_queue_runs=1).__enter__(),
    ):
        with pytest.raises(ValidationError, match="did you mean 'max_queued_runs'"):
            call()


@pytest.mark.parametrize(("name", "value"), SHARED_DEFAULTS.items())
def test_the_originals_defaults_are_ours(name: str, value: object) -> None:
    """CF-3: where both have the setting."""
    assert value == Config.default(name)


@pytest.mark.parametrize("verb", [SessionServer.await_run, SessionServer.execute_run, SessionServer.drain])
def test_patience_is_a_minute_unless_said(verb: Callable[..., Any]) -> None:
    """CF-3: as in the original."""
    assert 60.0 == inspect.signature(verb).parameters["timeout"].default


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_parallel_runs": 0},
        {"lease_s": 0},
        {"lease_s": 5, "beat_s": 3},
        {"database_url": "mysql://x"},
        {"redis_url": "http://x"},
        {"namespace": "a b"},
        {"sqlite_synchronous": "OFF"},
        {"poll_s": "soon"},
    ],
)
def test_a_wrong_value_is_refused_with_its_variable(wrong: dict[str, Any]) -> None:
    """CF-1: at once, as a validation_error that says which setting."""
    with pytest.raises(ValidationError) as refused:
        Config(**wrong)

    assert any(name in refused.value.message for name in wrong)


def test_a_misspelt_variable_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CF-1: with the nearest right one; a variable of another program is left alone."""
    monkeypatch.setenv("ASM_REDIS_ULR", "x")
    monkeypatch.setenv("ASM_COMPLETELY_OTHER", "x")

    with caplog.at_level(logging.WARNING, "asm_celery"):
        Config()

    assert ["ASM_REDIS_ULR is not a setting: did you mean ASM_REDIS_URL?"] == caplog.messages


@pytest.mark.parametrize("name", ["subscriber_buffer", "poll_s", "connect_timeout_s", "stop_grace_s"])
def test_what_the_original_hard_codes_can_be_set(name: str) -> None:
    """CF-4: buffers and patience are settings."""
    assert 20 == getattr(Config(**{name: 20}), name)
