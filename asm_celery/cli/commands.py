"""The commands' words: names, options, help.  What they do is in the module named by `_deed`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

import click

from asm_celery import __version__
from asm_celery.cli.call import Call
from asm_celery.cli.exits import explained

_Function = TypeVar("_Function", bound=Callable[..., Any])

_EPILOG = f"""\b
Exit codes:
{explained()}

Settings come from the environment (ASM_REDIS_URL, ASM_DATABASE_URL, ...); `asm doctor` shows them.
With --json, stdout has one JSON object a line, and its "object" says what it is.
"""


def _deed(module: str) -> Any:
    # here and not at the top: --help must not wait for Celery and SQLAlchemy
    return import_module(f"asm_celery.cli.{module}")


def _set_json(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.find_object(Call).is_json = True  # type: ignore[union-attr]


_json = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_set_json,
    help="Answer with one JSON object a line.",
)
_call = click.make_pass_decorator(Call)
_seconds = click.FloatRange(min=0)
_yes = click.option("--yes", is_flag=True, help="Do it without asking.")


@click.group(
    epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--redis-url", metavar="URL", help="Instead of ASM_REDIS_URL.")
@click.option("--database-url", metavar="URL", help="Instead of ASM_DATABASE_URL.")
@click.option("--namespace", metavar="WORD", help="Instead of ASM_NAMESPACE.")
@_json
@click.version_option(__version__, prog_name="asm")
@_call
def asm(call: Call, /, **settings: str | None) -> None:
    """Sessions of runs on Celery, Redis and SQL."""
    call.settings = {name: value for name, value in settings.items() if value is not None}


def _command(function: _Function) -> click.Command:
    """Make a command of `asm`, with --json, of a function whose first parameter is the call."""
    return asm.command(name=function.__name__.rstrip("_").replace("_", "-"))(_json(_call(function)))


@_command
@click.option("--keep", is_flag=True, help="Keep the folder with the log.")
def demo(call: Call, keep: bool) -> Any:
    """Run sessions on real input in front of you, in a checkout."""
    return _deed("demo").run(call, keep=keep)


@_command
@click.option(
    "-A", "--app", metavar="MODULE", help="Your worker module; else workers.app, where there is one."
)
@click.option("--pool", type=click.Choice(["prefork", "threads"]), default="prefork", show_default=True)
@click.option("--concurrency", type=click.IntRange(min=1), help="Runs at once; else the number of CPUs.")
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker(call: Call, **options: Any) -> Any:
    """Become a Celery worker.

    What follows -- goes to `celery worker`.
    """
    return _deed("worker").run(call, **options)


@_command
@click.argument("agent")
@click.argument("input", metavar="INPUT")
@click.option(
    "--session", "session_id", metavar="ID", help="The session; made where there is none. Else a new one."
)
@click.option("--json-input", is_flag=True, help="INPUT is JSON and not text.")
@click.option("--wait/--no-wait", default=False, help="Wait for the end and print the output.")
@click.option("--timeout", type=_seconds, help="Seconds to wait; the run goes on after them.")
@click.option("--key", metavar="KEY", help="Idempotency key: the same key and input is the same run.")
@click.option(
    "--on-busy", type=click.Choice(["enqueue", "reject", "interrupt"]), default="enqueue", show_default=True
)
@click.option("--run-timeout", type=_seconds, help="Seconds the run may execute.")
@click.option("--queue-timeout", type=_seconds, help="Seconds the run may wait to start.")
@click.option("--max-attempts", type=click.IntRange(min=1), help="How often a failed or lost run is entered.")
def submit(call: Call, **options: Any) -> Any:
    """Submit a run of AGENT; INPUT is text, and - reads stdin.

    Prints the run's id, with --wait its output.  Ctrl-C while waiting interrupts the run; a second one leaves it
    to end by itself.
    """
    return _deed("run").submit(call, **options)


@_command
@click.argument("session_id", metavar="SESSION")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Begin behind this sequence.")
@click.option("--cursor", metavar="CURSOR", help="Begin behind this very event; refused if it is gone.")
@click.option("--run", "run_id", metavar="RUN", help="Only this run's events; ends with it.")
@click.option(
    "--type", "types", multiple=True, metavar="TYPE", help="Only events of this type; may be repeated."
)
@click.option("--follow/--no-follow", default=True, show_default=True, help="Go on as events come.")
def tail(call: Call, **options: Any) -> Any:
    """Print a session's events, from the log and then live."""
    return _deed("tail").run(call, **options)


@_command
@click.argument("name", metavar="[SESSION]", required=False)
@click.option("--after", metavar="SESSION", help="List sessions behind this one.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="List so many.")
def status(call: Call, **options: Any) -> Any:
    """Report a session or run, or all sessions and the limiter."""
    return _deed("session").status(call, **options)


def _stopping(function: _Function) -> click.Command:
    for option in (
        click.option("--timeout", type=_seconds, help="Seconds to wait; the request stands after them."),
        click.option("--wait", is_flag=True, help="Return when the run has ended."),
        click.argument("run_id", metavar="RUN"),
    ):
        function = option(function)
    return _command(function)


@_stopping
def cancel(call: Call, **options: Any) -> Any:
    """End a run as cancelled; one that waits never starts."""
    return _deed("run").stop(call, kind="cancel", **options)


@_stopping
def interrupt(call: Call, **options: Any) -> Any:
    """End a run as interrupted, keeping what it produced."""
    return _deed("run").stop(call, kind="interrupt", **options)


def _one_or_all(metavar: str) -> Callable[[_Function], _Function]:
    """Give a command one id or --all; its function gets the id, or None for all."""
    return lambda function: _chosen(function, metavar)


def _chosen(function: _Function, metavar: str) -> _Function:

    @wraps(function)
    def chosen(call: Call, session_id: str | None, is_all: bool, **options: Any) -> Any:
        if is_all == (session_id is not None):
            raise click.UsageError("name one, or say --all for the whole installation")
        return function(call, session_id=session_id, **options)

    every = click.option("--all", "is_all", is_flag=True, help="The whole installation.")
    return click.argument("session_id", metavar=metavar, required=False)(every(chosen))  # type: ignore[return-value]


@_command
@_one_or_all("[SESSION|RUN]")
def pause(call: Call, session_id: str | None) -> Any:
    """Let what runs finish and start nothing new, until resume.

    Of a RUN: let it rest where its agent can, if its agent declares that it can.

    With --all the installation is held: nothing starts in any session, and their own states stay.
    """
    return _deed("session").move(call, session_id, "pause")


@_command
@_one_or_all("[SESSION|RUN]")
def resume(call: Call, session_id: str | None) -> Any:
    """Start what waits again, and accept runs again.

    Of a RUN: let it go on.

    With --all the installation is released; sessions that were paused one by one stay so.
    """
    return _deed("session").move(call, session_id, "resume")


@_command
@click.argument("session_id", metavar="SESSION")
@_yes
def complete(call: Call, **options: Any) -> Any:
    """Close a session without open runs for good."""
    return _deed("session").complete(call, **options)


@_command
@click.argument("session_id", metavar="SESSION")
@_yes
def delete(call: Call, **options: Any) -> Any:
    """Remove a completed or drained session with its runs and events."""
    return _deed("session").delete(call, **options)


@_command
@_one_or_all("[SESSION]")
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(0, 36_500),
    metavar="DAYS",
    help="Only events older than this.",
)
@click.option("--keep", type=click.IntRange(min=0), default=0, help="Leave so many events of each session.")
@_yes
def prune(call: Call, **options: Any) -> Any:
    """Remove the oldest events of a session, or of all with --all.

    Runs and their results stay.  Who follows from a removed place is told.
    """
    return _deed("session").prune(call, **options)


@_command
@_one_or_all("[SESSION]")
@click.option("--timeout", type=_seconds, help="Seconds to wait; work goes on after them.")
@click.option(
    "--no-accept", is_flag=True, help="Accept no new runs, until resume or complete; of one session only."
)
def drain(call: Call, **options: Any) -> Any:
    """Return when nothing of a session runs or waits; with --all, nothing of any session."""
    return _deed("session").drain(call, **options)


@_command
def migrate(call: Call) -> Any:
    """Bring the database to the schema of this release."""
    return _deed("migration").run(call)


@_command
@click.option("--fix", is_flag=True, help="Make Redis say what SQL says, wherever it does not.")
@_yes
def doctor(call: Call, **options: Any) -> Any:
    """Check settings, database, Redis and workers, and whether SQL and Redis agree."""
    return _deed("doctor").run(call, **options)
