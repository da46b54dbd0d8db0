"""The protocol as a graph: every step clients, broker and executors can take, with the real scripts as Redis.

Modelled: SQL, doorbells in flight, and what each process has committed and not yet told Redis.  Not
modelled: events and clocks; a time that has not come may come at any moment.  A step is one transaction or
one script, as in `moves/submission`, `moves/coordinator` and `moves/stopping`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.model.arbiter import Answer, Arbiter, Told
from tests.model.spec import CHANCES, Spec
from tests.model.state import (
    ACTIVE,
    DEAD,
    DONE,
    IDLE,
    PENDING,
    RUNNING,
    Row,
    State,
    Step,
    claim_guards,
    is_open,
    put,
    spend,
)


class Protocol:
    """The steps of the clients, the broker and the executors; `repairing` adds those that mend."""

    def __init__(self, spec: Spec, arbiter: Arbiter) -> None:
        self.spec = spec
        self.arbiter = arbiter
        self.names = spec.names()
        self.processes = spec.processes()
        self.sessions = [session for session, _ in spec.runs()]
        self.slots = [spec.sessions[session][0] for session in self.sessions]
        self._peers = [
            [other for other, theirs in enumerate(self.sessions) if theirs == session]
            for session in self.sessions
        ]

    def start(self) -> State:
        """Return the state before the first submit."""
        return State(
            redis=self.arbiter.start(),
            rows=(None,) * len(self.names),
            lines=(ACTIVE,) * len(self.spec.sessions),
            letters=frozenset(),
            bells=frozenset(),
            doing=(IDLE,) * len(self.processes),
            left=(*(self.spec.chances.get(chance, 0) for chance in CHANCES), self.spec.together),
        )

    def steps(self, state: State) -> Iterator[Step]:
        """Give every step that clients, broker and executors can take."""
        yield from self._submit(state)
        yield from self._choose(state)
        for letter in state.letters:
            yield from self._tell(state, letter)
        for bell in state.bells:
            yield from self._deliver(state, bell)
        for process in range(self.spec.executors):
            yield from self._execute(state, process)

    def read_back(self, state: State, run: int, claim: int) -> tuple[Any, ...]:
        """Read what a give_back tells: the run itself and its session's first open runs."""
        if not is_open(state.rows[run]):
            return ("end", run)
        first = [peer for peer in self._peers[run] if is_open(state.rows[peer])][: self.slots[run]]
        return ("back", run, claim, self.read(state, [run, *(peer for peer in first if peer != run)]))

    def read(self, state: State, runs: list[int]) -> tuple[Told, ...]:
        """Read open runs from SQL."""
        told = []
        for run in runs:
            row = state.rows[run]
            assert row is not None
            line = state.lines[self.sessions[run]]
            told.append(Told(run, row.status, row.claims, row.executor, row.waits, line))
        return tuple(told)

    def carry_on(self, state: State, process: int) -> Iterator[Step]:
        """Give the step of a process that has an outcome to tell Redis."""
        where, name = state.doing[process], self.processes[process]
        if where[0] == "end":
            answer = self.arbiter.finish(state.redis, where[1])
            yield from self.told(state, f"{name} finishes {self.names[where[1]]} in Redis", answer, process)
        elif where[0] == "back":
            _, run, claim, told = where
            if "give_back" in self.spec.without:
                yield Step(f"{name} forgets to give back", self.at(state, process, IDLE))
                return
            answer = self.arbiter.give_back(state.redis, run, claim, name, told)
            yield from self.told(state, f"{name} gives {self.names[run]} #{claim} back", answer, process)

    def told(self, state: State, label: str, answer: Answer, process: int | None = None) -> Iterator[Step]:
        """Give the step of a promoting script, whose caller dispatches what it granted, or dies before."""
        after = state if process is None else self.at(state, process, IDLE)
        after = after._replace(redis=answer.redis, bells=after.bells | answer.granted)
        yield Step(label, after, broken=answer.broken)
        if answer.granted - state.bells and (crashed := spend(state, "crash")) is not None:
            if process is not None:
                crashed = self.at(crashed, process, self._grave(process))
            yield Step(f"{label} and dies", crashed._replace(redis=answer.redis), True, answer.broken)

    def at(self, state: State, process: int, where: tuple[Any, ...]) -> State:
        """Return the state with a process somewhere else."""
        return state._replace(doing=(*state.doing[:process], where, *state.doing[process + 1 :]))

    def crash(self, state: State, process: int) -> Iterator[Step]:
        """Give the step in which a process dies."""
        crashed = spend(state, "crash")
        if crashed is not None:
            grave = self._grave(process)
            yield Step(f"{self.processes[process]} dies", self.at(crashed, process, grave), True)

    def _grave(self, process: int) -> tuple[Any, ...]:
        # another repairer takes the place of a dead one; an executor's name never comes back
        return DEAD if process < self.spec.executors else IDLE

    def _submit(self, state: State) -> Iterator[Step]:
        seen: set[int] = set()
        for run, row in enumerate(state.rows):
            session = self.sessions[run]
            if row is not None or session in seen:
                continue
            seen.add(session)
            broken = ""
            if state.lines[session][0] in ("draining", "completed"):
                if "submit.state" not in self.spec.without:
                    continue
                broken = f"{self.names[run]} is accepted although its session is {state.lines[session][0]}"
            told, label = (
                Told(run, PENDING, 0, "", False, state.lines[session]),
                f"{self.names[run]} is submitted",
            )
            after = state._replace(rows=put(state.rows, run, Row(PENDING)))
            if len(state.letters) < self.spec.late:
                letters = state.letters | {("enqueue", told)}
                yield Step(label, after._replace(letters=letters), True, broken)
            else:
                answer = self.arbiter.enqueue(state.redis, (told,))
                for step in self.told(after, label, answer):
                    yield step._replace(chance=True, broken=step.broken or broken)

    def _choose(self, state: State) -> Iterator[Step]:
        withdrawn = spend(state, "withdraw")
        for run, row in enumerate(state.rows if withdrawn is not None else ()):
            if row is not None and row.status == PENDING and withdrawn is not None:
                rows = put(state.rows, run, Row(DONE))
                after = withdrawn._replace(rows=rows, letters=state.letters | {("finish", run)})
                yield Step(f"{self.names[run]} is withdrawn", after, True)
        cancelled = spend(state, "cancel")
        for run, row in enumerate(state.rows if cancelled is not None else ()):
            if row is not None and row.status == RUNNING and not row.stop and cancelled is not None:
                rows = put(state.rows, run, row._replace(stop=True))
                yield Step(f"{self.names[run]} is asked to stop", cancelled._replace(rows=rows), True)
        for session, (now, _) in enumerate(state.lines):
            if now == "active":
                yield from self._move(state, session, "paused", "pause")
                yield from self._move(state, session, "draining", "drain")
            elif now == "paused":
                yield from self._move(state, session, "active")
            elif now == "draining" and not any(
                is_open(row) for row, of in zip(state.rows, self.sessions, strict=True) if of == session
            ):
                yield from self._move(state, session, "completed")

    def _move(self, state: State, session: int, target: str, chance: str = "") -> Iterator[Step]:
        changed = spend(state, chance) if chance else state
        if changed is not None:
            line = (target, state.lines[session][1] + 1)
            lines = (*state.lines[:session], line, *state.lines[session + 1 :])
            after = changed._replace(lines=lines, letters=state.letters | {("state", session, line)})
            yield Step(f"session {session} becomes {target}", after, bool(chance))

    def _tell(self, state: State, letter: tuple[Any, ...]) -> Iterator[Step]:
        without = state._replace(letters=state.letters - {letter})
        verb, what = letter[:2]
        if verb == "enqueue":
            label = f"the client enqueues {self.names[what.run]}"
            answer = self.arbiter.enqueue(state.redis, (what,))
        elif verb == "finish":
            label = f"the client finishes {self.names[what]} in Redis"
            answer = self.arbiter.finish(state.redis, what)
        else:
            now, version = letter[2]
            label = f"the client tells that session {what} is {now}"
            answer = self.arbiter.session_state(state.redis, what, now, version)
        yield from self.told(without, label, answer)
        crashed = spend(without, "crash")
        if crashed is not None:
            yield Step(f"the client dies before it can {verb}", crashed, True)

    def _deliver(self, state: State, bell: tuple[int, int]) -> Iterator[Step]:
        run, claim = bell
        used = state._replace(bells=state.bells - {bell})
        what = f"#{claim} of {self.names[run]}"
        for process in self._listeners(state):
            name = self.processes[process]
            answer = self.arbiter.begin(state.redis, run, claim, name)
            where = ("begun", run, claim) if answer.word == "begun" else IDLE
            label = f"{name} begins {what}" if where else f"the spare doorbell {what} is dropped"
            yield Step(label, self.at(used, process, where)._replace(redis=answer.redis))
            again = spend(state, "repeat")
            if again is not None and where:
                after = self.at(again, process, where)._replace(redis=answer.redis)
                yield Step(f"{label}, and it will ring again", after, True)
            if not where:
                break
        lost = spend(used, "lose")
        if lost is not None:
            yield Step(f"the doorbell {what} is lost", lost, True)

    def _listeners(self, state: State) -> list[int]:
        """Return the idle executors; of those that nothing names yet only the first, as they are alike."""
        named = {run.executor for run in self.arbiter.facts(state.redis).runs.values()}
        named |= {row.executor for row in state.rows if row is not None}
        idle = [process for process in range(self.spec.executors) if state.doing[process] == IDLE]
        fresh = [process for process in idle if self.processes[process] not in named]
        return [process for process in idle if process not in fresh[1:]]

    def _execute(self, state: State, process: int) -> Iterator[Step]:
        where, name = state.doing[process], self.processes[process]
        if where == DEAD:
            return
        if name not in self.arbiter.facts(state.redis).keys.get("workers:q", ()):
            answer = self.arbiter.announce(state.redis, name)
            yield from self.told(state, f"{name} announces", answer)
        if where == IDLE:
            return
        if where[0] == "begun":
            yield self._claim(state, process)
        elif where[0] == "run":
            yield from self._run(state, process)
        else:
            yield from self.carry_on(state, process)
        yield from self.crash(state, process)

    def _claim(self, state: State, process: int) -> Step:
        _, run, claim = state.doing[process]
        row, name, without = state.rows[run], self.processes[process], self.spec.without
        assert row is not None
        guards = claim_guards(state.rows, self._peers[run], self.slots[run], run, claim)
        guards["claim.state"] = state.lines[self.sessions[run]][0] in ("active", "draining")
        if not all(holds or guard in without for guard, holds in guards.items()):
            after = self.at(state, process, self.read_back(state, run, claim))
            return Step(f"{name} is refused {self.names[run]} #{claim}", after)
        started = Row(RUNNING, claim, row.attempt + 1, name)
        after = self.at(state, process, ("run", run, claim))
        broken = ""
        before = [self.names[peer] for peer in self._peers[run] if peer < run and is_open(state.rows[peer])]
        if len(before) >= self.slots[run]:
            broken = f"{self.names[run]} starts while before it are open: {before}"
        elif started.attempt > self.spec.max_attempts:
            broken = f"{self.names[run]} is entered {started.attempt} times"
        elif row.status != PENDING:
            broken = f"{self.names[run]} starts although it is {row.status}"
        elif row.stop:
            broken = f"{self.names[run]} is entered again although it was asked to stop"
        elif not guards["claim.state"]:
            broken = f"{self.names[run]} starts in a paused session"
        label = f"{name} claims {self.names[run]} #{claim}"
        return Step(label, after._replace(rows=put(state.rows, run, started)), broken=broken)

    def may_return(self, row: Row) -> bool:
        """Say whether SQL lets a run wait for another attempt: not when a stop was asked for."""
        return not row.stop or "requeue.stop" in self.spec.without

    def _run(self, state: State, process: int) -> Iterator[Step]:
        _, run, claim = state.doing[process]
        row, name = state.rows[run], f"{self.processes[process]} (#{claim} of {self.names[run]})"
        assert row is not None
        is_current = row.status == RUNNING and row.claims == claim
        if not is_current and not ("finish.number" in self.spec.without and row.status == RUNNING):
            yield Step(f"{name} finds its claim lost", self.at(state, process, IDLE))
            return
        ended = self.at(state, process, ("end", run))._replace(rows=put(state.rows, run, Row(DONE)))
        yield Step(f"{name} ends", ended, broken="" if is_current else f"{name} ends a newer attempt")
        failed = spend(state, "fail")
        if failed is not None and row.attempt < self.spec.max_attempts and self.may_return(row):
            failed = failed._replace(
                rows=put(state.rows, run, row._replace(status=PENDING, executor="", waits=True))
            )
            yield Step(f"{name} fails", self.at(failed, process, self.read_back(failed, run, claim)), True)
        if self.arbiter.renew(state.redis, run, claim, self.processes[process]) == "unknown":
            answer = self.arbiter.enqueue(state.redis, self.read(state, [run]))
            yield from self.told(state, f"{name} is unknown to Redis, and recorded again", answer)
