"""What docs/reference/events.md says of the runtime's events, against events that were really written."""

from __future__ import annotations

import re

import pytest

from asm_celery import Event, errors
from asm_celery.states import EventType
from tests.documents import DOCS
from tests.parity.desk import Desk, all_events

UNWRITTEN = {"session_failed", "session_cancelled"}


def told() -> dict[str, tuple[set[str], set[str]]]:
    """Return for each of the runtime's words the keys that are always there, and those that may be."""
    text = (DOCS / "reference" / "events.md").read_text()
    rows = re.findall(r"^\| `((?:run|session)_\w+)` \| (.*?)\| ", text, re.MULTILINE)
    keys = {word: re.findall(r"`(\w+\??)`", cell) for word, cell in rows}
    return {
        word: (
            {key for key in found if not key.endswith("?")},
            {key.removesuffix("?") for key in found if key.endswith("?")},
        )
        for word, found in keys.items()
        if word != "run_id" and word != "session_id"
    }


@pytest.fixture
def written(desk: Desk) -> list[Event]:
    """One of everything that the runtime tells."""
    desk.asm.register("flaky", lambda ctx, given: 1 / 0, max_attempts=2)
    desk.asm.register("telling", lambda ctx, given: ctx.emit("token_usage_updated", {"n": 1}) or given)
    servers = {name: desk.start(name) for name in ("telling", "flaky", "gate")}
    withdrawn = servers["gate"].submit_run("w")
    servers["gate"].cancel_run(withdrawn)
    late = servers["gate"].submit_run("x", queue_timeout=0.01)
    servers["gate"].pause()
    desk.work()
    desk.ended(servers["gate"], late)
    servers["gate"].resume()
    servers["telling"].execute_run("x")
    with pytest.raises(errors.RunFailed):
        servers["flaky"].execute_run("x")
    for stop in (servers["gate"].cancel_run, servers["gate"].interrupt_run):
        run_id = servers["gate"].submit_run("y")
        desk.running(servers["gate"])
        stop(run_id, wait=True, timeout=20)
    with pytest.raises(errors.RunTimeout):
        servers["gate"].execute_run("z", run_timeout=0.1)
    desk.asm.register("resting", lambda ctx, given: ctx.wait_if_paused(), capabilities={"pause"})
    servers["resting"] = desk.start("resting")
    servers["resting"].pause()
    rests = servers["resting"].submit_run("r")
    desk.asm.control.pause(rests)
    desk.asm.control.resume(rests)
    servers["resting"].resume()
    desk.ended(servers["resting"], rests)
    servers["gate"].drain(accept=False)
    servers["gate"].complete()
    stored = [event for server in servers.values() for event in all_events(server)]
    desk.asm.prune(keep=1, session_id=servers["telling"].session_id)
    return stored + all_events(servers["telling"])


def test_the_runtimes_events_have_the_keys_that_are_told(written: list[Event]) -> None:
    """Every word was written, with every key that it must and none that it may not have."""
    ours = [event for event in written if event.type.startswith(("run_", "session_"))]

    assert (
        {event.type for event in ours}
        == set(told())
        == {word for word in EventType if word.startswith(("run_", "session_"))} - UNWRITTEN
    )
    for event in ours:
        always, perhaps = told()[event.type]
        assert always <= set(event.data) <= always | perhaps, event
