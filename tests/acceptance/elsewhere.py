"""What a test has another process do: ``python -m tests.acceptance.elsewhere VERB ARGUMENTS``.

A process connects, says that it is ready, waits for the word to go, does its verb and answers in JSON, a line
each way.  It ends when its test lets go of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from asm_celery import AgentSessions
from asm_celery.aio import AsyncAgentSessions
from asm_celery.errors import AsmError, QueueFull
from asm_celery.model import Event
from tests.nursery import ROOT, program


class Elsewhere:
    """A process that does one verb; a context manager that ends it.

    Args:
        env: the ASM_* variables of the installation.
        arguments: what the verb takes, as JSON.
    """

    def __init__(self, verb: str, env: Mapping[str, str], **arguments: Any) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ASM_")}
        full = {**inherited, **env}
        self._process = subprocess.Popen(
            program("tests.acceptance.elsewhere", verb, json.dumps(arguments), env=full),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=full,
        )
        self._is_ready = False

    def wait(self) -> None:
        """Wait until it is connected and ready; safe to repeat."""
        if not self._is_ready:
            assert "ready" == self._heard()
            self._is_ready = True

    def go(self) -> Self:
        """Let it begin."""
        self.wait()
        self._tell("go")
        return self

    def again(self) -> Any:
        """Have it look again; return what it says (`follow` and `crowd` only)."""
        self._tell("again")
        return self.answer()

    def answer(self) -> Any:
        """Return the next line it says; waits for it."""
        return json.loads(self._heard())

    def kill(self) -> None:
        """End it by SIGKILL, as a lost machine does."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def _heard(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process ended without an answer; its error is above"
        return line.strip()


def together(processes: list[Elsewhere]) -> list[Any]:
    """Let all begin when all are ready; return their answers, and end them."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
        for process in processes:
            process.wait()
        for process in processes:
            process.go()
        return [process.answer() for process in processes]


Verb = Callable[..., Any]


def submit(asm: AgentSessions, *, session_id: str, inputs: list[Any], threads: int, **options: Any) -> Any:
    """Submit each input from one of several threads; answer with run ids and refusals, in their order."""

    def one(value: Any) -> dict[str, Any]:
        try:
            return {"run_id": asm.attach(session_id).submit_run(value, **options)}
        except QueueFull as full:
            return {"refused": full.code, "limit": full.limit, "depth": full.depth}
        except AsmError as cause:
            return {"refused": cause.code}

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, inputs))


def append(
    asm: AgentSessions, *, session_id: str, writers: int, batches: int, size: int, name: str
) -> list[list[Any]]:
    """Append batches of events from several threads, each batch twice; answer [[event id, sequence] ...]."""

    def write(writer: int) -> list[list[Any]]:
        server, told = asm.attach(session_id), []
        for batch in range(batches):
            events = [
                Event.new("message_received", session_id, data={"from": f"{name}.{writer}.{batch}.{place}"})
                for place in range(size)
            ]
            first = server.append_events(events)
            again = server.append_events(events)
            assert first == again, f"repeated ids got other sequences: {first} {again}"
            told += [[event.event_id, event.sequence] for event in first]
        return told

    with ThreadPoolExecutor(writers) as pool:
        return [pair for pairs in pool.map(write, range(writers)) for pair in pairs]


def wait_for(asm: AgentSessions, *, runs: list[list[str]], threads: int, tasks: int) -> list[list[Any]]:
    """Await runs, given as [session id, run id], from threads and asyncio tasks at once.

    Says a line when all are about to wait; answers [run id, last sequence, wall clock] of each.
    """
    waiting = Countdown(threads + tasks)

    def in_thread(number: int) -> list[Any]:
        session_id, run_id = runs[number % len(runs)]
        server = asm.attach(session_id)
        waiting.one()
        return [run_id, server.await_run(run_id).last_sequence, time.time()]

    async def in_task(sessions: AsyncAgentSessions, number: int) -> list[Any]:
        session_id, run_id = runs[number % len(runs)]
        server = await sessions.attach(session_id)
        waiting.one()
        return [run_id, (await server.await_run(run_id)).last_sequence, time.time()]

    async def all_tasks() -> list[list[Any]]:
        async with AsyncAgentSessions(asm.config) as sessions:
            return list(await asyncio.gather(*(in_task(sessions, number) for number in range(tasks))))

    with ThreadPoolExecutor(threads + 1) as pool:
        in_loop = pool.submit(lambda: asyncio.run(all_tasks()))
        in_threads = [pool.submit(in_thread, number) for number in range(threads)]
        waiting.all()
        _say("waiting")
        return [one.result() for one in in_threads] + in_loop.result()


class Countdown:
    """Counts until all have said so."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._changed = threading.Condition()

    def one(self) -> None:
        """Say that one is there."""
        with self._changed:
            self._left -= 1
            self._changed.notify_all()

    def all(self) -> None:
        """Wait until all are there."""
        with self._changed:
            self._changed.wait_for(lambda: self._left <= 0, timeout=60)


def follow(asm: AgentSessions, *, session_id: str, subscribers: int) -> None:
    """Hold subscriptions; answer when they are there, then with status() for each line that is heard."""
    server = asm.attach(session_id)
    held = [server.subscribe() for _ in range(subscribers)]
    while True:
        report = server.status()
        _say(
            {
                "subscribers": report.subscribers,
                "in_flight": report.in_flight_runs,
                "queued": report.queued_runs,
                "held": len(held),
            }
        )
        if sys.stdin.readline().strip() != "again":
            return


def flood(asm: AgentSessions, *, sessions: list[str], count: int, threads: int) -> dict[str, Any]:
    """Submit as fast as it goes, in turns to the sessions; answer what came of it, and the peak of memory."""
    servers = [asm.attach(session_id) for session_id in sessions]
    accepted: list[list[str]] = [[] for _ in sessions]
    took_s: dict[str, list[float]] = {"accepted": [], "refused": []}
    before = peak_mb(os.getpid())

    # drawn one by one: a future for each submit would be most of the memory that is measured
    numbers, lock = iter(range(count)), threading.Lock()

    def some() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            at = number % len(servers)
            began = time.perf_counter()
            try:
                accepted[at].append(servers[at].submit_run(number))
                took_s["accepted"].append(time.perf_counter() - began)
            except QueueFull:
                took_s["refused"].append(time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for one in [pool.submit(some) for _ in range(threads)]:
            one.result()
    return {
        "accepted": dict(zip(sessions, accepted, strict=True)),
        "refused": len(took_s["refused"]),
        "seconds": time.perf_counter() - began,
        "took_ms": {word: _spread(times) for word, times in took_s.items()},
        "mb": [before, peak_mb(os.getpid())],
    }


def crowd(asm: AgentSessions, *, session_id: str, subscribers: int) -> None:
    """Follow a session many times; read one event each, and nothing more until a line is heard.

    Answers when all have; then what each has read up to the session's end, once for all that read the same,
    and the peak of memory before and after.
    """
    server = asm.attach(session_id)
    held = [server.subscribe() for _ in range(subscribers)]
    for one in held:
        assert one.get(timeout=60) is not None
    before = peak_mb(os.getpid())
    _say(subscribers)
    sys.stdin.readline()
    # equal ones are kept once: all of them would be most of the memory that is measured
    read = {tuple(event.sequence for event in one) for one in held}
    _say({"transcripts": list(read), "mb": [before, peak_mb(os.getpid())]})


def peak_mb(pid: int) -> float:
    """Return the most memory a process has had, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _spread(times: list[float]) -> dict[str, float]:
    ordered = sorted(times) or [0.0]
    return {
        "median": round(1000 * ordered[len(ordered) // 2], 1),
        "p99": round(1000 * ordered[int(len(ordered) * 0.99)], 1),
        "max": round(1000 * ordered[-1], 1),
    }


VERBS: dict[str, Verb] = {
    "submit": submit,
    "append": append,
    "wait_for": wait_for,
    "follow": follow,
    "flood": flood,
    "crowd": crowd,
}
_READ_LINES: frozenset[str] = frozenset({"follow", "crowd"})


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _end_with_the_test() -> None:
    # the verbs that read no line: end of file means that the test is gone
    if not sys.stdin.readline():
        os._exit(1)


def main() -> None:
    """Do the verb named on the command line."""
    verb, arguments = sys.argv[1], json.loads(sys.argv[2])
    asm = AgentSessions.from_env()
    # connected before the start: what races is the work
    asm.list_sessions(limit=1)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    if verb not in _READ_LINES:
        threading.Thread(target=_end_with_the_test, daemon=True).start()
    _say(VERBS[verb](asm, **arguments))
    asm.close()


if __name__ == "__main__":
    main()
