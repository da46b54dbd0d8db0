"""What an agent says of its usage stays small enough, and sound enough, to be stored with its end."""

from __future__ import annotations

from typing import Any

import pytest

from asm_celery.codec import encode
from asm_celery.model import Event
from asm_celery.states import EventType
from asm_celery.worker.tally import Tally


def told(*usage: dict[str, Any]) -> Tally:
    """A tally that has heard these."""
    tally = Tally(1000)
    for data in usage:
        tally.add(Event.new(EventType.TOKEN_USAGE_UPDATED, "s", data=data))
    return tally


def test_usage_of_ever_new_names_is_bounded() -> None:
    """The first hundred names are counted, and go on being counted."""
    tally = told(*({"n" * 100 + str(number): 1, "tokens": 1} for number in range(5000)))

    assert 100 == len(tally.token_usage)
    assert 5000 == tally.token_usage["tokens"]
    assert encode(tally.token_usage, what="the token usage", max_bytes=1 << 20)


@pytest.mark.parametrize(
    "absurd", [{"tokens": 1e308, "cost_usd": 1e308}, {"tokens": 10**400}, {"x" * 10_000: 1}]
)
def test_absurd_usage_is_left_out_and_can_be_stored(absurd: dict[str, Any]) -> None:
    """A sum that became infinite is no JSON: the end of its run could not be written."""
    tally = told({"tokens": 2, "cost_usd": 0.5}, absurd, absurd, {"tokens": 1.5})

    assert ({"tokens": 3.5}, 0.5) == (tally.token_usage, tally.cost_usd)
    assert encode(tally.token_usage, what="the token usage", max_bytes=1 << 20)
