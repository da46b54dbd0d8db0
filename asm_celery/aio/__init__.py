"""The same classes and verbs as coroutines and async iterators.

The sync face is the one implementation.  Short calls run it in a thread; waiting (await, subscribe, drain) is
native, so that ten thousand waiters cost no thread each.
"""

from asm_celery.aio.server import AsyncSessionServer
from asm_celery.aio.sessions import AsyncAgentSessions
from asm_celery.events.subscription_async import AsyncSubscription

__all__ = ["AsyncAgentSessions", "AsyncSessionServer", "AsyncSubscription"]
