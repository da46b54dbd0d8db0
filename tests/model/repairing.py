"""The steps of the repair loop, as in `recovery` and `restore`: each one a compare-and-set or a repetition."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.protocol import Protocol
from tests.model.server_states import EMPTY
from tests.model.state import DEAD, DONE, IDLE, PENDING, RUNNING, Row, State, Step, is_open, put, spend


class RepairedProtocol(Protocol):
    """The protocol with everything that mends it."""

    def steps(self, state: State) -> Iterator[Step]:
        """Give every step any process can take."""
        yield from super().steps(state)
        without = self.spec.without
        for process in range(self.spec.executors, len(self.processes)):
            where = state.doing[process]
            if where == IDLE:
                if "ring" not in without:
                    yield from self._ring(state)
                if "compare" not in without:
                    yield from self._compare(state, process)
                if "take_over" not in without:
                    yield from self._take_over(state, process)
                yield from self._begin_restore(state, process)
                continue
            if where[0] == "judged":
                yield self._take(state, process)
            elif where[0] == "taken":
                yield self._resolve(state, process)
            elif where[0] == "record":
                answer = self.arbiter.enqueue(state.redis, where[1])
                yield from self.told(state, "the repair records what it read", answer, process)
            elif where[0] == "restore":
                yield from self._restore(state, process)
            else:
                yield from self.carry_on(state, process)
            yield from self.crash(state, process)
        for run, row in enumerate(state.rows):
            if row is not None and row.waits:
                yield Step(
                    f"{self.names[run]} is due",
                    state._replace(rows=put(state.rows, run, row._replace(waits=False))),
                )
        yield from self._strike(state)

    def _ring(self, state: State) -> Iterator[Step]:
        facts = self.arbiter.facts(state.redis)
        due = [name for name, run in facts.runs.items() if run.state == "dispatched" or run.waits]
        yield from self.told(state, "the repair rings", self.arbiter.ring(state.redis))
        for name in due:
            answer = self.arbiter.ring(state.redis, run=self.arbiter.run_of(name))
            yield from self.told(state, f"the repair rings, {name} being due", answer)

    def _compare(self, state: State, process: int) -> Iterator[Step]:
        known = self.arbiter.facts(state.redis).runs
        for run, row in enumerate(state.rows):
            name = self.names[run]
            if row is not None and row.status == DONE and name in known:
                answer = self.arbiter.finish(state.redis, run)
                yield from self.told(state, f"the repair finishes {name}, which is over", answer)
            elif is_open(row) and name not in known:
                told = self.read(state, [run])
                yield Step(
                    f"the repair reads {name}, which Redis lacks", self.at(state, process, ("record", told))
                )

        for session, (now, version) in enumerate(state.lines):
            about = self.arbiter.session(state.redis, session)
            if about is not None and about[1] < version and "compare.state" not in self.spec.without:
                answer = self.arbiter.session_state(state.redis, session, now, version)
                yield from self.told(state, f"the repair tells that session {session} is {now}", answer)

    def _take_over(self, state: State, process: int) -> Iterator[Step]:
        for name, lease in self.arbiter.facts(state.redis).runs.items():
            if lease.state != "begun":
                continue
            assert lease.executor is not None
            assert lease.claim is not None
            holder = self.processes.index(lease.executor)
            run = self.arbiter.run_of(name)
            is_silent = state.doing[holder] == DEAD or (
                holder >= self.spec.executors
                and state.doing[holder][:2] not in [(word, run) for word in ("taken", "back", "end")]
            )
            struck = state if is_silent else spend(state, "suspect")
            if struck is not None:
                after = self.at(struck, process, ("judged", run, lease.claim, holder))
                yield Step(f"{name} #{lease.claim} of {lease.executor} is judged dead", after, not is_silent)

    def _take(self, state: State, process: int) -> Step:
        _, run, claim, holder = state.doing[process]
        names = (self.processes[holder], self.processes[process])
        answer = self.arbiter.take_over(state.redis, run, claim, *names)
        where = ("taken", run, claim, holder) if answer.word == "taken" else IDLE
        label = f"{self.names[run]} #{claim} of {names[0]} is {answer.word}"
        return Step(label, self.at(state, process, where)._replace(redis=answer.redis))

    def _resolve(self, state: State, process: int) -> Step:
        _, run, claim, holder = state.doing[process]
        row, broken = state.rows[run], ""
        assert row is not None
        if row.status == PENDING and row.claims == claim - 1 and "void" not in self.spec.without:
            row = row._replace(claims=claim)
        elif (
            row.status == RUNNING
            and row.claims == claim
            and (row.executor == self.processes[holder] or "lose.executor" in self.spec.without)
        ):
            if (
                row.executor != self.processes[holder]
                and state.doing[self.processes.index(row.executor)] != DEAD
            ):
                broken = f"{row.executor} was alive, and its attempt at {self.names[run]} was declared lost"
            again = row._replace(status=PENDING, executor="", waits=True)
            row = again if row.attempt < self.spec.max_attempts and self.may_return(row) else Row(DONE)
        after = state._replace(rows=put(state.rows, run, row))
        after = self.at(after, process, self.read_back(after, run, claim))
        return Step(f"the fate of {self.names[run]} #{claim} is written", after, broken=broken)

    def _begin_restore(self, state: State, process: int) -> Iterator[Step]:
        facts = self.arbiter.facts(state.redis)
        if facts.is_open:
            return
        answer = self.arbiter.begin_restore(state.redis, self.processes[process])
        if answer.word == "mine":
            known = frozenset(map(self.arbiter.run_of, facts.runs))
            after = self.at(state, process, ("restore", "scan", RUNNING, known, frozenset()))
            yield Step("the restore begins", after._replace(redis=self.arbiter.limits(answer.redis)))

    def _restore(self, state: State, process: int) -> Iterator[Step]:
        _, stage, status, known, found, *told = state.doing[process]
        if stage == "scan":
            rows = state.rows
            if status == RUNNING and "restore.void" not in self.spec.without:
                rows = tuple(
                    row._replace(claims=row.claims + 1) if row is not None and row.status == PENDING else row
                    for row in rows
                )
            chosen = [run for run, row in enumerate(rows) if row is not None and row.status == status]
            after = state._replace(rows=rows)
            where = ("restore", "write", status, known, found.union(chosen), self.read(after, chosen))
            yield Step(f"the restore reads what is {status}", self.at(after, process, where))
        elif stage == "write":
            answer = self.arbiter.enqueue(state.redis, told[0])
            redis = answer.redis
            if status == PENDING:
                for run in sorted(known - found):
                    redis = self.arbiter.finish(redis, run).redis
            follow = ("scan", PENDING) if status == RUNNING else ("open", "")
            after = self.at(state, process, ("restore", *follow, known, found))
            yield Step(f"the restore writes what is {status}", after._replace(redis=redis))
        else:
            answer = self.arbiter.open_gate(state.redis, self.processes[process])
            yield from self.told(state, f"the gate: {answer.word}", answer, process)

    def _strike(self, state: State) -> Iterator[Step]:
        wiped = spend(state, "wipe")
        if wiped is not None and state.redis != EMPTY:
            yield Step("Redis is wiped", wiped._replace(redis=EMPTY), True)
        silenced = spend(state, "lull")
        if silenced is not None:
            redis = self.arbiter.fall_silent(state.redis)
            yield Step("no worker announces itself", silenced._replace(redis=redis), True)
