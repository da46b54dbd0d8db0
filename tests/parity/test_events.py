"""Rows EV-1 to EV-10 of the parity table: the event record."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from asm_celery import Event, errors
from asm_celery.states import EventType, check_event_type, event_category

FAMILIES = {
    "session": "created started paused resumed completed failed cancelled draining pruned",
    "run": "started completed failed cancelled timeout queued requeued stop_requested interrupted paused resumed",
    "message": "sent received streamed",
    "tool": "call_started call_completed call_failed",
    "error": "occurred recovered",
    "workspace": "snapshot_taken diff_computed",
    "policy": "violation",
    "approval": "requested granted denied",
    "usage": "token_usage_updated turn_completed",
}
PREFIX = {"approval": "tool_approval_", "usage": ""}


def test_the_common_words_fall_into_families() -> None:
    """EV-1: disjoint and complete; a word of an agent's own is `other`."""
    listed = {
        f"{PREFIX.get(family, family + '_')}{word}": family
        for family, words in FAMILIES.items()
        for word in words.split()
    }

    assert listed == {str(word): event_category(word) for word in EventType}
    assert "other" == event_category("tool_telemetry_x") == event_category("my.word")


@pytest.mark.parametrize("odd", ["", "Run_Started", "with space", "1st", "_x", "x" * 65, "naïve", 5, None])
def test_an_event_type_is_a_word(odd: Any) -> None:
    """EV-1, EV-4: anything else is an invalid_event_type."""
    with pytest.raises(errors.InvalidEventType) as refused:
        check_event_type(odd)

    assert "invalid_event_type" == refused.value.code


def test_a_new_event_has_an_id_and_a_time() -> None:
    """EV-2: generated, unique, or as given; data and metadata are empty objects; no number yet."""
    one, two = Event.new("note", "s"), Event.new("note", "s")
    given = Event.new("note", "s", event_id="mine", run_id="r", data={"a": 1}, metadata={"b": 2}, sequence=9)

    assert one.event_id != two.event_id
    assert one.event_id.startswith("evt_")
    assert 36 == len(one.event_id)
    assert ({}, {}, 0, None) == (one.data, one.metadata, one.sequence, one.run_id)
    assert one.timestamp.tzinfo is UTC
    assert ("mine", "r", {"a": 1}, {"b": 2}, 9) == (
        given.event_id,
        given.run_id,
        given.data,
        given.metadata,
        given.sequence,
    )


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (("", "s"), errors.ValidationError, "type"),
        ((None, "s"), errors.ValidationError, "type"),
        (("No Word", "s"), errors.InvalidEventType, "No Word"),
        (("note", ""), errors.ValidationError, "session_id"),
        (("note", None), errors.ValidationError, "session_id"),
    ],
)
def test_an_event_needs_a_type_and_a_session(words: Any, kind: type, said: str) -> None:
    """EV-3, EV-4, EV-5: the message names what is missing or wrong."""
    with pytest.raises(kind, match=said):
        Event.new(*words)


@pytest.mark.parametrize("field", ["data", "metadata"])
def test_data_and_metadata_are_objects(field: str) -> None:
    """EV-2: a list is not."""
    with pytest.raises(errors.ValidationError, match=field):
        Event.new("note", "s", **{field: [1]})


def test_a_time_that_is_given_is_kept() -> None:
    """EV-6: what happened earlier elsewhere can be told."""
    moment = datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=UTC)

    assert moment == Event.new("note", "s", timestamp=moment).timestamp


def test_a_map_and_back_is_the_same_event() -> None:
    """EV-7: text keys, ISO 8601, through JSON."""
    event = Event.new(
        EventType.TOOL_CALL_STARTED, "s", run_id="r", data={"a": [1, None]}, sequence=3, provider="echo"
    )

    plain = json.loads(json.dumps(event.to_map()))

    assert event == Event.from_map(plain)
    assert ("tool_call_started", event.timestamp.isoformat()) == (plain["type"], plain["timestamp"])


def test_a_map_that_is_no_event_is_refused() -> None:
    """EV-8: empty, or of a type that is no word."""
    with pytest.raises(errors.ValidationError):
        Event.from_map({})
    with pytest.raises(errors.InvalidEventType):
        Event.from_map({**Event.new("note", "s").to_map(), "type": "No Word"})


@pytest.mark.parametrize("version", [None, 0, -1, "1", 1.5])
def test_the_schema_version_is_required(version: Any) -> None:
    """EV-9: 1 unless said, written, and demanded when read."""
    event = Event.new("note", "s")

    assert 1 == event.schema_version == event.to_map()["schema_version"]
    assert 2 == Event.from_map(Event.new("note", "s", schema_version=2).to_map()).schema_version
    with pytest.raises(errors.ValidationError, match="schema_version"):
        Event.from_map({**event.to_map(), "schema_version": version})
    without = event.to_map()
    del without["schema_version"]
    with pytest.raises(errors.ValidationError, match="schema_version"):
        Event.from_map(without)


@pytest.mark.parametrize("word", ["requested", "granted", "denied"])
def test_approvals_are_events_like_others(word: str) -> None:
    """EV-10: made, named and read back."""
    event = Event.new(f"tool_approval_{word}", "s", data={"tool": "rm"})

    assert "approval" == event.category
    assert event == Event.from_map(event.to_map())
