"""The checker of histories finds every anomaly that is planted, and none in a good history."""

from __future__ import annotations

import pytest

from asm_celery.model import Event
from tests.history import anomalies, most_open, most_running


def log(*words: str) -> list[Event]:
    """Make a log of words such as ``queued:a``, ``started:a``, ``completed:a``; others stand for themselves."""
    made = []
    for number, word in enumerate(words, start=1):
        kind, _, run = word.partition(":")
        made.append(
            Event.new(
                f"run_{kind}" if run and "_" not in kind else kind,
                "ses_1",
                run_id=run or None,
                sequence=number,
            )
        )
    return made


GOOD = [
    "session_created",
    "session_started",
    "queued:a",
    "queued:b",
    "started:a",
    "message_streamed:a",
    "queued:c",
    "completed:a",
    "started:b",
    "failed:b",
    "started:c",
    "completed:c",
]


def test_a_good_history_has_no_anomaly() -> None:
    """Runs of one slot that follow each other are as they should be."""
    assert [] == anomalies(log(*GOOD), slots=1, submitted=["a", "b", "c"])


def test_a_withdrawn_run_needs_no_start() -> None:
    """A run that waits can be cancelled, and its followers go on."""
    words = ["queued:a", "queued:b", "queued:c", "started:a", "cancelled:b", "completed:a", "started:c"]

    assert [] == anomalies(log(*words, "completed:c"), slots=1)


def test_a_requeued_run_may_start_again() -> None:
    """An attempt that was given back starts anew before its followers."""
    words = ["queued:a", "queued:b", "started:a", "requeued:a", "started:a", "completed:a", "started:b"]

    assert [] == anomalies(log(*words, "completed:b"), slots=1)


def test_runs_of_three_slots_may_start_in_any_order_among_the_first_three() -> None:
    """With k slots the first k open runs are free to run."""
    words = [f"queued:{run}" for run in "abcd"]
    words += ["started:c", "started:a", "completed:c", "started:d", "started:b"]
    words += [f"completed:{run}" for run in "abd"]

    # d starts while a and b are unfinished: two, which is what three slots allow
    assert [] == anomalies(log(*words), slots=3, submitted=list("abcd"))


@pytest.mark.parametrize(
    ("words", "slots", "said"),
    [
        (["queued:a", "queued:b", "started:a", "started:b"], 1, "2 run at once, with 1 slots"),
        (
            ["queued:a", "queued:b", "started:b", "completed:b", "started:a"],
            1,
            "unfinished before it are ['a']",
        ),
        (
            ["queued:a", "queued:b", "started:b", "completed:b", "started:a"],
            1,
            "started in the order ['b', 'a']",
        ),
        ([*(f"queued:{run}" for run in "abcd"), "started:d"], 3, "unfinished before it are ['a', 'b', 'c']"),
        (
            [*(f"queued:{run}" for run in "abcd"), *(f"started:{run}" for run in "abcd")],
            3,
            "4 run at once, with 3 slots",
        ),
        (["queued:a", "started:a", "started:a"], 2, "it ran already"),
        (["queued:a", "started:a", "completed:a", "failed:a"], 1, "it had ended"),
        (["queued:a", "started:a", "completed:a", "message_streamed:a"], 1, "it had ended"),
        (["queued:a", "started:a", "completed:a", "started:a"], 1, "it had ended"),
        (["queued:a", "completed:a"], 1, "it did not run"),
        (["queued:a", "requeued:a"], 1, "it did not run"),
        (["queued:a", "queued:a"], 1, "it was queued before"),
        (["started:a"], 1, "it was never queued"),
        (["queued:a", "started:a"], 1, "never ended: ['a']"),
        (["queued:b", "queued:a"], 1, "submitted in the order ['a', 'b']"),
    ],
)
def test_a_planted_anomaly_is_named(words: list[str], slots: int, said: str) -> None:
    """Whatever breaks order, slots or the life of a run is found and said."""
    found = anomalies(log(*words), slots=slots, submitted=["a", "b"] if "submitted" in said else None)

    assert any(said in sentence for sentence in found), found


def test_a_follower_that_starts_while_a_requeued_run_waits_is_named() -> None:
    """A retry keeps its place: a follower that overtakes it is an anomaly."""
    words = ["queued:a", "queued:b", "started:a", "requeued:a", "started:b"]

    assert any("unfinished before it are ['a']" in one for one in anomalies(log(*words), slots=1))


def test_a_hole_and_a_repeated_sequence_are_named() -> None:
    """Sequences are 1, 2, 3 ... without holes."""
    events = log("queued:a", "started:a", "completed:a")

    assert any("sequences are [1, 3]" in one for one in anomalies([events[0], events[2]], slots=1))
    assert any("sequences are [1, 1]" in one for one in anomalies([events[0], events[0]], slots=1))


def test_an_unfinished_history_may_be_read_before_its_end() -> None:
    """``complete=False`` says nothing of runs that are still open."""
    assert [] == anomalies(log("queued:a", "queued:b", "started:a"), slots=1, complete=False)


def test_the_most_open_and_the_most_running_are_counted() -> None:
    """A run is open from its acceptance to its end, and runs from its start to its end or requeue."""
    events = log(
        "queued:a", "queued:b", "started:a", "completed:a", "queued:c", "started:b", "requeued:b", "started:c"
    )

    assert 2 == most_open(events)
    assert 1 == most_running(events)
