"""Names in Redis: one namespace root, which the scripts extend, and the two kinds of channel.

Everything of a namespace shares one hash tag, so that a script may touch all of it.  The keys below the
root are built by ``queue/lua/includes/keys.lua`` and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from asm_celery.errors import ValidationError
from asm_celery.showing import shown

FORMAT_VERSION = 1
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of one namespace; raises ValidationError for a namespace that is not a plain word."""

    namespace: str

    def __post_init__(self) -> None:
        if not isinstance(self.namespace, str) or not _NAMESPACE.match(self.namespace):
            raise ValidationError(
                f"namespace {shown(self.namespace)} must be 1 to 64 of A-Z a-z 0-9 _ . - "
                "and begin with a letter or digit",
                details={"field": "namespace", "value": shown(self.namespace, 200)},
            )

    @property
    def root(self) -> str:
        """KEYS[1] of every script."""
        return f"asm:{{{self.namespace}}}:"

    def events(self, session_id: str) -> str:
        """The channel on which a session's committed events are announced."""
        return f"{self.root}events:{session_id}"

    def control(self, executor: str) -> str:
        """The channel on which one process is told of stop requests."""
        return f"{self.root}control:{executor}"
