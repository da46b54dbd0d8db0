"""Guards and repairs that can be taken away, each with the smallest configuration in which it is missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from asm_celery.queue.scripts import source, verbs
from tests.model.spec import Spec

LINE: Final = Spec(sessions=((1, 2),), late=1)
PAIR: Final = Spec(sessions=((1, 1), (1, 1)), limit=1, late=0)


class Mutant(NamedTuple):
    """A configuration without one guard, and how the search says so."""

    spec: Spec
    caught: str


def _without(spec: Spec, guard: str, caught: str, /, **chances: int) -> Mutant:
    return Mutant(replace(spec, chances=chances, without=frozenset({guard})), caught)


def _edited(spec: Spec, old: str, new: str, caught: str, /, **chances: int) -> Mutant:
    return Mutant(replace(spec, chances=chances, edit=_replacing(old, new)), caught)


def _replacing(old: str, new: str) -> Callable[[str, str], str]:
    # a mutant that changes nothing would be found innocent for the wrong reason
    assert any(old in source(verb) for verb in verbs()), f"no script says {old!r} any more"
    return lambda verb, text: text.replace(old, new)


def mutants() -> dict[str, Mutant]:
    """Return all mutants by what they lack."""
    again = replace(LINE, max_attempts=2)
    return {
        # SQL
        "claim: order": _without(LINE, "claim.order", "a2 starts while before it are open"),
        "claim: pending": _without(LINE, "claim.pending", "although it is done", withdraw=1),
        "claim: number": _without(PAIR, "claim.number", "the limit is 1", suspect=1),
        "claim: session state": _without(LINE, "claim.state", "starts in a paused session", pause=1),
        "submit: session state": _without(
            LINE, "submit.state", "is accepted although its session is", drain=1
        ),
        "requeue: no stop was asked for": _without(
            again, "requeue.stop", "although it was asked to stop", cancel=1, fail=1
        ),
        "lose: no stop was asked for": _without(
            again, "requeue.stop", "although it was asked to stop", cancel=1, crash=1
        ),
        "finish: number": _without(again, "finish.number", "ends a newer attempt", suspect=1, crash=1),
        "lose: only the silent executor's": _without(
            replace(PAIR, max_attempts=2), "lose.executor", "was alive", suspect=1, crash=1
        ),
        "take over: void the claim": _without(PAIR, "void", "the limit is 1", suspect=1),
        "restore: void the claims": _without(PAIR, "restore.void", "the limit is 1", wipe=1),
        # the moves
        "give back": _without(LINE, "give_back", "no way home"),
        "ring": _without(PAIR, "ring", "no way home", lose=1),
        "take over": _without(PAIR, "take_over", "no way home", crash=1),
        "compare": _without(LINE, "compare", "no way home", crash=1),
        "compare: session states": _without(
            Spec(sessions=((1, 1),)), "compare.state", "no way home", pause=1
        ),
        # the scripts
        "begin: claim number": _edited(
            LINE, "if lease[2] ~= ARGV[2] then return { 'spare' } end", "", "disagrees with itself", suspect=1
        ),
        "promote: limiter": _edited(
            PAIR,
            "if active_runs() >= max_runs or held then break end",
            "if held then break end",
            "the limit is 1",
        ),
        "promote: sessions": _edited(
            replace(PAIR, limit=None, max_sessions=1),
            "active_sessions() < max_sessions",
            "true",
            "more than 1 sessions",
        ),
        "promote: capacity": _edited(
            Spec(sessions=((3, 3),), executors=1, late=0),
            "load < slots and 1 or load < slots + spare and 2 or 3",
            "1",
            "more than the workers of q can take",
        ),
        "promote: gate": _edited(
            PAIR, "return named and named == server_id()", "return true", "the limit is 1", wipe=1
        ),
        "promote: back-off": _edited(
            again,
            "redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, BOUND)",
            "{}",
            "no way home",
            fail=1,
        ),
        "enqueue: promote": _edited(
            LINE, "return reply('recorded')", "return { 'recorded' }", "waiting in line"
        ),
        "finish: lease": _edited(
            LINE,
            "  drop_lease(run)\n  redis.call('ZREM', open_key",
            "  redis.call('ZREM', open_key",
            "disagrees with itself",
        ),
        "finish: place": _edited(
            LINE, "if session then place(session, false) end", "", "disagrees with itself"
        ),
        "give back: lease": _edited(
            LINE, "word = 'returned'\n  drop_lease(run)", "word = 'returned'", "no way home"
        ),
        "give back: compare": _edited(
            PAIR,
            "and lease[2] == ARGV[2] and lease[3] == ARGV[3] then",
            "then",
            "the limit is 1",
            suspect=1,
        ),
        "conform: place": _edited(
            LINE, "records_running) end\n  place(session, false)", "records_running) end", "stands in no line"
        ),
        "conform: what is newer stays": _edited(
            replace(PAIR, late=1),
            "elseif state == 'waiting' or tonumber(known[3]) <= claims then",
            "else",
            "the limit is 1",
        ),
        "conform: running is leased": _edited(
            PAIR,
            "lease_begun(run, session, queue, claims, executor, '')",
            "",
            "the limit is 1",
            wipe=1,
        ),
        "take over: compare": _edited(
            PAIR,
            "if lease[1] ~= 'begun' or lease[2] ~= ARGV[2] or lease[3] ~= ARGV[3] or lease[4] ~= ARGV[4] then",
            "if false then",
            "disagrees with itself",
            suspect=1,
        ),
        "take over: the slot stays": _edited(
            PAIR,
            "return { 'taken' }",
            "redis.call('ZREM', root .. 'leases', ARGV[1]) return { 'taken' }",
            "disagrees with itself",
            crash=1,
        ),
    }
