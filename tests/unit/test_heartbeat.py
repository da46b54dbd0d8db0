"""What the beat of an executing process tells its attempts, and that nothing ends it."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from asm_celery.config import Config
from asm_celery.errors import CoordinationUnavailable
from asm_celery.model import Run, Session, StopReceipt, new_id
from asm_celery.moves.coordinator import Claim
from asm_celery.moves.recovery import Beat, Renewal
from asm_celery.states import RunStatus, StopKind
from asm_celery.worker.attempt import Attempt, Attempts
from asm_celery.worker.fence import Fence
from asm_celery.worker.heartbeat import Heartbeat
from asm_celery.worker.ladder import ThreadPlace
from asm_celery.worker.pool import Retirement
from tests.unit.test_silence import Clock
from tests.waiting import wait_until


@dataclass
class Collaborators:
    """Recovery, stopper and hub in one, made by hand."""

    answer: Beat = field(default_factory=Beat)
    renewal: Renewal = field(default_factory=Renewal)
    said: list[tuple[Any, ...]] = field(default_factory=list)
    trouble: Exception | None = None
    decided: StopKind = StopKind.TIMEOUT

    def beat(self, executor: str, held: dict[str, int], *, worker: str) -> Beat:
        self._say("beat", held, worker)
        return self.answer

    def renew(self, executor: str, held: dict[str, int]) -> Renewal:
        self._say("renew", held)
        return self.renewal

    def record(self, run_ids: set[str]) -> None:
        self._say("record", run_ids)

    def announce(self, executor: str, worker: str, slots: int, queues: list[str]) -> None:
        self._say("announce", worker, slots, queues)

    def retire(self, worker: str) -> None:
        self._say("retire", worker)

    def leave(self, executor: str, queues: list[str], *, worker: str) -> None:
        self._say("leave", worker)

    def repair(self) -> float:
        self._say("repair")
        return 60.0

    def request(self, run_id: str, kind: StopKind, *, reason: str, by: str) -> StopReceipt:
        self._say("request_stop", run_id, kind, reason, by)
        return StopReceipt(run_id=run_id, state="requested", status=RunStatus.RUNNING, kind=self.decided)

    def listen(self, channel: str, callback: Any) -> Any:
        self._say("listen", channel)

    def times(self, verb: str) -> int:
        return sum(said[0] == verb for said in self.said)

    def _say(self, *said: Any) -> None:
        self.said.append(said)
        if self.trouble is not None and said[0] != "listen":
            raise self.trouble


class Beating:
    """A heartbeat with its attempts."""

    def __init__(self, **settings: Any) -> None:
        self.with_ = Collaborators()
        self.attempts = Attempts()
        self.retirement = Retirement()
        collaborators = cast(Any, self.with_)
        self.place = ThreadPlace(lambda _: None)
        self.heartbeat = Heartbeat(
            "host:1:0",
            worker="w@host",
            incarnation="ab",
            slots=2,
            queues=["asm"],
            config=Config(**{"beat_s": 0.05, "lease_s": 1, "repair_s": 0.05, **settings}),
            recovery=collaborators,
            stopper=collaborators,
            hub=collaborators,
            attempts=self.attempts,
            place=self.place,
            retirement=self.retirement,
        )

    def attempt(self, *, run_timeout: float | None = None, is_begun: bool = True) -> Attempt:
        session = Session.new("echo")
        run = Run.new(session.session_id, agent="echo", run_id=new_id("run"), run_timeout=run_timeout)
        attempt = self.attempts.enter(run.run_id, 1)
        assert attempt is not None
        if is_begun:
            self.attempts.begin(attempt, Claim(run=run, session=session, number=1, executor="host:1:0"))
        return attempt


@pytest.fixture
def it() -> Beating:
    """A heartbeat that has not started."""
    return Beating()


def test_a_beat_delivers_stops_and_losses(it: Beating) -> None:
    """Each to its attempt; what is held is told with its claim number."""
    stopped, lost, other = it.attempt(), it.attempt(), it.attempt()
    it.with_.answer = Beat(stops={stopped.run_id: StopKind.INTERRUPT}, lost={lost.run_id})

    it.heartbeat.beat()

    assert ("interrupt", "lost", None) == (stopped.stop_kind, lost.stop_kind, other.stop_kind)
    assert {stopped.run_id: 1, lost.run_id: 1, other.run_id: 1} == it.with_.said[0][1]


def test_what_is_just_being_claimed_is_held_and_cannot_be_lost(it: Beating) -> None:
    """SQL does not know the claim yet, and must not take it for an orphan a moment later."""
    entering = it.attempt(is_begun=False)
    it.with_.answer = Beat(lost={entering.run_id})

    it.heartbeat.beat()

    assert {entering.run_id: 1} == it.with_.said[0][1]
    assert entering.stop_kind is None


def test_a_lease_that_another_has_taken_over_is_lost(it: Beating) -> None:
    """Redis says so while SQL is away; what is not claimed yet is not kept alive there."""
    taken, kept, entering = it.attempt(), it.attempt(), it.attempt(is_begun=False)
    it.with_.renewal = Renewal(taken={taken.run_id})

    it.heartbeat.renew()

    assert [("renew", {taken.run_id: 1, kept.run_id: 1})] == it.with_.said
    assert ("lost", None, None) == (taken.stop_kind, kept.stop_kind, entering.stop_kind)


def test_what_redis_has_lost_is_recorded_where_sql_is_asked_anyway(it: Beating) -> None:
    """A SQL that hangs must not keep Redis from hearing that this executor lives."""
    lost = it.attempt()
    it.with_.renewal = Renewal(unknown={lost.run_id})

    it.heartbeat.renew()
    assert [("renew", {lost.run_id: 1})] == it.with_.said
    it.heartbeat.record()

    assert ("record", {lost.run_id}) == it.with_.said[1]


@pytest.mark.parametrize("hangs", ["beat", "record", "renew", "announce", "request"])
def test_a_witness_that_hangs_does_not_silence_the_other(hangs: str) -> None:
    """SQL and Redis are told from threads of their own, and so are deadlines."""
    it = Beating()
    attempt, hung = it.attempt(run_timeout=0.01), threading.Event()
    setattr(it.with_, hangs, lambda *_, **__: hung.wait(20))
    others = {
        "beat": ["renew", "announce"],
        "record": ["renew", "announce"],
        "announce": ["beat", "renew"],
        "request": ["beat", "renew"],
    }.get(hangs, ["beat"])

    it.heartbeat.start()

    wait_until(lambda: all(it.with_.times(verb) > 5 for verb in others), description=f"{others} go on")
    hung.set()
    it.attempts.leave(attempt)
    it.heartbeat.stop()


def test_what_executes_is_stopped_and_then_ended_when_no_witness_answers() -> None:
    """Before others take it over: nobody executes beside its successor."""
    it, fell = Beating(), threading.Event()
    it.place.fall = fell.set
    attempt = it.attempt()
    it.with_.trouble = CoordinationUnavailable("neither answers")

    it.heartbeat.start()

    wait_until(fell.is_set, description="this process is to end")
    assert "lost" == attempt.stop_kind
    it.attempts.leave(attempt)
    it.heartbeat.stop()


def test_nothing_is_ended_for_silence_where_nothing_executes() -> None:
    """An idle worker outlives every outage, and a run it begins after one is not judged by it."""
    it, fell = Beating(beat_s=0.3), threading.Event()
    it.place.fall = fell.set
    it.with_.trouble = CoordinationUnavailable("neither answers")
    it.heartbeat.start()
    wait_until(lambda: it.heartbeat._fence.silent_s() > 1, description="a lease has passed")

    attempt = it.attempt()
    it.heartbeat.look()

    assert (False, None) == (fell.is_set(), attempt.stop_kind)
    it.attempts.leave(attempt)
    it.heartbeat.stop()


@pytest.mark.parametrize("is_vouched", [True, False])
def test_a_claim_that_came_late_is_judged_from_when_redis_was_asked_for_it(
    it: Beating, is_vouched: bool
) -> None:
    """And from its doorbell where Redis was as silent as SQL."""
    clock, fell = Clock(), threading.Event()
    it.place.fall = fell.set
    it.heartbeat._fence = Fence(lease_s=15, look_s=0.5, ask_s=3, clock=clock)
    late = it.attempt(is_begun=False)
    late.vouched_at = clock.now
    for _ in range(26):
        clock.now += 0.5
        it.heartbeat.look()
    assert (False, None) == (fell.is_set(), late.stop_kind)

    if is_vouched:
        late.vouched_at = clock.now
    it.attempts.begin(late, claim_of(late.run_id, 1))
    it.heartbeat.look()

    assert (not is_vouched, None if is_vouched else "lost") == (fell.is_set(), late.stop_kind)


def test_a_control_message_stops_only_the_claim_it_names(it: Beating) -> None:
    """A late message for an earlier claim touches nothing; an odd one is reported and ignored."""
    attempt = it.attempt()

    for message in (
        b"not json",
        b"[]",
        json.dumps({"run": attempt.run_id, "claim": 1, "kind": "explode"}).encode(),
        json.dumps({"run": attempt.run_id, "claim": 2, "kind": "cancel"}).encode(),
    ):
        it.heartbeat.hear(message)
    assert attempt.stop_kind is None

    it.heartbeat.hear(json.dumps({"run": attempt.run_id, "claim": 1, "kind": "cancel"}).encode())
    assert "cancel" == attempt.stop_kind


def test_a_pause_arrives_by_message_and_by_beat(it: Beating) -> None:
    """Whichever comes first; a message without its version is reported and ignored."""
    told, read = it.attempt(), it.attempt()
    it.with_.answer = Beat(pauses={read.run_id: (True, 1)})

    for words in ({"kind": "pause"}, {"kind": "pause", "version": None}):
        it.heartbeat.hear(json.dumps({"run": told.run_id, "claim": 1, **words}).encode())
    assert not told.pause.is_on
    it.heartbeat.hear(json.dumps({"run": told.run_id, "claim": 1, "kind": "pause", "version": 1}).encode())
    it.heartbeat.beat()

    assert (True, True) == (told.pause.is_on, read.pause.is_on)
    it.heartbeat.hear(json.dumps({"run": told.run_id, "claim": 1, "kind": "resume", "version": 2}).encode())
    it.with_.answer = Beat(pauses={read.run_id: (False, 2)})
    it.heartbeat.beat()
    assert (False, False) == (told.pause.is_on, read.pause.is_on)


def test_a_passed_deadline_becomes_a_durable_stop(it: Beating) -> None:
    """The request that was committed first decides, which may be another's."""
    attempt = it.attempt(run_timeout=0.001)
    it.with_.decided = StopKind.CANCEL
    wait_until(it.attempts.overdue, description="the deadline has passed")

    it.heartbeat.enforce()

    assert [("request_stop", attempt.run_id, StopKind.TIMEOUT, "run_timeout", "executor")] == it.with_.said
    assert "cancel" == attempt.stop_kind


def test_a_deadline_does_not_wait_for_the_next_beat() -> None:
    """The thread that beats wakes for it."""
    it = Beating(beat_s=30, lease_s=90)
    it.heartbeat.start()
    wait_until(lambda: it.with_.times("beat"), description="the first beat")

    attempt = it.attempt(run_timeout=0.05)

    wait_until(lambda: attempt.stop_kind, description="the attempt was stopped", timeout=10)
    it.attempts.leave(attempt)
    it.heartbeat.stop()


def test_nothing_ends_the_beat(it: Beating, caplog: pytest.LogCaptureFixture) -> None:
    """Every step goes on being tried; a trouble is logged once, and its end too."""
    it.with_.trouble = CoordinationUnavailable("Redis is away")
    with caplog.at_level(logging.INFO, logger="asm_celery.worker"):
        it.heartbeat.start()
        wait_until(lambda: it.with_.times("beat") > 3, description="it beats on")
        it.with_.trouble = None
        wait_until(lambda: "announce works again" in caplog.text, description="it works again")
        it.heartbeat.stop()

    for name in ("announce", "beat", "renew", "repair"):
        assert 1 == caplog.text.count(f"{name} fails")


def test_a_retiring_worker_takes_back_its_capacity_once_and_announces_no_more(it: Beating) -> None:
    """Under the name of this start, so that the next worker of the same name is not meant."""
    it.heartbeat.announce()
    it.retirement.begin()

    for _ in range(3):
        it.heartbeat.announce()

    assert [("announce", "w@host/ab", 2, ["asm"]), ("retire", "w@host/ab")] == it.with_.said


def test_after_the_grace_what_still_runs_is_asked_to_leave() -> None:
    """And not before."""
    it = Beating(shutdown_grace_s=3600)
    attempt = it.attempt()
    it.retirement.begin()
    it.heartbeat.announce()
    it.heartbeat.end_grace()
    assert attempt.stop_kind is None

    it = Beating(shutdown_grace_s=0)
    attempt = it.attempt()
    it.retirement.begin()
    it.heartbeat.announce()
    it.heartbeat.end_grace()
    assert "shutdown" == attempt.stop_kind


def test_a_worker_that_is_hurried_asks_what_still_runs_to_leave_at_once() -> None:
    """However long its grace and its beat are."""
    it = Beating(shutdown_grace_s=3600, beat_s=30, lease_s=90)
    attempt = it.attempt()
    it.heartbeat.start()
    wait_until(lambda: it.with_.times("beat"), description="the first beat")

    it.retirement.hurry()

    wait_until(lambda: attempt.stop_kind == "shutdown", description="it was asked to leave", timeout=10)
    it.attempts.leave(attempt)
    it.heartbeat.stop()


def test_an_executor_that_still_holds_something_is_not_forgotten(it: Beating) -> None:
    """Its beat has ended, and recovery finds what it held."""
    it.attempt()
    it.heartbeat.start()

    it.heartbeat.stop()

    assert 0 == it.with_.times("leave")


def test_a_later_claim_of_a_run_ends_the_earlier_one() -> None:
    """Two threads of one process never execute the same run under a valid claim."""
    attempts = Attempts()
    first = attempts.enter("run_1", 1)
    assert first is not None
    assert attempts.enter("run_1", 1) is None

    second = attempts.enter("run_1", 2)

    assert second is not None
    assert not first.is_lost
    attempts.begin(second, claim_of("run_1", 2))
    assert first.is_lost
    attempts.leave(first)
    assert [second] == attempts.all()


def test_a_later_doorbell_that_gets_no_claim_leaves_the_earlier_attempt_as_it_was() -> None:
    """Anybody may ring with any number, also twice at once; what executes stays known and is stopped as before."""
    attempts = Attempts()
    first = attempts.enter("run_1", 1)
    spares = [attempts.enter("run_1", number) for number in (2, 7)]
    assert first is not None

    for spare in spares:
        assert spare is not None
        attempts.leave(spare)

    assert [first] == attempts.all()
    assert not first.is_lost
    attempts.stop("run_1", 1, StopKind.CANCEL)
    assert "cancel" == first.stop_kind
    attempts.leave(first)
    assert [] == attempts.all()


def claim_of(run_id: str, number: int) -> Claim:
    """A claim as a coordinator gives it."""
    run = Run.new("s", run_id=run_id, agent="agent", claims=number, status=RunStatus.RUNNING)
    return Claim(run=run, session=Session.new("agent"), number=number, executor="e")


def test_of_two_news_of_a_pause_the_later_holds() -> None:
    """A beat's answer may be older than a message that came meanwhile, and both may be older than the claim."""
    attempts = Attempts()
    attempt = attempts.enter("run_1", 1)
    assert attempt is not None

    seen = []
    for is_paused, version in (
        (True, 1),
        (False, 2),
        (True, 1),
        (True, 3),
        (False, 2),
        (False, 4),
        (True, 3),
    ):
        attempts.pause("run_1", 1, is_paused, version)
        seen.append(attempt.pause.is_on)
    attempts.pause("run_1", 2, True, 9)
    attempts.pause("run_2", 1, True, 9)
    attempts.begin(attempt, claim_of("run_1", 1))

    assert [True, False, False, True, True, False, False] == seen
    assert not attempt.pause.is_on
    attempts.pause("run_1", 1, True, 5)
    attempts.stop("run_1", 1, StopKind.CANCEL)
    assert not attempt.pause.is_on, "who must leave is not held back"
