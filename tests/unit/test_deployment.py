"""The deployment files are well formed and name only what exists.  No container engine is asked."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from typing import Any, cast

import flower.options
import pytest
from celery.bin.celery import celery
from tornado.options import options

from asm_celery.cli.commands import asm
from asm_celery.config import Config
from tests.named_tests import ROOT

# Flower adds itself to Celery's commands by an entry point.
CELERY_COMMANDS = {*celery.commands, "flower"}
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "ops" / "Dockerfile").read_text()


class Yaml:
    """Reads the part of YAML that the file uses: nested maps, inline lists, quoted text, numbers, anchors.

    Strings are quoted in it, so that a value is JSON and means one thing only.
    """

    def __init__(self, text: str) -> None:
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        self._lines = [(len(line) - len(line.lstrip()), line.strip()) for line in lines]
        self._anchors: dict[str, dict[str, Any]] = {}

    def read(self) -> dict[str, Any]:
        """Return the document; raises AssertionError for what is not of that part."""
        found = self._map(0)
        assert not self._lines, f"indentation: {self._lines[0]}"
        return found

    def _map(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self._lines and self._lines[0][0] == depth:
            _, line = self._lines.pop(0)
            match = re.fullmatch(r"([\w.<-]+):(?: (.*))?", line)
            assert match, f"not `key: value`: {line}"
            key, value = match[1], match[2] or ""
            if key == "<<":
                found |= self._anchors[value.removeprefix("*")]
                continue
            assert key not in found or key in self._merged(), f"twice: {line}"
            found[key] = self._value(value, depth)
            if value.startswith("&"):
                self._anchors[value[1:]] = found[key]
        return found

    def _value(self, value: str, depth: int) -> Any:
        if value == "" or value.startswith("&"):
            assert self._lines, "nothing follows"
            assert self._lines[0][0] > depth, self._lines[0]
            return self._map(self._lines[0][0])
        return (
            value if re.fullmatch(r"[a-z-]+", value) and value not in ("true", "false") else json.loads(value)
        )

    def _merged(self) -> set[str]:
        return {key for anchor in self._anchors.values() for key in anchor}


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """The services of docker-compose.yml."""
    return cast(dict[str, dict[str, Any]], Yaml(COMPOSE).read()["services"])


def test_the_services_are_those_of_the_readme(services: dict[str, Any]) -> None:
    """And each is told there."""
    told = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "ops" / "README.md").read_text(), re.MULTILINE))

    assert {"valkey", "postgres", "migrate", "worker", "flower"} == set(services) == told


def test_every_service_is_confined(services: dict[str, Any]) -> None:
    """An ordinary user, no capabilities, a pinned image, ports on the loopback only."""
    for name, service in services.items():
        assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", service["user"]), name
        assert ["ALL"] == service["cap_drop"]
        assert ["no-new-privileges:true"] == service["security_opt"]
        assert re.fullmatch(r"[\w/.-]+:\d[\w.-]*", service["image"]), service["image"]
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert service.get("read_only") or name == "postgres"


def test_every_service_that_stays_is_asked_how_it_is(services: dict[str, Any]) -> None:
    """And who depends on another waits for its health, or for its end."""
    for name, service in services.items():
        assert ("healthcheck" in service) == (name != "migrate")
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other == "migrate" else "service_healthy"
            assert {"condition": expected} == how
            assert other in services


def test_every_command_exists(services: dict[str, Any]) -> None:
    """Of `asm`, of Celery, and in the health checks."""
    for name, service in services.items():
        if not service["image"].startswith("asm-celery"):
            continue
        command = service["command"]
        if service.get("entrypoint") == ["celery"]:
            assert command[2] in CELERY_COMMANDS
            assert ["-A", "workers.app"] == command[:2]
        else:
            assert command[0] in asm.commands, name
            options_of = {one for parameter in asm.commands[command[0]].params for one in parameter.opts}
            ours = command[1 : command.index("--")] if "--" in command else command[1:]
            assert {word for word in ours if word.startswith("-")} <= options_of
        check = service.get("healthcheck", {}).get("test", ["CMD", "asm", "doctor"])
        assert check[1] == "python" or (check[1] == "asm" and check[2] in asm.commands)


def test_a_worker_may_finish_before_it_is_killed(services: dict[str, Any]) -> None:
    """Docker waits longer than the worker does."""
    minutes = int(services["worker"]["stop_grace_period"].removesuffix("m"))

    assert 60 * minutes > float(services["worker"]["environment"]["ASM_SHUTDOWN_GRACE_S"])


def test_every_variable_is_a_setting(services: dict[str, Any]) -> None:
    """A misspelt one would be ignored."""
    known = {f"ASM_{name.upper()}" for name in Config.model_fields}
    used = {name for service in services.values() for name in service.get("environment", {})}
    documents = [ROOT / "ops" / "README.md", ROOT / "README.md", ROOT / "workers" / "README.md"]
    named = {name for path in documents for name in re.findall(r"\bASM_[A-Z_]+\b", path.read_text())}

    assert {name for name in used | named if name.startswith("ASM_")} <= known


def test_the_image_is_built_from_what_is_here(services: dict[str, Any]) -> None:
    """Two stages, a hashed lock, an ordinary user, one entry point; and nothing that is copied is ignored."""
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
    ]

    assert 2 == len(re.findall(r"^FROM python:3\.\d+-slim-\w+", DOCKERFILE, re.MULTILINE))
    assert "--require-hashes" in DOCKERFILE
    assert 'ENTRYPOINT ["asm"]' in DOCKERFILE
    for path in copied:
        assert (ROOT / path).exists(), path
        assert path in allowed
    [user] = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert {user} == {
        service["user"] for service in services.values() if service["image"].startswith("asm-celery")
    }
    assert "ops/Dockerfile" == services["worker"]["build"]["dockerfile"]


def test_the_image_has_the_versions_of_the_tests() -> None:
    """Each package of the runtime's lock is in the tests' lock, in the same version, with hashes."""
    runtime, development = dict(_locked("runtime")), dict(_locked("dev"))

    assert {"celery", "redis", "sqlalchemy", "psycopg", "flower", "hatchling"} <= runtime.keys()
    for name, version in runtime.items():
        assert version == development[name]
    text = (ROOT / "requirements" / "runtime.lock").read_text()
    assert len(runtime) <= text.count("--hash=sha256:")
    assert "://" not in text


def _locked(name: str) -> Iterator[tuple[str, str]]:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    yield from re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)


def test_flowers_settings_are_flowers() -> None:
    """Each name is an option of the Flower in the lock."""
    assert flower.options.default_options
    settings = runpy.run_path(str(ROOT / "ops" / "flowerconfig.py"))

    names = {name for name in settings if not name.startswith("_")}
    assert {"port", "address"} < names
    assert names <= {name.replace("-", "_") for name in options}
    assert "127.0.0.1" == settings["address"]


@pytest.mark.parametrize("path", ["ops/README.md", "README.md", "docs/explanation/guarantees.md"])
def test_every_command_a_document_names_exists(path: str) -> None:
    """`asm WORD` is one of its commands."""
    named = re.findall(r"(?:^|[`\s])asm ([a-z]+)\b(?! =)", (ROOT / path).read_text(), re.MULTILINE)

    assert set(named) <= {*asm.commands}
