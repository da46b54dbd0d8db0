"""Submits: durable, ordered and dispatched, beside a task sent by plain Celery."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.figures import Figures, Size, standing_still, timed
from benchmarks.plain_module import noop
from benchmarks.stage import Stage

CLIENTS = 4


def submit(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure one client, and four processes at once, while the worker stands still."""
    main, ours, plain = stage.main, stage.ours, stage.plain
    count, share = size.submits, size.submits // CLIENTS
    servers = [main.asm.start_session("noop", max_queued_runs=10_000) for _ in range(size.sessions)]
    sessions = [server.session_id for server in servers]
    open_ones = ExitStack()
    others = [open_ones.enter_context(main.elsewhere()) for _ in range(CLIENTS)]

    def together(verb: str, **arguments: object) -> float:
        """Return how long all of them take."""
        began = time.monotonic()
        for other in others:
            other.begin(verb, count=share, **arguments)
        for other in others:
            other.answer()
        return time.monotonic() - began

    def of_ours() -> tuple[float, float, float]:
        with standing_still(ours, main.config.database_url):
            used = time.process_time()
            one_s = timed(lambda: [servers[n % len(servers)].submit_run("s") for n in range(count)])
            used = time.process_time() - used
            four_s = together("submit", sessions=sessions)
        main.stamps.take(count + CLIENTS * share)
        return one_s, used, four_s

    def of_plain() -> tuple[float, float, float]:
        with standing_still(plain):
            used = time.process_time()
            one_s = timed(lambda: [noop.delay("p") for _ in range(count)])
            used = time.process_time() - used
            four_s = together("apply")
        main.stamps.take(count + CLIENTS * share)
        return one_s, used, four_s

    with open_ones:
        # connections are open and scripts loaded afterwards
        of_ours()
        of_plain()
        while True:
            one_s, used, four_s = of_ours()
            plain_one_s, plain_used, plain_four_s = of_plain()
            yield {
                "submit, 1 client: ours, /s": count / one_s,
                "submit, 1 client: plain Celery, /s": count / plain_one_s,
                "submit, 1 client: ratio": plain_one_s / one_s,
                "submit, 1 client: ours, CPU µs": used / count * 1e6,
                "submit, 1 client: plain Celery, CPU µs": plain_used / count * 1e6,
                "submit, 4 clients: ours, /s": CLIENTS * share / four_s,
                "submit, 4 clients: plain Celery, /s": CLIENTS * share / plain_four_s,
                "submit, 4 clients: ratio": plain_four_s / four_s,
            }
