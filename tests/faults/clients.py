"""A client process of a chaos run: ``python -m tests.faults.clients NAME FOLDER SEED``.

Several threads submit, await and stop; each session is followed by a subscriber that is steady, slow or
reconnects at random cursors.  Everything that was acknowledged or received is written into a journal before
anything else happens.  It ends when the file ``stop`` is there and all its runs have.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from asm_celery import AgentSessions, SessionServer
from asm_celery.errors import AsmError, AwaitTimeout, QueueFull, RunEnded
from asm_celery.model import RunResult
from tests.faults.journal import Journal

SUBMITTERS = 4
RUNS_A_SESSION = 24
PATIENCE_S = 90.0
CHUNK = 100


class Client:
    """One process's work."""

    def __init__(self, asm: AgentSessions, name: str, folder: Path, seed: int) -> None:
        self.asm = asm
        self.name = name
        self.folder = folder
        self.seed = seed
        self.journal = Journal(folder / f"{name}.jsonl")

    @property
    def is_over(self) -> bool:
        """True when nothing new shall be begun."""
        return (self.folder / "stop").exists()

    def run(self) -> None:
        """Work until told to stop."""
        threads = [
            threading.Thread(target=self._guarded, args=(number,), name=f"submitter-{number}")
            for number in range(SUBMITTERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def tried(self, what: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        """Do something again while it fails in a way that says it may be tried again; None in the end."""
        until = time.monotonic() + patience_s
        while True:
            try:
                return what()
            except AsmError as error:
                self.journal.say("error", error=error.code)
                if not error.retryable or time.monotonic() > until:
                    return None
                time.sleep(0.2)

    def _guarded(self, number: int) -> None:
        dice = random.Random(f"{self.seed} {self.name} {number}")
        turn = 0
        while not self.is_over:
            turn += 1
            try:
                Talk(self, dice, number, turn).hold()
            except Exception as error:  # noqa: BLE001 - whatever a user would see is written down
                self.journal.say("strange", text=f"{self.name}: {type(error).__name__}: {error}")
                time.sleep(0.5)


class Talk:
    """One session, from its start until all its runs have ended."""

    def __init__(self, client: Client, dice: random.Random, number: int, turn: int) -> None:
        self._client = client
        self._dice = dice
        self._journal = client.journal
        # two client processes share the sessions of their first submitters
        self._is_shared = number == 0
        word = f"shared-{turn // 2}" if self._is_shared else uuid4().hex[:10]
        self._session_id = f"chaos-{word}"
        self._open: list[str] = []
        self._target = 0

    def hold(self) -> None:
        """Submit, await, stop; follow meanwhile."""
        server: SessionServer | None = self._client.tried(
            lambda: self._client.asm.start_session(
                "mix",
                session_id=self._session_id,
                if_exists="attach",
                max_concurrent_runs=2 if self._is_shared else self._dice.choice((1, 1, 2, 3)),
                max_queued_runs=30,
            )
        )
        if server is None:
            return
        follower = Follower(self._client, server, random.Random(self._dice.random()))
        follower.start()
        left = RUNS_A_SESSION
        while left > 0 and not self._client.is_over:
            burst = self._dice.randint(1, 6)
            left -= burst
            for _ in range(burst):
                self._submit(server)
            if self._open and self._dice.random() < 0.2:
                self._stop(server, self._dice.choice(self._open))
            while len(self._open) > 4:
                self._await(server, self._open.pop(self._dice.randrange(len(self._open))))
            time.sleep(self._dice.uniform(0.0, float(os.environ.get("CHAOS_PAUSE_S", "0.6"))))
        while self._open:
            self._await(server, self._open.pop())
        follower.end(self._target)

    def _submit(self, server: SessionServer) -> None:
        key = uuid4().hex if self._dice.random() < 0.4 else None
        given = self._work()
        attempts = self._dice.choice((1, 1, 1, 3))
        if given["do"] == "flaky":
            attempts = 3
        for _ in range(self._dice.choice((1, 1, 1, 2)) if key else 1):
            run_id = self._submit_once(server, given, key, attempts)
        if run_id is not None and run_id not in self._open:
            self._open.append(run_id)

    def _submit_once(
        self, server: SessionServer, given: dict[str, Any], key: str | None, attempts: int
    ) -> str | None:
        called = time.monotonic()

        def submit() -> str | None:
            nonlocal called
            called = time.monotonic()
            try:
                return server.submit_run(given, idempotency_key=key, max_attempts=attempts)
            except QueueFull:
                self._journal.say("refused", took=time.monotonic() - called)
                return None

        # without a key a second try would be another run
        run_id: str | None = self._client.tried(submit, PATIENCE_S if key else 0.0)
        self._journal.say("submit", session=self._session_id, called=called, run=run_id, key=key)
        return run_id

    def _work(self) -> dict[str, Any]:
        match self._dice.random():
            case chance if chance < 0.75:
                breath_s = self._dice.choice((0.02, 0.1, 0.2))
                return {"do": "chat", "events": self._dice.randint(20, 240), "breath_s": breath_s}
            case chance if chance < 0.88:
                return {"do": "work", "seconds": self._dice.uniform(0.2, 4.0)}
            case chance if chance < 0.92:
                return {"do": "flaky"}
            case chance if chance < 0.95:
                return {"do": "fail"}
            case chance if chance < 0.98:
                return {"do": "command", "line": "echo begun; sleep 0.3; echo done"}
            case _:
                return {"do": "huge", "bytes": self._dice.choice((1000, 200_000, 300_000))}

    def _await(self, server: SessionServer, run_id: str) -> None:
        result = self._client.tried(lambda: self._result(server, run_id))
        if result is None:
            self._journal.say("error", error="await gave up")
            return
        self._target = max(self._target, result.last_sequence)
        self._journal.say("await", run=run_id, status=result.status, output=result.output)

    @staticmethod
    def _result(server: SessionServer, run_id: str) -> RunResult | None:
        try:
            return server.await_run(run_id, timeout=PATIENCE_S)
        except RunEnded as ended:
            return ended.result
        except AwaitTimeout:
            return None

    def _stop(self, server: SessionServer, run_id: str) -> None:
        verb = server.cancel_run if self._dice.random() < 0.5 else server.interrupt_run
        receipt = self._client.tried(lambda: verb(run_id))
        if receipt is not None:
            self._journal.say("stop", run=run_id, state=receipt.state, stop=receipt.kind)


class Follower(threading.Thread):
    """A subscriber of one session."""

    def __init__(self, client: Client, server: SessionServer, dice: random.Random) -> None:
        super().__init__(name="follower", daemon=True)
        self._client = client
        self._server = server
        self._dice = dice
        self._temper = dice.choice(("steady", "steady", "slow", "leaping"))
        self._target: int | None = None
        self._last = 0
        self._lost_patience = threading.Event()

    def run(self) -> None:
        """Follow, reconnecting as its temper is, until the target was received."""
        try:
            cursor = 0
            while not self._is_done():
                cursor = self._follow(cursor)
                if self._temper == "leaping" and self._target is None:
                    cursor = self._dice.randint(max(0, cursor - 400), cursor)
        except Exception as error:  # noqa: BLE001 - as above
            self._client.journal.say("strange", text=f"a subscriber: {type(error).__name__}: {error}")

    def end(self, target: int) -> None:
        """Wait until it has received this sequence; say so, or that it is stuck."""
        self._target = target
        seen = -1
        while self.is_alive() and seen != self._last:
            # who is slow, and began again from the first event, is not stuck
            seen = self._last
            self.join(PATIENCE_S / 3)
        if self.is_alive():
            self._lost_patience.set()
            text = (
                f"the {self._temper} subscriber of {self._server.session_id} is at {self._last} of {target}"
            )
            self._client.journal.say("strange", text=text)
        else:
            self._client.journal.say("reached", session=self._server.session_id, target=target)

    def _is_done(self) -> bool:
        return self._lost_patience.is_set() or (self._target is not None and self._last >= self._target)

    def _follow(self, after: int) -> int:
        """Follow on one connection; return the cursor where it ended."""
        name = uuid4().hex[:12]
        journal = self._client.journal
        journal.say("follow", subscriber=name, session=self._server.session_id, after=after)
        until = after + self._dice.randint(30, 400) if self._temper == "leaping" else None
        seen: list[tuple[int, str]] = []
        cursor = after
        try:
            subscription = self._client.tried(lambda: self._server.subscribe(from_sequence=after + 1))
            if subscription is None:
                return after
            with contextlib.closing(subscription):
                while (until is None or cursor < until) and not self._is_done():
                    event = self._client.tried(lambda: subscription.get(timeout=0.5))
                    if event is None:
                        continue
                    seen.append((event.sequence, event.event_id))
                    cursor = event.sequence
                    self._last = max(self._last, cursor)
                    if len(seen) >= CHUNK:
                        journal.say("seen", subscriber=name, events=seen)
                        seen = []
                    if self._temper == "slow" and not self._client.is_over:
                        time.sleep(0.002)
        finally:
            journal.say("seen", subscriber=name, events=seen)
        return cursor


def main() -> None:
    """Be one client."""
    name, folder, seed = sys.argv[1:]
    name = f"{name}.{os.environ.get('CHAOS_START', '0')}"
    with AgentSessions.from_env() as asm:
        Client(asm, name, Path(folder), int(seed)).run()


if __name__ == "__main__":
    main()
