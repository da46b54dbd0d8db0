"""The nemesis: injects one fault after another, by a seed, and measures how long recovery takes.

Faults come in scenes.  Half of them are one fault alone, so that its recovery is measured undisturbed; the
others are storms of two to four faults of different components, of which the later ones hit while the system
still recovers from the earlier.  Never are there two of the same component at once.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.checkers import Fault
from tests.faults.preset import BEAT_S, LEASE_S, QUIET_S, SLACK
from tests.faults.stage import Stage


@dataclass(slots=True)
class Hit:
    """What a fault says of itself while it happens.

    Attributes:
        pids: processes that were killed, or frozen or cut off for longer than a lease.
        runs: runs that end their own process.
        victims: runs whose fate the recovery must decide, with their claims.
        cuts: the stores it made unreachable, and for whom; no process: for everybody.
        note: for the report.
    """

    pids: set[int] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    victims: dict[str, int] = field(default_factory=dict)
    cuts: set[str] = field(default_factory=set)
    cut_off: set[int] = field(default_factory=set)
    note: str = ""


class NotHere(Exception):
    """This fault cannot be injected here; the text says why."""


# injects, yields for how many seconds it lasts, heals
Act = Callable[[Stage, random.Random, Hit], Iterator[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of fault.

    Attributes:
        of: its component; of one component there is one fault at a time.
        bound_s: how long recovery may take.
        alone: it is never part of a storm.
        on: the database it needs; None for both.
    """

    name: str
    of: str
    does: str
    act: Act
    bound_s: float = QUIET_S
    alone: bool = False
    on: str | None = None


KINDS: dict[str, Kind] = {}


def fault(
    of: str, *, bound_s: float = QUIET_S, alone: bool = False, on: str | None = None
) -> Callable[[Act], Act]:
    """Enter a generator function into the table of kinds: its name names it, its docstring says what it does."""

    def enter(act: Act) -> Act:
        name = act.__name__.replace("_", " ")
        does = (act.__doc__ or "").strip().rstrip(".")
        KINDS[name] = Kind(name=name, of=of, does=does, act=act, bound_s=bound_s, alone=alone, on=on)
        return act

    return enter


@dataclass(slots=True, kw_only=True)
class Injected:
    """A fault that was injected.

    Attributes:
        recovered_s: from its healing, or that of a later fault of the same scene, until all was as before.
    """

    kind: Kind
    at: float
    healed: float = 0.0
    recovered_s: float | None = None
    was_alone: bool = True
    hit: Hit = field(default_factory=Hit)
    failed: str = ""

    def as_checked(self) -> Fault:
        """Return it as the checkers take it."""
        # what was entered in a thawed process just before it noticed is excused too
        until = self.healed + BEAT_S + LEASE_S if self.hit.pids else self.healed
        return Fault(
            kind=self.kind.name,
            at=self.at,
            until=until,
            pids=frozenset(self.hit.pids),
            runs=frozenset(self.hit.runs),
            recovered_s=self.recovered_s,
            bound_s=self.kind.bound_s * SLACK,
        )


class Nemesis:
    """Plays scenes on a stage.

    Attributes:
        injected: all faults so far, in the order of their injection.
        not_here: kinds that cannot be injected on this machine, and why.
    """

    def __init__(self, stage: Stage, kinds: Mapping[str, Kind], seed: int) -> None:
        self._stage = stage
        self._kinds = [kind for kind in kinds.values() if kind.on in (None, stage.database)]
        self._dice = random.Random(seed)
        self._bag: list[Kind] = []
        self.injected: list[Injected] = []
        self.not_here: dict[str, str] = {}
        self._began = time.monotonic()

    def play(self, *, until: float, faults: int | None) -> None:
        """Play scenes until a time has come or so many faults were injected."""
        while time.monotonic() < until and (faults is None or len(self.injected) < faults):
            left = None if faults is None else faults - len(self.injected)
            self.scene(self._draw(left))

    def scene(self, kinds: list[Kind]) -> None:
        """Inject some faults, one a bit later than the other, and wait until all is as before."""
        seeds = [self._dice.random() for _ in kinds]
        delays = [0.0, *(self._dice.uniform(0.2, 3.0) for _ in kinds[1:])]
        turns = [
            threading.Thread(target=self._inject, args=(kind, seed, delay, len(kinds) == 1), daemon=True)
            for kind, seed, delay in zip(kinds, seeds, delays, strict=True)
        ]
        before = len(self.injected)
        for turn in turns:
            turn.start()
        for turn in turns:
            turn.join()
        scene = sorted(self.injected[before:], key=lambda one: one.at)
        self.injected[before:] = scene
        _combine(scene)
        self._measure(scene)
        for number, one in enumerate(scene, before + 1):
            self._tell(number, one)
        # not all that were killed are back by then, but there is something to break
        self._stage.waited(self._stage.has_workers, 60.0)

    def _draw(self, left: int | None) -> list[Kind]:
        size = 1 if self._dice.random() < 0.5 else self._dice.randint(2, 4)
        scene: list[Kind] = []
        while len(scene) < min(size, left or size):
            if not self._bag:
                self._bag = [kind for kind in self._kinds if kind.name not in self.not_here]
                self._dice.shuffle(self._bag)
            fits = [
                kind
                for kind in self._bag
                if not scene or not (kind.alone or kind.of in {other.of for other in scene})
            ]
            if not fits:
                break
            scene.append(fits[0])
            self._bag.remove(fits[0])
            if fits[0].alone:
                break
        return scene

    def _inject(self, kind: Kind, seed: float, delay: float, was_alone: bool) -> None:
        threading.Event().wait(delay)
        one = Injected(kind=kind, at=time.monotonic(), was_alone=was_alone)
        try:
            for lasts_s in kind.act(self._stage, random.Random(seed), one.hit):
                threading.Event().wait(lasts_s)
        except NotHere as cause:
            self.not_here[kind.name] = str(cause)
            return
        except Exception as error:  # noqa: BLE001 - a nemesis that stumbles is an anomaly of the run, not its end
            one.failed = f"{type(error).__name__}: {error}"
        one.healed = time.monotonic()
        self.injected.append(one)

    def _measure(self, scene: list[Injected]) -> None:
        if not scene:
            return
        last = max(one.healed for one in scene)
        patience_s = SLACK * max(one.kind.bound_s for one in scene) + 30.0
        probed = self._stage.probe(patience_s)
        for one in scene:
            decided = probed
            if one.hit.victims:
                is_decided = self._stage.waited(
                    lambda one=one: not self._stage.undecided(one.hit.victims), patience_s
                )
                now = time.monotonic()
                decided = now if is_decided and probed is not None else None
            one.recovered_s = patience_s if decided is None else max(0.0, decided - last)

    def _tell(self, number: int, one: Injected) -> None:
        at = one.at - self._began
        words = f"{number:4d}  {at:7.1f} s  {one.kind.of:8} {one.kind.name:32}"
        took = f"lasted {one.healed - one.at:5.1f} s, recovered in {one.recovered_s or 0.0:5.1f} s"
        slow = "  SLOW" if (one.recovered_s or 0.0) > one.kind.bound_s * SLACK else ""
        rest = "".join(f"  {word}" for word in (one.hit.note, one.failed and f"FAILED {one.failed}") if word)
        sys.stderr.write(f"{words} {took}{'' if one.was_alone else ' in a storm'}{slow}{rest}\n")
        sys.stderr.flush()


def _combine(scene: Iterable[Injected]) -> None:
    """Who was cut from one store while the other was away was cut from both."""
    cuts = [one for one in scene if one.hit.cuts]
    for one in cuts:
        for other in cuts:
            overlap = min(one.healed, other.healed) - max(one.at, other.at)
            if one.hit.cuts | other.hit.cuts == {"redis", "sql"} and overlap > LEASE_S / 2:
                one.hit.pids |= one.hit.cut_off | other.hit.cut_off
