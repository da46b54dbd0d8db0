from asm_celery import errors as errors
from asm_celery.config import Config as Config
from asm_celery.events.subscription import Subscription as Subscription
from asm_celery.limiter import ConcurrencyLimiter as ConcurrencyLimiter
from asm_celery.model import Event as Event
from asm_celery.model import Run as Run
from asm_celery.model import RunResult as RunResult
from asm_celery.model import Session as Session
from asm_celery.model import SessionStatusReport as SessionStatusReport
from asm_celery.operations import ControlOperations as ControlOperations
from asm_celery.server import SessionServer as SessionServer
from asm_celery.sessions import AgentSessions as AgentSessions

__version__: str
