"""Agents: any callable ``(ctx, input)``, and the registry that knows them by name.

Nothing here runs an agent; `worker.executor` does.  Names are looked up in the registry only, never
imported from data.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from asm_celery.checks import check_count, check_seconds
from asm_celery.errors import AgentNotFound, AlreadyExists, ValidationError
from asm_celery.showing import shown

Agent = Callable[[Any, Any], Any]
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")


def check_agent_name(name: object) -> str:
    """Return a well-formed agent name; raises ValidationError with the rule."""
    if isinstance(name, str) and _NAME.match(name):
        return name
    raise ValidationError(
        f"{shown(name)} cannot be an agent's name: use 1 to 64 of A-Z a-z 0-9 _ . - , "
        "beginning with a letter or _",
        details={"field": "agent", "value": shown(name, 200)},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """An agent and how its runs are treated unless a submit says otherwise.

    Attributes:
        queue: the Celery queue of its runs; None for the configured default.
        stop_grace_s: seconds a stopped run has to end by itself; None for the configured default.
        run_timeout: seconds a run may execute; None for no limit.
        max_attempts: how often a failed or lost run is entered; None for the configured default.
        resumable: True if a run may be handed back and entered again without harm at a deploy.
        capabilities: optional words such as ``pause`` that control operations ask for.
    """

    name: str
    call: Agent
    queue: str | None = None
    stop_grace_s: float | None = None
    run_timeout: float | None = None
    max_attempts: int | None = None
    resumable: bool = False
    capabilities: frozenset[str] = frozenset()


class AgentRegistry:
    """The agents this process can execute, by name."""

    def __init__(self) -> None:
        self._specs: dict[str, AgentSpec] = {}

    def __bool__(self) -> bool:
        return bool(self._specs)

    def __iter__(self) -> Any:
        return iter(self._specs.values())

    def register(
        self,
        name: str,
        call: Agent,
        *,
        queue: str | None = None,
        stop_grace_s: float | None = None,
        run_timeout: float | None = None,
        max_attempts: int | None = None,
        resumable: bool = False,
        capabilities: Collection[str] = (),
    ) -> AgentSpec:
        """Add an agent.

        Raises:
            ValidationError: the name, the callable or a setting breaks a rule.
            AlreadyExists: another callable has the name (the same one again is fine).
        """
        check_agent_name(name)
        if not callable(call) or not _takes_two(call):
            raise ValidationError(
                f"agent {name!r} must be callable as (ctx, input), got {shown(call)}",
                details={"field": "agent", "value": name},
            )
        spec = AgentSpec(
            name=name,
            call=call,
            queue=None if queue is None else check_agent_name(queue),
            stop_grace_s=check_seconds(stop_grace_s, what="stop_grace_s"),
            run_timeout=check_seconds(run_timeout, what="run_timeout", minimum=0.001),
            max_attempts=None
            if max_attempts is None
            else check_count(max_attempts, what="max_attempts", minimum=1, maximum=1000),
            resumable=bool(resumable),
            capabilities=_words(name, capabilities),
        )
        known = self._specs.get(name)
        if known is not None and not _same_code(known.call, call):
            raise AlreadyExists(
                f"agent {name!r} is registered already, for {shown(known.call)}: choose another name",
                details={"agent": name},
            )
        self._specs[name] = spec
        return spec

    def get(self, name: str) -> AgentSpec | None:
        """Return the agent of this name, or None."""
        return self._specs.get(name)

    def check(self, name: object) -> str:
        """Return a name this process accepts at its door.

        A process that registered agents refuses the others; one that has none accepts any
        well-formed name, because its workers are elsewhere.

        Raises:
            ValidationError: malformed.
            AgentNotFound: this process registered agents, and not this one.
        """
        checked = check_agent_name(name)
        if self._specs and checked not in self._specs:
            near = difflib.get_close_matches(checked, self._specs, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(self._specs))}"
            raise AgentNotFound(
                f"this process registered no agent {checked!r}: {hint}",
                details={"agent": checked, "known": sorted(self._specs)},
            )
        return checked


def _words(name: str, capabilities: Collection[str]) -> frozenset[str]:
    # a string is a collection of strings too, and "pause" would be five capabilities
    is_legal = isinstance(capabilities, Collection) and not isinstance(capabilities, str)
    if not is_legal or not all(isinstance(word, str) and _NAME.match(word) for word in capabilities):
        raise ValidationError(
            f"capabilities={shown(capabilities)} of agent {name!r} must be a collection of words, such as {{'pause'}}",
            details={"field": "capabilities", "agent": name},
        )
    return frozenset(capabilities)


def _takes_two(call: Any) -> bool:
    try:
        inspect.signature(call).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _same_code(one: Any, other: Any) -> bool:
    # a module imported twice (as __main__ and by name) registers equal functions of two identities
    return one is other or (
        getattr(one, "__qualname__", one) == getattr(other, "__qualname__", other)
        and getattr(getattr(one, "__code__", None), "co_code", 0)
        == getattr(getattr(other, "__code__", None), "co_code", 1)
    )
