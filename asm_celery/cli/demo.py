"""``asm demo``: find the demo, which is part of a checkout and not of the wheel."""

from __future__ import annotations

from importlib import import_module

from asm_celery.cli.call import Call
from asm_celery.cli.exits import Exit
from asm_celery.errors import DependencyNotAvailable

_DEMO = "workers.demo"


def run(call: Call, *, keep: bool) -> Exit:
    """Run the demo and return what it came to.

    Raises:
        DependencyNotAvailable: this is no checkout, or no server binary was found.
    """
    call.talk("starting a server and a worker of their own")
    try:
        demo = import_module(_DEMO)
    except ModuleNotFoundError as cause:
        if cause.name not in (_DEMO, _DEMO.partition(".")[0]):
            raise
        raise DependencyNotAvailable(
            "the demo is part of a checkout of asm_celery and not of the installed package: clone it and run "
            "`./dev demo` there"
        ) from None
    return Exit(demo.run(call, keep=keep))
