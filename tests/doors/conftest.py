"""What the tests of the Celery door share with the acceptance tests."""

from __future__ import annotations

from tests.acceptance.conftest import asm, gate, ledger, worker

__all__ = ["asm", "gate", "ledger", "worker"]
