"""A race: a stop against something that happens by itself, aimed so that either may come first."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from asm_celery import SessionServer
from asm_celery.model import Run, StopReceipt
from asm_celery.states import STOPPED_STATUS, TERMINAL_EVENTS, RunStatus
from tests.acceptance.ledger import Ledger
from tests.history import anomalies

LANES = 4
LEAST_STEP_S = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One run, and the receipts of the stops that were sent at it."""

    server: SessionServer
    run_id: str
    receipts: Sequence[StopReceipt]


class Aim:
    """How long to wait before the stop is sent: less after each that came late, more after the others.

    By steps that grow until it turns, and then shrink: so about half come too late, on any machine.
    """

    def __init__(self, first_s: float) -> None:
        self._wait_s = self._step_s = first_s
        self._was_late: bool | None = None

    def wait(self) -> None:
        """Let the time pass."""
        threading.Event().wait(self._wait_s)

    def correct(self, *, was_late: bool) -> None:
        """Learn from one race."""
        if self._was_late is not None:
            self._step_s = max(LEAST_STEP_S, self._step_s * (1.5 if was_late == self._was_late else 0.5))
        self._was_late = was_late
        self._wait_s = max(0.0, self._wait_s + (-self._step_s if was_late else self._step_s))


def in_lanes(count: int, lane: object) -> list[Race]:
    """Run `count` races in some threads, each of which has its own session; ``lane(number of races)``."""
    shares = [count // LANES + (number < count % LANES) for number in range(LANES)]
    with ThreadPoolExecutor(LANES) as pool:
        return [race for races in pool.map(lane, shares) for race in races]  # type: ignore[arg-type]


def verdicts(races: Sequence[Race], ledger: Ledger) -> list[str]:
    """Return what is wrong with the races, a sentence each: receipts, log and ledger must agree."""
    entered = Counter(ledger.entered())
    wrong = [sentence for race in races for sentence in _disagreements(race, entered[race.run_id])]
    for server in {race.server for race in races}:
        wrong += anomalies(_whole_log(server), slots=server.status().max_concurrent_runs)
    return wrong


def outcomes(races: Sequence[Race]) -> dict[str, int]:
    """Return how often a race came to what: the first receipt and the status."""
    return dict(
        Counter(f"{race.receipts[0].state}, {race.server.get_run(race.run_id).status}" for race in races)
    )


def _disagreements(race: Race, times_entered: int) -> list[str]:
    run = race.server.get_run(race.run_id)
    endings = [
        event.type
        for event in race.server.get_events(run_id=race.run_id, limit=1000)
        if event.type in TERMINAL_EVENTS
    ]
    found = []
    if len(endings) != 1:
        found.append(f"{run.run_id} has the terminal events {endings}")
    for receipt in race.receipts:
        found += [f"{run.run_id}: {sentence}" for sentence in _broken(receipt, run, times_entered)]
    kinds = {receipt.kind for receipt in race.receipts}
    if len(kinds) != 1:
        found.append(f"{run.run_id} has receipts of different deciding requests: {race.receipts}")
    if times_entered > 1:
        found.append(f"{run.run_id} was entered {times_entered} times")
    return found


def _broken(receipt: StopReceipt, run: Run, times_entered: int) -> list[str]:
    """Return what the receipt said that did not come true."""
    found = []
    if receipt.state == "already_terminal":
        if receipt.status != run.status:
            found.append(f"it had ended {receipt.status}, and is {run.status}")
    elif receipt.state in ("withdrawn", "requested"):
        expected = None if receipt.kind is None else STOPPED_STATUS[receipt.kind]
        if run.status != expected:
            found.append(f"{receipt.state} as {receipt.kind}, and ended {run.status}")
    else:
        found.append(f"the receipt says {receipt.state!r}")
    if receipt.state == "withdrawn" and (times_entered or run.attempt):
        found.append(f"withdrawn, and entered {times_entered} times in {run.attempt} attempts")
    if run.status is RunStatus.FAILED:
        found.append(f"it failed: {run.error}")
    return found


def _whole_log(server: SessionServer) -> list:
    events: list = []
    while page := server.get_events(after=len(events), limit=1000):
        events += page
    return events
