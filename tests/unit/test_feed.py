"""The feed: each matching event once and in order, whatever is lost, repeated or late; then the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asm_celery.config import Config
from asm_celery.events.cursor import Notice, Page
from asm_celery.events.feed import Deliver, End, Feed, Read, Wait, trust_s
from asm_celery.model import Event, mark_of

CONFIG = Config(subscriber_buffer=10, poll_s=1.0, connect_timeout_s=2.0)
RUN = "run_a"


@dataclass
class World:
    """A log of events of which the first `head` are committed, and a feed on it; SQL pages hold 3.

    The first event is committed already, as that of every session is.
    """

    log: list[Event]
    from_sequence: int = 0
    run_id: str | None = None
    types: frozenset[str] | None = None
    now: float = 100.0
    head: int = 1
    first: int = 1
    wakes: int = 0
    wire: list[Notice] = field(default_factory=list)
    flying: list[tuple[Read, Page]] = field(default_factory=list)
    delivered: list[Event] = field(default_factory=list)
    feed: Feed = field(init=False)

    def __post_init__(self) -> None:
        self.feed = Feed(
            "s",
            config=CONFIG,
            wake=self.woken,
            now=self.now,
            from_sequence=self.from_sequence,
            run_id=self.run_id,
            types=self.types,
        )

    def woken(self) -> None:
        """Count a call of the feed's wake."""
        self.wakes += 1

    def commit(self, count: int) -> None:
        """Commit the next events and put their notice on the wire."""
        events = tuple(self.log[self.head : self.head + count])
        if events:
            self.head += len(events)
            self.wire.append(Notice(first=events[0].sequence, last=events[-1].sequence, events=events))

    def hear(self, index: int) -> None:
        """Bring one of all notices ever sent, again or late."""
        if self.wire:
            self.feed.offer(self.wire[index % len(self.wire)], self.now)

    def hear_bare(self, index: int) -> None:
        """Bring a notice that carries no events."""
        if self.wire:
            self.feed.offer(replace(self.wire[index % len(self.wire)], events=()), self.now)

    def page(self, read: Read, limit: int = 3) -> Page:
        """Read what is committed now."""
        found = [
            event
            for event in self.log[read.after : self.head]
            if (read.run_id is None or event.run_id == read.run_id)
            and (read.types is None or event.type in read.types)
        ]
        found = [one for one in found if one.sequence >= self.first]
        there = read.seen is not None and self.first <= read.seen.sequence <= self.head
        at = self.log[read.seen.sequence - 1] if there and read.seen else None
        return Page(
            events=tuple(found[:limit]),
            head=self.head,
            full=len(found) >= limit,
            first=self.first,
            mark=mark_of(at.event_id) if at else None,
        )

    def step(self, _: int = 0) -> bool:
        """Do one step; return False when there is nothing to do."""
        match self.feed.next_step(self.now):
            case Deliver(event=event):
                self.delivered.append(event)
            case Read() as read:
                self.flying.append((read, self.page(read)))
                return len(self.flying) < 3
            case _:
                return False
        return True

    def land(self, index: int) -> None:
        """Bring a page that was read before."""
        if self.flying:
            read, page = self.flying.pop(index % len(self.flying))
            self.feed.loaded(read, page, self.now)

    def fail(self, index: int) -> None:
        """Let a read that was begun fail."""
        if self.flying:
            self.flying.pop(index % len(self.flying))
            self.feed.failed(self.now)

    def settle(self) -> None:
        """Commit everything, let reads come and time pass, and do all that the feed asks for."""
        self.commit(len(self.log))
        while self.flying:
            self.land(0)
        self.now += 60
        for _ in range(10 * len(self.log) + 10):
            if not self.step() and not self.flying:
                return
            self.land(0)
        raise AssertionError("the feed does not come to rest")

    @property
    def expected(self) -> list[Event]:
        """What the feed owes its subscriber of the whole log."""
        return [
            event
            for event in self.log[max(self.from_sequence, 1) - 1 :]
            if (self.run_id is None or event.run_id == self.run_id)
            and (self.types is None or event.type in self.types)
        ]


def event(sequence: int, kind: str = "message_streamed", run_id: str | None = RUN) -> Event:
    """An event of the log."""
    return Event(type=kind, session_id="s", sequence=sequence, run_id=run_id, event_id=f"evt_{sequence}")


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Sessions of two runs which may end, and which may close."""
    made = [event(1, "word", None)]
    going = [RUN, "run_b"]
    for kind in draw(st.lists(st.sampled_from(["word", "tool", "run_completed"]), max_size=40)):
        run_id = draw(st.sampled_from(going)) if going else None
        made.append(event(len(made) + 1, kind if run_id else "word", run_id))
        if run_id and kind == "run_completed":
            going.remove(run_id)
    if draw(st.booleans()):
        made.append(event(len(made) + 1, "session_completed", None))
    return made


MOVES: dict[str, Callable[[World, int], object]] = {
    "commit": lambda world, number: world.commit(1 + number % 3),
    "hear": World.hear,
    "hear_bare": World.hear_bare,
    "step": World.step,
    "land": World.land,
    "fail": World.fail,
    "confirm": lambda world, _: world.feed.confirm(),
    "lost": lambda world, _: world.feed.lost(),
    "pass": lambda world, tenths: setattr(world, "now", world.now + tenths / 5),
}


@settings(max_examples=3000 if os.environ.get("ASM_TEST_FULL") == "1" else 300, deadline=None)
@given(
    log=logs(),
    from_sequence=st.integers(0, 12),
    run_id=st.sampled_from([None, RUN]),
    types=st.sampled_from([None, frozenset({"word"}), frozenset({"tool", "run_completed"})]),
    moves=st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 9)), max_size=120),
)
def test_any_interleaving_delivers_each_event_once_in_order(
    log: list[Event],
    from_sequence: int,
    run_id: str | None,
    types: frozenset[str] | None,
    moves: list[tuple[str, int]],
) -> None:
    """Notices lost, repeated and reordered, reads late or failed, reconnects: nothing is lost or doubled."""
    world = World(log=log, from_sequence=from_sequence, run_id=run_id, types=types)

    for move, number in moves:
        MOVES[move](world, number)
        assert world.expected[: len(world.delivered)] == world.delivered
    world.settle()

    assert world.expected == world.delivered
    endings = [
        one.sequence
        for one in log
        if (one.type, one.run_id) in {("run_completed", run_id), ("session_completed", run_id)}
    ]
    if endings and endings[0] >= from_sequence:
        assert isinstance(world.feed.next_step(world.now), End)
    elif not endings:
        assert isinstance(world.feed.next_step(world.now), Wait)


def caught_up(log: list[Event], **options: object) -> World:
    """A feed that has read all of the log and waits."""
    world = World(log=log, **options)  # type: ignore[arg-type]
    world.settle()
    world.delivered.clear()
    return world


def test_a_full_buffer_takes_no_more_and_the_rest_is_read() -> None:
    """A subscriber that does not read costs at most its buffer, and loses nothing."""
    world = caught_up([event(1)])
    world.log += [event(number) for number in range(2, 102)]
    for index in range(100):
        world.commit(1)
        world.hear(index)

    held = 0
    while isinstance(world.feed.next_step(world.now), Deliver):
        held += 1
    assert held == CONFIG.subscriber_buffer
    assert isinstance(world.feed.next_step(world.now), Read)

    world.settle()
    assert list(range(12, 102)) == [one.sequence for one in world.delivered]


def test_live_news_needs_no_read() -> None:
    """Once caught up, a live event is delivered without a look at SQL."""
    world = caught_up([event(1)])
    world.log.append(event(2))
    world.commit(1)

    world.hear(-1)

    assert Deliver(event=world.log[1]) == world.feed.next_step(world.now)


def test_a_gap_is_read_at_once() -> None:
    """A live message that does not follow shows that one was lost."""
    world = caught_up([event(1)])
    world.log += [event(2), event(3)]
    world.commit(1)
    world.commit(1)

    world.hear(-1)

    assert isinstance(world.feed.next_step(world.now), Read)


def test_every_confirmation_of_the_channel_causes_a_read() -> None:
    """The client library reconnects silently: each confirmation may hide a loss."""
    world = caught_up([event(1)])
    assert isinstance(world.feed.next_step(world.now), Wait)

    for _ in range(2):
        world.feed.confirm()
        read = world.feed.next_step(world.now)
        assert isinstance(read, Read)
        world.feed.loaded(read, world.page(read), world.now)
        assert isinstance(world.feed.next_step(world.now), Wait)


def test_a_confirmation_during_a_read_causes_another() -> None:
    """A page that was read before the channel was subscribed proves nothing."""
    world = World(log=[event(1)])
    read = world.feed.next_step(world.now)
    assert isinstance(read, Read)
    world.feed.confirm()

    world.feed.loaded(read, world.page(read), world.now)

    world.step()
    assert isinstance(world.feed.next_step(world.now), Read)


def test_a_quiet_feed_reads_again_after_the_poll_time() -> None:
    """Silence is trusted for `poll_s` while no live connection is known to work."""
    world = caught_up([event(1)])

    for _ in range(3):
        assert Wait(seconds=pytest.approx(CONFIG.poll_s)) == world.feed.next_step(world.now)
        world.now += CONFIG.poll_s
        read = world.feed.next_step(world.now)
        assert isinstance(read, Read)
        world.feed.loaded(read, world.page(read), world.now)


def test_an_idle_feed_on_a_living_connection_polls_seldom() -> None:
    """Trust grows with the silence up to 15 s, and is gone when the connection is lost."""
    world = caught_up([event(1)])
    world.feed.confirm()
    world.now += 600
    read = world.feed.next_step(world.now)
    assert isinstance(read, Read)
    world.feed.loaded(read, world.page(read), world.now)
    assert Wait(seconds=pytest.approx(15.0)) == world.feed.next_step(world.now)

    world.feed.lost()

    assert Wait(seconds=pytest.approx(CONFIG.poll_s)) == world.feed.next_step(world.now)


def test_trust_in_silence_is_a_quarter_of_it_within_bounds() -> None:
    """A lost doorbell delays news by a quarter of the time waited at most."""
    assert [1.0, 1.0, 5.0, 15.0] == [trust_s(silence, poll_s=1.0) for silence in (0, 4, 20, 3600)]
    assert trust_s(3600, poll_s=60.0) == 60.0


def test_a_feed_that_begins_after_the_end_ends_at_once() -> None:
    """A run that was over before the first wanted sequence has nothing to say."""
    world = World(log=[event(1)], from_sequence=8, run_id=RUN)

    world.feed.end_at(0)
    assert not world.feed.closed
    world.feed.end_at(8)
    assert not world.feed.closed
    world.feed.end_at(7)

    assert world.feed.closed
    assert End() == world.feed.next_step(world.now)


def test_the_feed_of_a_deleted_session_ends() -> None:
    """Every session has a first event; a head of 0 means that there is no such session any more."""
    world = World(log=[event(1)])
    read = world.feed.next_step(world.now)
    assert isinstance(read, Read)

    world.feed.loaded(read, Page(events=(), head=0, full=False), world.now)

    assert End() == world.feed.next_step(world.now)


def test_a_type_filter_does_not_hide_the_end() -> None:
    """The terminal event ends the feed also when it is not among the types asked for."""
    world = World(log=[event(1), event(2, "run_failed")], run_id=RUN, types=frozenset({"message_streamed"}))

    world.settle()

    assert [1] == [one.sequence for one in world.delivered]
    assert world.feed.ended
    assert End() == world.feed.next_step(world.now)


def test_an_end_behind_a_gap_waits_for_what_is_missing() -> None:
    """The terminal event may be heard before its forerunners; they come first."""
    world = caught_up([event(1)], run_id=RUN)
    world.log += [event(2), event(3, "run_completed")]
    world.commit(1)
    world.commit(1)

    world.hear(-1)

    assert not world.feed.ended
    world.settle()
    assert [2, 3] == [one.sequence for one in world.delivered]
    assert world.feed.ended


def test_the_end_of_another_run_ends_nothing() -> None:
    """A run's feed ends with its own run."""
    world = caught_up([event(1)], run_id=RUN)
    world.log.append(event(2, "run_completed", "run_b"))
    world.commit(1)

    world.hear(-1)

    assert not world.feed.ended


def test_an_outage_is_told_after_a_while_and_then_again() -> None:
    """Reads are repeated quietly for twice the connect timeout; then each such span is told once."""
    world = World(log=[event(1)])
    told = []

    for _ in range(20):
        assert isinstance(world.feed.next_step(world.now), Read)
        told.append(world.feed.failed(world.now))
        wait = world.feed.next_step(world.now)
        assert wait == Wait(seconds=pytest.approx(1.0))
        world.now += 1.0

    assert [4, 9, 14, 19] == [index for index, is_told in enumerate(told) if is_told]


def test_closing_drops_what_is_held_and_wakes() -> None:
    """`close` from any thread ends the wait of the reader."""
    world = caught_up([event(1)])
    world.log.append(event(2))
    world.commit(1)
    world.hear(-1)
    wakes = world.wakes

    world.feed.close()

    assert world.wakes == wakes + 1
    assert world.feed.closed
    assert End() == world.feed.next_step(world.now)


def test_a_page_that_comes_after_closing_is_dropped() -> None:
    """`close` may come while a read is under way."""
    world = World(log=[event(1)])
    world.step()
    world.feed.close()

    world.land(0)

    assert End() == world.feed.next_step(world.now)


def test_news_that_does_not_match_wakes_nobody() -> None:
    """Ten thousand readers of one run are not woken by its neighbours."""
    world = caught_up([event(1)], run_id=RUN)
    world.log.append(event(2, run_id="run_b"))
    world.commit(1)
    wakes = world.wakes

    world.hear(-1)

    assert world.wakes == wakes
    assert isinstance(world.feed.next_step(world.now), Wait)
