"""What the measuring process has others do, so that it does not measure itself: ``python -m benchmarks.elsewhere``.

A process does what each line it reads asks for, and answers in JSON, a line for each value that the verb
yields.  It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import redis

from asm_celery import AgentSessions
from asm_celery.aio import AsyncAgentSessions, AsyncSubscription
from benchmarks import plain_module
from benchmarks.figures import spread_ms
from benchmarks.raw import RawTable
from tests.nursery import ROOT, program


class Elsewhere:
    """Such a process, as the measuring one holds it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ASM_")}
        full = {**inherited, **env}
        self._process = subprocess.Popen(
            program("benchmarks.elsewhere", env=full),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=full,
        )

    def begin(self, verb: str, **arguments: Any) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the next thing it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the other process ended without an answer; its error is above")
        return json.loads(line)

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Let it begin, and wait."""
        self.begin(verb, **arguments)
        return self.answer()

    def close(self) -> None:
        """End it."""
        self._process.communicate()


class _Verbs:
    """What can be asked for."""

    def __init__(self) -> None:
        self._asm = AgentSessions.from_env()

    def submit(self, *, sessions: list[str], count: int) -> Iterator[float]:
        """Submit in turns to the sessions; say how long it took."""
        servers = [self._asm.attach(session_id) for session_id in sessions]
        began = time.monotonic()
        for number in range(count):
            servers[number % len(servers)].submit_run("s")
        yield time.monotonic() - began

    def apply(self, *, count: int) -> Iterator[float]:
        """Send tasks of plain Celery; say how long it took."""
        began = time.monotonic()
        for _ in range(count):
            plain_module.noop.delay("p")
        yield time.monotonic() - began

    def follow(self, *, session_id: str, subscribers: int, count: int) -> Iterator[dict[str, Any]]:
        """Follow a session many times at once; say that it is so, then how late each event came."""
        with asyncio.Runner() as runner:
            crowd = _Crowd()
            runner.run(crowd.gather(session_id, subscribers))
            yield {}
            yield runner.run(crowd.listen(count))
            runner.run(crowd.close())

    def publish(self, *, channel: str, count: int, gap_s: float) -> Iterator[dict[str, Any]]:
        """Commit one row and publish one message again and again, with nothing of ours; say nothing of it."""
        client = redis.Redis.from_url(self._asm.config.redis_url)
        with RawTable(self._asm.config.database_url) as table:
            for _ in range(count):
                at = time.monotonic()
                table.insert(1)
                client.publish(channel, f"{at:.6f}")
                time.sleep(gap_s)
        yield {}


class _Crowd:
    """The subscriptions of one process, read by coroutines."""

    def __init__(self) -> None:
        self._open = AsyncExitStack()
        self._held: list[AsyncSubscription] = []

    async def gather(self, session_id: str, subscribers: int) -> None:
        """Subscribe."""
        asm = await self._open.enter_async_context(AsyncAgentSessions(AgentSessions.from_env().config))
        server = await asm.attach(session_id)
        self._held = [
            await self._open.enter_async_context(server.subscribe(type="note")) for _ in range(subscribers)
        ]

    async def listen(self, count: int) -> dict[str, Any]:
        """Read so many events each."""
        late: list[float] = []
        first = time.monotonic() + 3600.0

        async def read(events: AsyncSubscription) -> None:
            nonlocal first
            for _ in range(count):
                event = await anext(events)
                at = event.data["at"]
                late.append(time.monotonic() - at)
                first = min(first, at)

        await asyncio.gather(*(read(one) for one in self._held))
        return {"took_s": time.monotonic() - first, "late_ms": spread_ms(late), "first": first}

    async def close(self) -> None:
        """End all of it."""
        await self._open.aclose()


def main() -> None:
    """Do what is asked for until nobody asks."""
    verbs = _Verbs()
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        for answer in getattr(verbs, verb)(**arguments):
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
