"""Breadth-first search over a protocol: what is unsafe, and from where is there no way home.

Safety is asked of every state and every step.  Liveness: from every reachable state there is a path on
which nothing more goes wrong to a state in which all submitted runs have ended and Redis holds none.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from tests.model.consistency import leftovers
from tests.model.protocol import Protocol
from tests.model.state import DEAD, DONE, IDLE, RUNNING, State, is_open


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How a search ended.

    Attributes:
        broken: the first promise found broken, '' if none is; `trace` is a shortest way there.
        stuck: how many states have no way home.
    """

    states: int
    steps: int
    broken: str = ""
    stuck: int = 0
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        size = f"{self.states} states, {self.steps} steps"
        if not self.broken:
            return f"{size}: safe, none stuck"
        return f"{size}: {self.broken}\n  " + "\n  ".join(self.trace)


class Search:
    """One exploration of a protocol's graph."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        start = protocol.start()
        self._states: list[State] = [start]
        self._numbers = {start: 0}
        self._came_by: list[tuple[int, str]] = [(-1, "")]
        self._before: list[array[int]] = [array("l")]
        self._steps = 0

    def run(self, *, most: int = 10_000_000) -> Found:
        """Explore everything, or up to the first broken promise or `most` states."""
        home = []
        at = 0
        while at < len(self._states):
            state = self._states[at]
            broken = self._broken(state)
            if broken:
                return self._found(broken, self._way_to(at))
            if self._is_home(state):
                home.append(at)
            for step in self._protocol.steps(state):
                self._steps += 1
                if step.broken:
                    return self._found(step.broken, (*self._way_to(at), step.label))
                number = self._numbers.setdefault(step.state, len(self._states))
                if number == len(self._states):
                    if number >= most:
                        raise AssertionError(f"more than {most} states: make the configuration smaller")
                    self._states.append(step.state)
                    self._came_by.append((at, step.label))
                    self._before.append(array("l"))
                if not step.chance and number != at:
                    self._before[number].append(at)
            at += 1
        return self._judge(home)

    def _judge(self, home: list[int]) -> Found:
        """Walk backwards from home over the steps that may be counted on."""
        reached = bytearray(len(self._states))
        todo = list(home)
        for number in home:
            reached[number] = 1
        while todo:
            for before in self._before[todo.pop()]:
                if not reached[before]:
                    reached[before] = 1
                    todo.append(before)
        stuck = [number for number, is_reached in enumerate(reached) if not is_reached]
        if not stuck:
            return self._found("", ())
        trace = (*self._way_to(stuck[0]), f"there: {self._picture(self._states[stuck[0]])}")
        return self._found(f"{len(stuck)} states have no way home", trace, len(stuck))

    def _broken(self, state: State) -> str:
        protocol, spec = self._protocol, self._protocol.spec
        running = [run for run, row in enumerate(state.rows) if row is not None and row.status == RUNNING]
        for session, (slots, _) in enumerate(spec.sessions):
            if sum(protocol.sessions[run] == session for run in running) > slots:
                return f"session {session} runs more than {slots} runs"
        if (
            spec.max_sessions is not None
            and len({protocol.sessions[run] for run in running}) > spec.max_sessions
        ):
            return f"more than {spec.max_sessions} sessions have work in flight"
        claims = [where[1:] for where in state.doing if where and where[0] == "run"]
        if len(claims) != len(set(claims)):
            return "two executors execute one claim"
        if spec.limit is not None:
            if len(running) > spec.limit:
                return f"{len(running)} runs are running, the limit is {spec.limit}"
            # the lease of a run that is over is a ghost: it takes room until the repair finds it, no more
            leases = [
                name
                for name in protocol.arbiter.facts(state.redis).leases
                if is_open(state.rows[protocol.arbiter.run_of(name)])
            ]
            if len(leases) > spec.limit:
                return f"{len(leases)} leases, the limit is {spec.limit}"
        complaint = protocol.arbiter.complaint(state.redis)
        return f"Redis disagrees with itself: {complaint}" if complaint else ""

    def _is_home(self, state: State) -> bool:
        if state.letters or state.bells:
            return False
        if any(row is not None and row.status != DONE for row in state.rows):
            return False
        if any(where not in (IDLE, DEAD) for where in state.doing):
            return False
        facts = self._protocol.arbiter.facts(state.redis)
        return facts.is_open and not leftovers(facts)

    def _way_to(self, number: int) -> tuple[str, ...]:
        labels: list[str] = []
        while number > 0:
            number, label = self._came_by[number]
            labels.append(label)
        return tuple(reversed(labels))

    def _picture(self, state: State) -> str:
        facts = self._protocol.arbiter.facts(state.redis)
        known = {name: (run.state, run.claims, run.claim, run.executor) for name, run in facts.runs.items()}
        return f"{state._replace(redis=0)}; Redis: {known}"

    def _found(self, broken: str, trace: tuple[str, ...], stuck: int = 0) -> Found:
        return Found(states=len(self._states), steps=self._steps, broken=broken, trace=trace, stuck=stuck)
