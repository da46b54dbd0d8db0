"""`Wire`: some commands to the coordination server in one packet, over connections that are kept.

redis-py's pipeline costs twice the time of the processor: it looks each connection over before every use.  Here
a connection that was lost meanwhile is noticed by its use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis


class Wire:
    """Asks the server of a client; safe to share by threads.

    Args:
        client: says how to connect; nothing of it is used up.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool
        self._free: deque[Any] = deque()

    def ask(self, *commands: Sequence[Any]) -> list[Any]:
        """Return the answers, an error of the server in the place of its answer.  One round trip.

        Guarantee: commands may be done twice, when the connection is cut before all answers are here.

        Raises:
            redis.ConnectionError, redis.TimeoutError: twice in a row.
        """
        try:
            return self._ask(self._taken(), commands)
        except (redis.ConnectionError, redis.TimeoutError):
            # those that wait for their next use were lost by the same thing
            self.close()
            return self._ask(self._new(), commands)

    def close(self) -> None:
        """Close what is not in use; a later use connects anew."""
        with suppress(IndexError):
            while True:
                self._free.pop().disconnect()

    def _taken(self) -> Any:
        try:
            return self._free.pop()
        except IndexError:
            return self._new()

    def _new(self) -> Any:
        return self._pool.connection_class(**self._pool.connection_kwargs)

    def _ask(self, connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            answers = [_answer(connection) for _ in commands]
        except BaseException:
            # an answer that was not read would be taken for that to the next question
            connection.disconnect()
            raise
        self._free.append(connection)
        return answers


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as refused:
        return refused
