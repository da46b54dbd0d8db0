"""What must be true of every state of Redis, whatever was lost on the way there."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.server_states import Facts

_LASTING = (
    "gate",
    "settings",
    "executors",
    "workers:",
    "capacity",
    "retired",
    "restoring",
    "comparing",
    "queues",
)


def inconsistency(facts: Facts) -> str:
    """Return the first thing that is wrong; '' if nothing is."""
    return next(_inconsistencies(facts), "")


def idleness(facts: Facts) -> str:
    """Return why a promoting script should have granted one more lease; '' if it should not."""
    if not facts.is_open or not _lines(facts):
        return ""
    limits = facts.keys.get("settings", {})
    if "runs" in limits and len(facts.leases) >= int(limits["runs"]):
        return ""
    no_session = "sessions" in limits and len(facts.keys.get("active", ())) >= int(limits["sessions"])
    for line, sessions in _lines(facts).items():
        queue, kind = line.rsplit(":", 1)
        if _load(facts, queue) < _capacity(facts, queue) and not (kind == "new" and no_session):
            return f"left {sorted(sessions)} waiting in line {line} although there is room"
    return ""


def over_capacity(facts: Facts) -> str:
    """Return which queue holds more leases than its workers can take; '' if none does."""
    for key in facts.keys:
        if key.startswith("load:") and _load(facts, key[5:]) > _capacity(facts, key[5:]):
            return f"granted more than the workers of {key[5:]} can take"
    return ""


def leftovers(facts: Facts) -> set[str]:
    """Return the keys that should not outlive the last run."""
    return {key for key in facts.keys if not key.startswith(_LASTING)}


def _inconsistencies(facts: Facts) -> Iterator[str]:
    keys, runs = facts.keys, facts.runs
    leased = {name for name, run in runs.items() if run.state != "waiting"}
    for label, members in (
        ("leases", facts.leases),
        ("held:*", _union(facts, "held:")),
        ("load:*", _union(facts, "load:")),
    ):
        if members != leased:
            yield f"{label} has {sorted(members)}, leased are {sorted(leased)}"
    for name, run in runs.items():
        if not run.session or run.claims < 0:
            yield f"run:{name} is half written"
            return
        if (run.state == "waiting") != (run.claim is None):
            yield f"{name} is {run.state} under claim {run.claim}"
        if (run.state == "begun") != (run.executor is not None):
            yield f"{name} is {run.state} by {run.executor}"
    rung = {name for name, run in runs.items() if run.state == "dispatched"}
    if set(keys.get("dispatched", ())) != rung:
        yield f"dispatched has {sorted(keys.get('dispatched', ()))}, not begun are {sorted(rung)}"
    if keys.get("known", set()) != set(runs):
        yield f"known has {sorted(keys.get('known', ()))}, there are {sorted(runs)}"
    if _union(facts, "open:") != set(runs):
        yield f"open:* has {sorted(_union(facts, 'open:'))}, there are {sorted(runs)}"
    if keys.get("active", set()) != {runs[name].session for name in leased}:
        yield f"active has {sorted(keys.get('active', ()))}, leased are {sorted(leased)}"
    sessions = {run.session for run in runs.values()}
    if {key[8:] for key in keys if key.startswith("session:")} != sessions:
        yield f"there are runs of {sorted(sessions)}, and other sessions"
    for session in sessions:
        yield from _misplaced(facts, session)


def _misplaced(facts: Facts, session: str) -> Iterator[str]:
    about = facts.keys[f"session:{session}"]
    line = sorted(facts.keys[f"open:{session}"], key=lambda name: int(facts.keys[f"open:{session}"][name]))
    first = [facts.runs[name] for name in line[: int(about["slots"])]]
    waiting = [
        run for run in first if run.state == "waiting" and about["state"] not in ("paused", "completed")
    ]
    standing = [name for name, members in _lines(facts).items() if session in members]
    said = about.get("line", "")
    if standing != [said] * bool(said):
        yield f"{session} stands in {standing}, and is said to stand in {said!r}"
    is_ready = any(not run.waits for run in waiting)
    delayed = facts.keys.get("delayed", {}).get(session)
    if is_ready and not standing and delayed != "0":
        yield f"{session} is ready and stands in no line"
    if standing and not is_ready:
        yield f"{session} stands in line {standing} and is not ready"
    if waiting and not is_ready and delayed is None:
        yield f"{session} is in back-off and not in delayed"
    if standing and (f"held:{session}" in facts.keys) != standing[0].endswith(":busy"):
        yield f"{session} stands in {standing}, which is for the others"
    if standing and standing[0].rsplit(":", 1)[0] not in facts.keys.get("queues", ()):
        yield f"{session} stands in {standing}, whose queue is not looked at"


def _lines(facts: Facts) -> dict[str, dict[str, str]]:
    return {key[5:]: members for key, members in facts.keys.items() if key.startswith("line:")}


def _union(facts: Facts, prefix: str) -> set[str]:
    return {name for key, members in facts.keys.items() if key.startswith(prefix) for name in members}


def _load(facts: Facts, queue: str) -> int:
    return len(facts.keys.get(f"load:{queue}", ()))


def _capacity(facts: Facts, queue: str) -> int:
    silent = {name for name, ends in facts.keys.get(f"workers:{queue}", {}).items() if ends == "0"}
    slots = {
        worker: int(text)
        for name in facts.keys.get(f"workers:{queue}", {})
        if name not in silent
        for text, worker in [facts.keys["executors"][name].split(" ", 1)]
    }
    return sum(slots.values()) + len(slots)
