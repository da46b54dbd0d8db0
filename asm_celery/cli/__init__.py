"""The command line, ``asm``: a door like any other, with nothing of its own but words and exit codes.

`commands` declares and is quick to import; what a command does is imported when it is called, so that
``asm --help`` needs neither Celery nor SQLAlchemy.
"""

from asm_celery.cli.program import main

__all__ = ["main"]
