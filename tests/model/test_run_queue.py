"""RunQueue on a real server does what a page of plain Python does, whatever is called in whatever order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asm_celery.errors import CoordinationUnavailable
from asm_celery.keys import Keys
from asm_celery.model import Lease
from asm_celery.queue.run_queue import Entry, Granted, Held, Line, RunQueue
from asm_celery.queue.scripts import source
from tests.model.consistency import idleness, inconsistency, leftovers
from tests.model.reference import Reference, ReferenceRun, ReferenceSession, Saying
from tests.model.server_states import look

SHORTEST: Final = "125 * 2 ^"
IS_FULL: Final = bool(os.environ.get("ASM_TEST_FULL"))
SESSIONS: Final = ("a", "b", "c")
QUEUES: Final = ("q", "r")
EXECUTORS: Final = {"e1": "w1", "e2": "w1", "e3": "w2"}
LIMITS: Final = st.sampled_from([None, 1, 2, 3])
LONG_S: Final = 1e9


class RunQueueMachine(RuleBasedStateMachine):
    """Every rule makes a call on both, and compares what they grant, in order."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.namespace = f"t{uuid4().hex[:12]}"
        self.queue = RunQueue(self.client, Keys(self.namespace))
        # its shortest delay, 250 ms, may pass between two looks of a machine that has much to do
        assert SHORTEST in source("give_back")
        patient = source("give_back").replace(SHORTEST, "60000 * 2 ^")
        self.queue._scripts["give_back"] = self.client.register_script(patient)
        self.model = Reference()
        self.slots = dict.fromkeys(SESSIONS, 1)
        # what SQL has said of each run, oldest first, and of each session's state
        self.said: dict[str, list[Saying]] = {}
        self.states: dict[str, list[tuple[str, int]]] = {name: [("active", 0)] for name in SESSIONS}
        self.executing: set[str] = set()
        # what SQL has said of the hold, oldest first, and the latest that Redis was told
        self.holds = [False]
        self.told_hold = 0

    def teardown(self) -> None:
        for run_id in self.said:
            self.queue.finish(run_id)
        _, facts = look(self.client, self.namespace)
        for key in self.client.scan_iter(match=f"{Keys(self.namespace).root}*", count=1000):
            self.client.delete(key)
        assert not {key for key in leftovers(facts) if not key.startswith(("turn", "callers"))}

    @initialize(slots=st.tuples(*[st.integers(1, 3)] * 3), runs=LIMITS, sessions=LIMITS)
    def begin(self, slots: tuple[int, ...], runs: int | None, sessions: int | None) -> None:
        """An open gate and two workers, each of one queue."""
        self.slots = dict(zip(SESSIONS, slots, strict=True))
        assert "mine" == self.queue.begin_restore("o", hold_s=LONG_S)
        self._same(self.queue.open_gate("o"), [], "open")
        self.set_limits(runs, sessions)
        self.announce("e1", 1, ("q",))
        self.announce("e3", 1, ("r",))

    @rule(
        session_id=st.sampled_from(SESSIONS),
        queue=st.sampled_from(QUEUES),
        is_told=st.sampled_from([True, True, True, False]),
    )
    def submit(self, session_id: str, queue: str, is_told: bool) -> None:
        """A run is committed; Redis hears of it now, later or through another."""
        position = sum(saying[0].session_id == session_id for saying in self.said.values()) + 1
        run_id = f"{session_id}{position}"
        self.said[run_id] = [Saying(run_id, session_id, position, queue, "pending", 0)]
        if is_told:
            self._enqueue(run_id)

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def tell_again(self, data: st.DataObject) -> None:
        """Anything SQL ever said may arrive late."""
        run_id = data.draw(st.sampled_from(sorted(self.said)))
        self._enqueue(run_id, data.draw(st.integers(0, len(self.said[run_id]) - 1)))

    @precondition(lambda self: self._leases("dispatched"))
    @rule(data=st.data(), executor=st.sampled_from(sorted(EXECUTORS)))
    def answer(self, data: st.DataObject, executor: str) -> None:
        """One doorbell of a claim number begins; a repeated one, or one of another number, does not."""
        run = data.draw(st.sampled_from(self._leases("dispatched")), label="run")
        nonce = uuid4().hex

        assert not self.queue.begin(run.run_id, run.claim + 1, executor, nonce)
        assert self.queue.begin(run.run_id, run.claim, executor, nonce)
        assert self.queue.begin(run.run_id, run.claim, executor, nonce), "the answer was lost"
        assert not self.queue.begin(run.run_id, run.claim, "e4", "other")

        run.state, run.executor = "begun", executor

    @precondition(lambda self: self._leases("begun"))
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        """SQL lets a begun run run."""
        run = data.draw(st.sampled_from(self._leases("begun")), label="run")
        last = self.said[run.run_id][-1]
        if last.status == "pending" and last.claims == run.claim - 1:
            self._say(run, status="running", claims=run.claim, executor=run.executor)

    @precondition(lambda self: self._leases("dispatched"))
    @rule(data=st.data(), executor=st.sampled_from(sorted(EXECUTORS)))
    def start(self, data: st.DataObject, executor: str) -> None:
        """What mostly happens: the oldest doorbell is answered and its run claimed."""
        run = min(self._leases("dispatched"), key=lambda run: run.grant)
        assert self.queue.begin(run.run_id, run.claim, executor, "nonce")
        run.state, run.executor = "begun", executor
        last = self.said[run.run_id][-1]
        if last.status == "pending" and last.claims == run.claim - 1:
            self._say(run, status="running", claims=run.claim, executor=executor)

    @precondition(lambda self: self.said)
    @rule(data=st.data(), queue=st.sampled_from(QUEUES))
    def reroute(self, data: st.DataObject, queue: str) -> None:
        """A waiting run's doorbells go to another queue from now on; Redis has yet to hear of it."""
        run_id = data.draw(st.sampled_from(sorted(self.said)))
        last = self.said[run_id][-1]
        if last.status == "pending":
            self.said[run_id].append(replace(last, queue=queue))

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """A run is over, whatever Redis thought it was."""
        run = data.draw(st.sampled_from(list(self.model.runs.values())), label="run")
        word = run.state
        self.model.forget(run)

        self._same(self.queue.finish(run.run_id), self.model.promote(), word)
        self._unchanged(lambda: self.queue.finish(run.run_id), "absent")

    @precondition(lambda self: self._leases("begun"))
    @rule(
        data=st.data(),
        how=st.sampled_from(["refused", "again", "later", "lacking"]),
        others=st.booleans(),
        is_mine=st.booleans(),
    )
    def give_back(self, data: st.DataObject, how: str, others: bool, is_mine: bool) -> None:
        """A lease is returned with what SQL says now; by another than its executor it is not."""
        run = data.draw(st.sampled_from(self._leases("begun")), label="run")
        if how in ("again", "later"):
            self._say(run, status="pending", claims=run.claim, executor="", waits=how == "later")
        claim, executor = run.claim, run.executor if is_mine else "e4"
        told = [self.said[run.run_id][-1]]
        if others:
            told += [
                sayings[-1]
                for name, sayings in sorted(self.said.items())
                if sayings[-1].session_id == run.session_id and name != run.run_id
            ]
        verdict = "lacking" if how == "lacking" else "keep"
        if is_mine:
            self.model.drop(run)
        self.model.conform(self._about(run.session_id), run.session_id, told, revives=False)
        if is_mine and how == "lacking":
            run.is_due = False
            self.model.touch(run.session_id, to_back=True)

        def call() -> Granted:
            line, entries = self._line(run.session_id), [_entry(saying) for saying in told]
            return self.queue.give_back(run.run_id, claim, executor, line, entries, verdict=verdict)

        word = "absent" if not is_mine else None if how == "lacking" else "returned"
        self._same(call(), self.model.promote(), word)
        if not self.model.runs[run.run_id].is_leased:
            self._unchanged(call, "absent")

    @precondition(lambda self: self._leases("begun"))
    @rule(data=st.data(), is_current=st.booleans())
    def take_over(self, data: st.DataObject, is_current: bool) -> None:
        """A silent lease changes hands once, and only as it was seen."""
        run = data.draw(st.sampled_from(self._leases("begun")), label="run")
        seen = next(held for held in self.queue.observe(page=2) if held.run_id == run.run_id)
        if not is_current:
            assert {run.run_id: "held"} == self.queue.renew(run.executor, {run.run_id: run.claim})

        assert is_current == self.queue.take_over(seen, "o1")
        assert not self.queue.take_over(seen, "o2")

        if is_current:
            word = "held" if run.executor == "o1" else "taken"
            assert {run.run_id: word} == self.queue.renew(run.executor, {run.run_id: run.claim})
            run.executor = "o1"

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        """An executor hears of each run whether it holds it, another does, or Redis does not know."""
        run = data.draw(st.sampled_from(list(self.model.runs.values())), label="run")
        held = {run.run_id: run.claim or run.claims + 1, "unheard of": 1}
        word = "held" if run.state == "begun" else "unknown"

        assert {run.run_id: word, "unheard of": "unknown"} == self.queue.renew(run.executor, held)
        if run.claims:
            assert {run.run_id: "taken"} == self.queue.renew(run.executor, {run.run_id: run.claims})

    @rule(data=st.data())
    def ring(self, data: st.DataObject) -> None:
        """The time of one doorbell comes, or of none."""
        run = data.draw(st.sampled_from([None, *self._leases("dispatched")]), label="run")
        if run is not None:
            self._command("ZADD", "dispatched", "XX", "0", run.run_id)
        repeated, granted = self.model.ring(run)

        self._rings(repeated, granted)

    @precondition(lambda self: any(not run.is_due for run in self.model.runs.values()))
    @rule(data=st.data())
    def become_due(self, data: st.DataObject) -> None:
        """The back-off of one run ends."""
        late = [run for run in self.model.runs.values() if not run.is_due]
        run = data.draw(st.sampled_from(late), label="run")
        self._command("HSET", f"run:{run.run_id}", "not_before", "1")
        self._command("ZADD", "delayed", "XX", "0", run.session_id)
        run.is_due = True
        self.model.touch(run.session_id)

        self._rings([], self.model.promote())

    @rule(
        executor=st.sampled_from(sorted(EXECUTORS)),
        slots=st.integers(0, 2),
        queues=st.sampled_from([("q",), ("r",), QUEUES]),
    )
    def announce(self, executor: str, slots: int, queues: tuple[str, ...]) -> None:
        """An executor says what it takes; it keeps to its queues while it lives."""
        if executor in self.model.workers:
            queues = self.model.workers[executor][2]
        self.model.workers[executor] = (EXECUTORS[executor], slots, queues)
        if not slots:
            del self.model.workers[executor]

        def call() -> Granted:
            return self.queue.announce(
                executor, EXECUTORS[executor], slots, queues, hold_s=LONG_S, ring_s=1e6
            )

        self._same(call(), self.model.promote(), "announced")
        self._unchanged(call, "announced")

    @rule()
    def retire(self) -> None:
        """A worker takes no more."""
        self.model.retired.add("w1")
        self.queue.retire("w1")
        self._unchanged(lambda: self.queue.retire("w1"), None)
        self._rings([], self.model.promote())

    @rule(
        session_id=st.sampled_from(SESSIONS),
        state=st.sampled_from(["active", "paused"]),
        is_told=st.booleans(),
    )
    def move_session(self, session_id: str, state: str, is_told: bool) -> None:
        """A session is paused or resumed; Redis hears of it now or later."""
        self.states[session_id].append((state, len(self.states[session_id])))
        if is_told:
            self._tell_state(session_id, -1)

    @rule(session_id=st.sampled_from(SESSIONS), data=st.data())
    def tell_state_again(self, session_id: str, data: st.DataObject) -> None:
        """The higher version stays."""
        self._tell_state(session_id, data.draw(st.integers(0, len(self.states[session_id]) - 1)))

    @rule(runs=LIMITS, sessions=LIMITS)
    def set_limits(self, runs: int | None, sessions: int | None) -> None:
        """A lower limit stops nothing, a higher one lets more in."""
        self.model.max_runs, self.model.max_sessions = runs, sessions

        self._same(self.queue.limiter_set(runs, sessions), self.model.promote(), "set")
        self._unchanged(lambda: self.queue.limiter_set(runs, sessions), "set")

    @rule(is_held=st.sampled_from([True, False, False]), is_told=st.sampled_from([True, True, False]))
    def hold(self, is_held: bool, is_told: bool) -> None:
        """The installation is held or released; Redis hears of it now or later."""
        self.holds.append(is_held)
        if is_told:
            self._tell_hold(-1)

    @rule(data=st.data())
    def tell_hold_again(self, data: st.DataObject) -> None:
        """The higher version stays."""
        self._tell_hold(data.draw(st.integers(0, len(self.holds) - 1)))

    @rule(kind=st.sampled_from(["runs", "sessions"]), slot=st.sampled_from(["x", "y"]))
    def acquire(self, kind: str, slot: str) -> None:
        """A caller takes a slot if there is one, and asks again."""
        held = self.model.callers if kind == "runs" else self.model.calling_sessions
        is_full = self.model.is_full() if kind == "runs" else self.model.is_full_of_sessions()
        word = "again" if slot in held else "full" if is_full else "acquired"

        assert word == self.queue.limiter_acquire(kind, slot, hold_s=LONG_S, session_id="x")[0]
        if word != "full":
            held.add(slot)
            assert "again" == self.queue.limiter_acquire(kind, slot, hold_s=LONG_S, session_id="x")[0]
        renewed = self.queue.limiter_renew([(kind, slot)], hold_s=LONG_S)
        assert ["held" if slot in held else "ended"] == renewed

    @rule(kind=st.sampled_from(["runs", "sessions"]), slot=st.sampled_from(["x", "y"]), ends=st.booleans())
    def release(self, kind: str, slot: str, ends: bool) -> None:
        """A caller gives its slot back, or it ends by itself; a session's runs go with it."""
        held = self.model.callers if kind == "runs" else self.model.calling_sessions
        word = "released" if slot in held else "absent"
        if ends and slot in held:
            self._command("ZADD", f"callers:{kind}", "XX", "0", slot)
            held.discard(slot)
            self._rings([], self.model.promote())
            return
        held.discard(slot)
        if (kind, slot) == ("sessions", "x"):
            self.model.callers.clear()

        self._same(self.queue.limiter_release(kind, slot), self.model.promote(), word)
        self._unchanged(lambda: self.queue.limiter_release(kind, slot), "absent")

    @rule(is_emptied=st.booleans())
    def lose_the_gate(self, is_emptied: bool) -> None:
        """Redis is another process, and may have forgotten everything: nothing starts until SQL was told."""
        if is_emptied:
            self._empty()
            self.model = Reference()
        else:
            self._command("SET", "gate", "another server")
        self._rings([], [])
        assert "mine" == self.queue.begin_restore("o", hold_s=LONG_S)
        assert "busy" == self.queue.begin_restore("another", hold_s=LONG_S)

        self._restore()

    @rule(at=st.sampled_from(["leases", "known", "delayed", "turn", "settings", "capacity", "open:a"]))
    def plant(self, at: str) -> None:
        """What is not ours stands at a key of ours: it is refused by a name, and all is restored from SQL."""
        self._command("DEL", at)
        self._command("RPUSH", at, "not ours")
        with suppress(CoordinationUnavailable):
            self.queue.ring()
        self._empty()
        self.model = Reference()
        assert "mine" == self.queue.begin_restore("o", hold_s=LONG_S)

        self._restore()

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data())
    def run_out_of_memory(self, data: st.DataObject) -> None:
        """What would grow is refused as a whole, what frees is done."""
        run = data.draw(st.sampled_from(list(self.model.runs.values())), label="run")
        word = run.state
        before, _ = look(self.client, self.namespace)
        with self._full(), pytest.raises(CoordinationUnavailable):
            self.queue.enqueue(self._line("a"), [_entry(Saying("a99", "a", 99, "q", "pending", 0))])
        assert before == look(self.client, self.namespace)[0]
        with self._full():
            freed = self.queue.finish(run.run_id)

        self.model.forget(run)
        self._same(freed, self.model.promote(), word)

    @invariant()
    def redis_agrees(self) -> None:
        """Redis agrees with itself and with the reference, and no room is left unused."""
        _, facts = look(self.client, self.namespace)

        assert "" == inconsistency(facts)
        assert set(self.model.runs) == self.queue.known()
        assert self._begun() == sorted(self.queue.observe(page=2), key=lambda held: held.run_id)
        assert self._status() == self.queue.limiter_status()
        assert self.model.callers == set(facts.keys.get("callers:of", ()))
        is_plain = not self.model.callers and not self.model.calling_sessions
        if is_plain and not self.model.retired and not self.model.is_held:
            assert "" == idleness(facts)

    @contextmanager
    def _full(self) -> Iterator[None]:
        self.client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self.client.config_set("maxmemory", 0)

    def _empty(self) -> None:
        for key in self.client.scan_iter(match=f"{Keys(self.namespace).root}*", count=1000):
            self.client.delete(key)

    def _restore(self) -> None:
        """Do what a restore does: limits and hold first, then what runs, then what waits, then the gate."""
        workers = dict(self.model.workers)
        self.model.max_runs, self.model.max_sessions = 2, 2
        assert [] == self.queue.limiter_set(2, 2).leases
        self.told_hold, self.model.is_held = len(self.holds) - 1, self.holds[-1]
        if self.model.is_held:
            self.model.hold()
        assert [] == self.queue.hold(self.holds[-1], self.told_hold).leases
        for status in ("running", "pending"):
            for session_id in SESSIONS:
                said = [
                    sayings[-1]
                    for sayings in self.said.values()
                    if (sayings[-1].session_id, sayings[-1].status) == (session_id, status)
                ]
                if said:
                    self.model.conform(self._about(session_id), session_id, said, revives=True)
                    entries = [_entry(saying) for saying in said]
                    assert [] == self.queue.enqueue(self._line(session_id), entries).leases
        self._same(self.queue.open_gate("o"), self.model.promote(), "open")
        if not workers:
            self.announce("e1", 1, ("q",))
            self.announce("e3", 1, ("r",))

    def _begun(self) -> list[Held]:
        seen = {held.run_id: held.beat for held in self.queue.observe()}
        return [
            Held(
                run_id=run.run_id,
                session_id=run.session_id,
                claim=run.claim,
                executor=run.executor,
                beat=seen.get(run.run_id, -1),
            )
            for run in sorted(self._leases("begun"), key=lambda run: run.run_id)
        ]

    def _status(self) -> tuple[int, int | None, int, int | None]:
        model = self.model
        return model.active_runs(), model.max_runs, model.active_sessions(), model.max_sessions

    def _leases(self, state: str) -> list[ReferenceRun]:
        return [run for run in self.model.runs.values() if run.state == state]

    def _say(self, run: ReferenceRun, **values: Any) -> None:
        self.said[run.run_id].append(replace(self.said[run.run_id][-1], **values))

    def _enqueue(self, run_id: str, which: int = -1) -> None:
        saying = self.said[run_id][which]
        self.model.conform(self._about(saying.session_id), saying.session_id, [saying], revives=True)

        def call() -> Granted:
            return self.queue.enqueue(self._line(saying.session_id), [_entry(saying)])

        self._same(call(), self.model.promote(), "recorded")
        self._unchanged(call, "recorded")

    def _tell_state(self, session_id: str, which: int) -> None:
        state, version = self.states[session_id][which]
        known = self.model.sessions.get(session_id)
        word = "absent" if known is None else "kept" if version > known.version else "older"
        if known is not None and word == "kept":
            known.state, known.version = state, version
            self.model.touch(session_id)

        self._same(self.queue.session_state(session_id, state, version), self.model.promote(), word)
        self._unchanged(lambda: self.queue.session_state(session_id, state, version), None)

    def _tell_hold(self, which: int) -> None:
        version = range(len(self.holds))[which]
        if version >= self.told_hold:
            self.told_hold = version
            self.model.is_held = self.holds[version]
        if self.model.is_held:
            self.model.hold()
        word = "held" if self.model.is_held else "open"

        self._same(self.queue.hold(self.holds[version], version), self.model.promote(), word)
        self._unchanged(lambda: self.queue.hold(self.holds[version], version), word)

    def _about(self, session_id: str) -> ReferenceSession:
        return ReferenceSession(self.slots[session_id], *self.states[session_id][-1])

    def _line(self, session_id: str) -> Line:
        state, version = self.states[session_id][-1]
        return Line(session_id=session_id, slots=self.slots[session_id], state=state, version=version)

    def _same(self, said: Granted, granted: list[tuple[str, int]], word: str | None) -> None:
        assert granted == _pairs(said.leases)
        assert word in (said.word, None)

    def _rings(self, repeated: list[tuple[str, int]], granted: list[tuple[str, int]]) -> None:
        rung = self.queue.ring()
        assert (repeated, granted) == (_pairs(rung.repeated), _pairs(rung.granted))

    def _unchanged(self, call: Any, word: str | None) -> None:
        before, _ = look(self.client, self.namespace)
        answer = call()
        after, _ = look(self.client, self.namespace)
        assert before == after, "a call made again changed something"
        assert word in (getattr(answer, "word", None), None)

    def _command(self, verb: str, key: str, *rest: str) -> None:
        self.client.execute_command(verb, Keys(self.namespace).root + key, *rest)  # type: ignore[no-untyped-call]


def test_run_queue_does_what_the_reference_does(redis_url: str) -> None:
    """Order of grants, limits, capacity, back-off, pauses, holds, and calls made again."""
    client = redis.Redis.from_url(redis_url)

    class Machine(RunQueueMachine):
        pass

    Machine.client = client
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=1000 if IS_FULL else 50,
            stateful_step_count=60 if IS_FULL else 40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    client.close()


def _entry(saying: Saying) -> Entry:
    return Entry(
        run_id=saying.run_id,
        agent="agent",
        position=saying.position,
        queue=saying.queue,
        status=saying.status,
        claims=saying.claims,
        executor=saying.executor,
        waits_ms=10**12 if saying.waits else 0,
    )


def _pairs(leases: list[Lease]) -> list[tuple[str, int]]:
    return [(lease.run_id, lease.claim) for lease in leases]
