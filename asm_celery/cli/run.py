"""``asm submit``, ``asm cancel`` and ``asm interrupt``: runs, from the command line."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from dataclasses import asdict, replace
from types import FrameType
from typing import Any, Final, Self

import click

from asm_celery.awaiting import await_timeout, cancel_timeout
from asm_celery.cli.call import Call
from asm_celery.cli.exits import Exit
from asm_celery.cli.reach import sessions_of
from asm_celery.cli.words import console
from asm_celery.errors import AwaitTimeout, DrainTimeout, RunEnded
from asm_celery.model import Run, RunResult, StopReceipt
from asm_celery.server import SessionServer
from asm_celery.states import STOPPED_STATUS, RunStatus, StopKind

# Until then a run that has not started is usual; after it, whoever waits wants to know why.
_USUAL_S: Final = 5.0


def submit(
    call: Call,
    *,
    agent: str,
    input: str,  # noqa: A002 - the word of the public face
    session_id: str | None,
    json_input: bool,
    wait: bool,
    timeout: float | None,
    **options: Any,
) -> Exit:
    """Submit a run, and with `wait` return when it has ended.

    Raises:
        RunEnded: it ended in another way than completed; the run was printed.
        AwaitTimeout: it goes on.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout says how long to --wait")
    value = _value(input, json_input)
    options["idempotency_key"] = options.pop("key")
    with sessions_of(call) as asm:
        server = asm.start_session(
            agent, session_id=session_id, if_exists="error" if session_id is None else "attach"
        )
        with _CtrlC() as pressed:
            run_id = server.submit_run(value, **options)
        if wait:
            return _wait(call, server, run_id, timeout, pressed.once)
        call.answer("run", server.get_run(run_id).to_map())
        call.text(run_id)
        call.talk(f"accepted: `asm tail {server.session_id} --run {run_id}` follows it")
    return Exit.COMPLETED


def stop(call: Call, *, kind: str, run_id: str, wait: bool, timeout: float | None) -> Exit:
    """Ask for a run to stop, and with `wait` return when it has ended.

    Raises:
        RunNotFound: there is no such run.
        CancelTimeout: it had not ended in time; the request stands.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout says how long to --wait")
    with sessions_of(call) as asm:
        request = {"cancel": asm.control.cancel, "interrupt": asm.control.interrupt}[kind]
        receipt = request(run_id, by="cli")
        if wait and not receipt.status.is_terminal:
            server = asm.attach(asm.get_run(run_id).session_id)
            receipt = replace(receipt, status=_end(server, run_id, timeout))
    call.answer("receipt", asdict(receipt))
    call.text(_told(receipt, StopKind(kind)))
    return Exit.COMPLETED


def _value(given: str, is_json: bool) -> Any:
    text = sys.stdin.read() if given == "-" else given
    if not is_json:
        return text
    try:
        return json.loads(text)
    except ValueError as cause:
        raise click.UsageError(f"INPUT is not JSON: {cause}") from None


class _CtrlC:
    """Notes a Ctrl-C instead of raising it: a run that is being submitted has no id yet to interrupt it by.

    Attributes:
        once: True if it was pressed; at the second time it raises.
    """

    def __init__(self) -> None:
        self.once = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.once:
            raise KeyboardInterrupt
        self.once = True


def _wait(call: Call, server: SessionServer, run_id: str, timeout: float | None, pressed: bool) -> Exit:
    deadline = None if timeout is None else time.monotonic() + timeout
    interrupted = pressed
    if pressed:
        _interrupt(call, server, run_id)
    while True:
        try:
            result = _result(call, server, run_id, deadline)
        except KeyboardInterrupt:
            if interrupted:
                call.talk(f"{run_id} is left to end by itself: `asm status {run_id}` tells how it did")
                raise
            interrupted = True
            _interrupt(call, server, run_id)
        except RunEnded:
            _show(call, server.get_run(run_id))
            raise
        except AwaitTimeout:
            _show(call, server.get_run(run_id))
            _say_why(call, server, run_id)
            # what was left of the time allowed is nobody's business
            raise await_timeout(run_id, timeout or 0.0) from None
        else:
            _show(call, server.get_run(result.run_id))
            return Exit.COMPLETED


def _interrupt(call: Call, server: SessionServer, run_id: str) -> None:
    call.talk("interrupting the run; Ctrl-C again leaves it to end by itself")
    server.interrupt_run(run_id)


def _result(call: Call, server: SessionServer, run_id: str, deadline: float | None) -> RunResult:
    """Await the run until the deadline; says once why it has not started, if it has not."""
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    with _spinner(call, run_id):
        if left is None or left > _USUAL_S:
            with contextlib.suppress(AwaitTimeout):
                return server.await_run(run_id, _USUAL_S)
            _say_why(call, server, run_id)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return server.await_run(run_id, left)


def _spinner(call: Call, run_id: str) -> contextlib.AbstractContextManager[Any]:
    if call.is_json or not sys.stderr.isatty():
        return contextlib.nullcontext()
    return console(stderr=True).status(f"waiting for {run_id} (Ctrl-C interrupts it)")


def _say_why(call: Call, server: SessionServer, run_id: str) -> None:
    if server.get_run(run_id).status is not RunStatus.PENDING:
        return
    try:
        server.drain(timeout=0)
    except DrainTimeout as waits:
        call.talk(f"{run_id} has not started: {waits.why}")


def _show(call: Call, run: Run) -> None:
    call.answer("run", run.to_map())
    if isinstance(run.output, str):
        call.text(run.output)
    elif run.output is not None:
        call.text(json.dumps(run.output, ensure_ascii=False))


def _end(server: SessionServer, run_id: str, timeout: float | None) -> RunStatus:
    try:
        return server.await_run(run_id, timeout).status
    except RunEnded as ended:
        status: RunStatus = ended.result.status
        return status
    except AwaitTimeout:
        run = server.get_run(run_id)
        if run.is_terminal:
            return run.status
        raise cancel_timeout(run, timeout or 0.0) from None


def _told(receipt: StopReceipt, kind: StopKind) -> str:
    if receipt.state == "already_terminal":
        return f"{receipt.run_id} had ended already: {receipt.status}"
    first = "" if receipt.kind in (None, kind) else f" (an earlier {receipt.kind} decides)"
    if receipt.status.is_terminal:
        return f"{receipt.run_id} {receipt.status}{first}"
    will = STOPPED_STATUS[receipt.kind or kind]
    return f"{receipt.run_id} was told to stop and will end {will}{first}"
