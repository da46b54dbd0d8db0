"""A Flower whose buttons can be pressed."""

from __future__ import annotations

import json
import urllib.request
from typing import Any
from urllib.parse import urlencode

from tests.acceptance.test_flower import Flower


class PressedFlower(Flower):
    """A Flower, by its HTTP API; what its pages do is to call the same addresses."""

    @property
    def url(self) -> str:
        """Where its pages are."""
        return self._url

    def press(self, task_id: str, *, terminate: bool) -> Any:
        """Press Revoke or Terminate on a task's page."""
        data = urlencode({"terminate": "true" if terminate else "false"}).encode()
        request = urllib.request.Request(f"{self._url}/api/task/revoke/{task_id}", data=data, method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
