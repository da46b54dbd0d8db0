"""What `./dev bench` makes of its measures; that each of them works is shown in acceptance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import __main__ as bench
from benchmarks.figures import TINY, Figures
from benchmarks.page import page


def test_a_measure_that_fails_costs_no_other_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found before and after it is kept, and the page names what stopped it."""

    def good(stage: Any, size: Any) -> Iterator[Figures]:
        yield {"a": 1.0}
        yield {"a": 2.0}

    def bad(stage: Any, size: Any) -> Iterator[Figures]:
        yield {"b": 3.0}
        raise RuntimeError("the worker\nwas gone")

    monkeypatch.setattr(bench, "MEASURES", {"bad": bad, "good": good})
    stage: Any = None

    found, failed = bench.taken(stage, TINY, ["bad", "good"], 2)
    told = page(
        "", database="sqlite", pool="threads", concurrency=8, rounds=2, size=TINY, took_s=1.0, failed=failed
    )

    assert {"b": [3.0], "a": [1.0, 2.0]} == found
    assert {"bad": "RuntimeError: the worker\nwas gone"} == failed
    assert "- FAILED `bad`: RuntimeError: the worker was gone\n" in told
