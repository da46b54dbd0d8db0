"""The threads pool: as many as were asked for, in order, and no end that waits for a lost one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from asm_celery.errors import StopRun
from asm_celery.worker.threads import Threads
from tests.waiting import wait_until

PATIENCE_S = 20.0


class Agent:
    """A job that stays until it is let go."""

    def __init__(self) -> None:
        self.is_free = threading.Event()
        self.thread: int | None = None

    def __call__(self) -> int | None:
        self.thread = threading.get_ident()
        self.is_free.wait(PATIENCE_S)
        return self.thread


class Pool:
    """Makes pools, and frees what was put in them."""

    def __init__(self) -> None:
        self.made: list[Threads] = []
        self.agents: list[Agent] = []

    def of(self, size: int, begin: Callable[[], object] = lambda: None) -> Threads:
        self.made.append(Threads(size, begin))
        return self.made[-1]

    def busy(self, threads: Threads) -> tuple[Agent, Future[Any]]:
        """Have a thread execute an agent that stays."""
        agent = Agent()
        self.agents.append(agent)
        future = threads.submit(agent)
        wait_until(lambda: agent.thread, description="the agent is executed")
        return agent, future


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Pools that end with the test."""
    made = Pool()
    yield made
    for agent in made.agents:
        agent.is_free.set()
    for threads in made.made:
        threads.shutdown()


def test_jobs_are_begun_in_the_order_of_submission(pool: Pool) -> None:
    """One thread shows it best."""
    threads = pool.of(1)
    order: list[int] = []
    agent, _ = pool.busy(threads)
    futures = [threads.submit(order.append, number) for number in range(100)]

    agent.is_free.set()
    for future in futures:
        future.result(PATIENCE_S)

    assert list(range(100)) == order


def test_no_more_jobs_are_executed_at_once_than_there_may_be_threads(pool: Pool) -> None:
    """And no fewer, if there are as many jobs."""
    threads, lock, gate, present, most = pool.of(4), threading.Lock(), threading.Barrier(4), 0, 0

    def job() -> None:
        nonlocal present, most
        with lock:
            present += 1
            most = max(most, present)
        gate.wait(PATIENCE_S)
        with lock:
            present -= 1

    for future in [threads.submit(job) for _ in range(40)]:
        future.result(PATIENCE_S)

    assert (4, 4) == (most, len(threads._threads))


def test_an_idle_thread_is_used_before_another_is_started(pool: Pool) -> None:
    """A worker of a hundred slots that executes one run at a time has one thread."""
    threads = pool.of(100)
    used = set()
    for _ in range(20):
        used.add(threads.submit(threading.get_ident).result(PATIENCE_S))
        wait_until(lambda: threads._idle._value == 1, description="the thread waits for a job")

    assert 1 == len(used)


def test_every_thread_begins_as_it_was_told(pool: Pool) -> None:
    """Before its first job: it belongs to its application."""
    here = threading.local()
    threads = pool.of(2, lambda: setattr(here, "app", "ours"))

    assert "ours" == threads.submit(lambda: here.app).result(PATIENCE_S)


def test_a_future_has_what_the_job_returned_or_raised(pool: Pool) -> None:
    """Also what is no Exception; the thread goes on."""
    threads = pool.of(1)

    def fail(cause: BaseException) -> None:
        raise cause

    causes = [ValueError("x"), StopRun("cancel"), SystemExit(3)]
    futures = [threads.submit(fail, cause) for cause in causes]

    assert causes == [future.exception(PATIENCE_S) for future in futures]
    assert 7 == threads.submit(int, "111", base=2).result(PATIENCE_S)
    assert 1 == len(threads._threads)


def test_a_job_that_was_cancelled_while_it_waited_is_not_executed(pool: Pool) -> None:
    """The next one is."""
    threads = pool.of(1)
    done: list[int] = []
    agent, _ = pool.busy(threads)
    cancelled, kept = threads.submit(done.append, 1), threads.submit(done.append, 2)

    assert cancelled.cancel()
    agent.is_free.set()
    kept.result(PATIENCE_S)

    assert [2] == done


def test_the_end_waits_for_what_was_submitted(pool: Pool) -> None:
    """Jobs that still wait are executed; nothing more is taken."""
    threads = pool.of(1)
    done: list[int] = []
    agent, future = pool.busy(threads)
    threads.submit(done.append, 1)

    threads.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="this worker is ending"):
        threads.submit(done.append, 2)
    assert not future.done()
    agent.is_free.set()
    threads.shutdown()

    assert [1] == done
    assert not any(thread.is_alive() for thread in threads._threads)


def test_the_end_can_drop_what_still_waits(pool: Pool) -> None:
    """What is being executed is waited for all the same."""
    threads = pool.of(1)
    done: list[int] = []
    agent, future = pool.busy(threads)
    waiting = [threads.submit(done.append, number) for number in range(5)]

    threads.shutdown(wait=False, cancel_futures=True)
    agent.is_free.set()
    threads.shutdown()

    assert agent.thread == future.result(PATIENCE_S)
    for one in waiting:
        with pytest.raises(CancelledError):
            one.result(PATIENCE_S)
    assert [] == done


def test_the_end_does_not_wait_for_a_lost_thread(pool: Pool) -> None:
    """Celery's own pool would, for ever."""
    threads = pool.of(2)
    lost, future = pool.busy(threads)

    threads.give_up(lost.thread, substitute=False)
    threads.shutdown()

    assert not future.done()


def test_the_end_does_not_wait_for_a_thread_that_is_lost_meanwhile(pool: Pool) -> None:
    """A worker that is ending goes down its ladders still."""
    threads = pool.of(2)
    lost, future = pool.busy(threads)
    ending = threading.Thread(target=threads.shutdown, daemon=True)
    ending.start()
    wait_until(lambda: threads._is_closed, description="the pool is ending")

    threads.give_up(lost.thread, substitute=False)
    ending.join(PATIENCE_S)

    assert (False, False) == (ending.is_alive(), future.done())


@pytest.mark.parametrize("substitute", [True, False])
def test_a_lost_thread_takes_no_more_jobs(pool: Pool, *, substitute: bool) -> None:
    """Its agent may return after all, and what it does then concerns nobody."""
    threads = pool.of(2)
    lost, future = pool.busy(threads)
    [thread] = threads._threads

    threads.give_up(lost.thread, substitute=substitute)
    lost.is_free.set()
    thread.join(PATIENCE_S)

    assert (False, lost.thread) == (thread.is_alive(), future.result(PATIENCE_S))
    assert set() == threads._threads


def test_a_lost_thread_takes_its_place_with_it(pool: Pool) -> None:
    """A worker that is about to be replaced does not fill up with threads that hang."""
    threads = pool.of(2)
    lost, _ = pool.busy(threads)
    threads.give_up(lost.thread, substitute=False)
    busy, _ = pool.busy(threads)

    waiting = threads.submit(threading.get_ident)

    assert [busy.thread] == [thread.ident for thread in threads._threads]
    busy.is_free.set()
    assert busy.thread == waiting.result(PATIENCE_S)


def test_a_substitute_takes_the_place_of_a_lost_thread(pool: Pool) -> None:
    """At once, if jobs wait for it."""
    threads = pool.of(1)
    lost, future = pool.busy(threads)
    waiting = threads.submit(threading.get_ident)

    threads.give_up(lost.thread, substitute=True)

    assert lost.thread != waiting.result(PATIENCE_S)
    assert (1, False) == (len(threads._threads), future.done())


@pytest.mark.parametrize("substitute", [True, False])
def test_only_a_thread_of_the_pool_can_be_lost(pool: Pool, *, substitute: bool) -> None:
    """A body that was never entered has no thread, and a thread is lost once."""
    threads = pool.of(2)
    lost, _ = pool.busy(threads)
    threads.give_up(lost.thread, substitute=substitute)

    for other in (None, threading.get_ident(), lost.thread):
        threads.give_up(other, substitute=substitute)

    assert (2 if substitute else 1) == threads._size


def test_a_thread_that_has_the_id_of_a_lost_one_works(pool: Pool) -> None:
    """The system gives the id of a thread again as soon as that has ended: mostly, so it is tried often."""

    def works() -> bool:
        threads, done = pool.of(1), threading.Event()
        lost, _ = pool.busy(threads)
        [thread] = threads._threads
        threads.give_up(lost.thread, substitute=True)
        lost.is_free.set()
        thread.join(PATIENCE_S)
        threads.submit(done.set)
        return done.wait(1)

    assert all(works() for _ in range(20))


class _Slow(queue.SimpleQueue[Any]):
    """A queue whose taker is interrupted by the system just after it took."""

    def __init__(self) -> None:
        self.is_taken, self.goes_on = threading.Event(), threading.Event()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        job = super().get(block, timeout)
        if not self.is_taken.is_set():
            self.is_taken.set()
            self.goes_on.wait(PATIENCE_S)
        return job


def test_a_job_does_not_wait_for_a_thread_that_has_just_taken_another(pool: Pool) -> None:
    """There is room for a second thread, so the second job is executed beside the first."""
    threads = pool.of(2)
    slow = threads._jobs = _Slow()
    slow.is_taken.set()
    threads.submit(int).result(PATIENCE_S)
    wait_until(lambda: threads._idle._value == 1, description="the first thread waits for a job")
    slow.is_taken.clear()
    first, done = Agent(), threading.Event()
    pool.agents.append(first)
    threads.submit(first)
    slow.is_taken.wait(PATIENCE_S)

    threads.submit(done.set)
    slow.goes_on.set()
    is_done = done.wait(1)

    assert is_done


def test_whoever_waits_for_a_free_thread_is_woken_once_all_were_busy(pool: Pool) -> None:
    """Each time anew; and not while a thread was free all along, for nobody waits then."""
    threads, woken = pool.of(2), queue.SimpleQueue[int]()
    threads.wake_by(lambda: woken.put(1))
    first, first_done = pool.busy(threads)
    assert 7 == threads.submit(int, "7").result(PATIENCE_S)
    woken.get(timeout=PATIENCE_S)

    first.is_free.set()
    first_done.result(PATIENCE_S)
    wait_until(lambda: threads._busy == 0, description="both threads are free")

    assert woken.empty()
