"""What a URL of a server must say before it is used: it can be read, and it does not go unguarded.

Whoever writes to Redis or the broker decides what runs next, and whoever reads SQL reads everything; so a
server on another machine must ask for a password.  No name is looked up here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qs, parse_qsl, quote, urlencode, urlsplit

# Brokers that anybody may use who reaches them, unless they ask for a password; others, such as a cloud's
# queue, know their callers in ways that no URL tells.
_OPEN_SCHEMES: Final = frozenset(
    {"redis", "rediss", "valkey", "valkeys", "sentinel", "amqp", "amqps", "pyamqp", "librabbitmq"}
)
# where libpq finds a password, a certificate or a whole service that the URL does not name
_LIBPQ: Final = ("PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSSLCERT")


def why_malformed(url: str) -> str | None:
    """Return why a URL cannot be read, without a word of it, for it may be its password; None if it can."""
    try:
        for one in url.split(";"):
            parts = urlsplit(one)
            _ = parts.port, parts.hostname
    except ValueError:
        return (
            "its host or port cannot be read: write / # ? @ : and spaces of a user or password as %2F %23 %3F "
            "%40 %3A %20"
        )
    return None


def unsafe_broker(url: str) -> str | None:
    """Return the host of a Redis or broker that is reached over a network without a password, else None."""
    for one in url.split(";"):
        parts = urlsplit(one)
        asked = parse_qs(parts.query)
        is_guarded = parts.password or asked.keys() & {"password", "ssl_certfile"}
        if parts.scheme in _OPEN_SCHEMES and not is_guarded and not _is_here(parts.hostname):
            return parts.hostname
    return None


def unsafe_database(url: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the host of a PostgreSQL that is reached over a network without a password, else None."""
    parts = urlsplit(url)
    if not parts.scheme.startswith("postgresql"):
        return None
    asked = parse_qs(parts.query)
    is_guarded = (
        parts.password
        or asked.keys() & {"password", "passfile", "service", "sslcert"}
        or any(environment.get(name) for name in _LIBPQ)
        or Path("~/.pgpass").expanduser().exists()
    )
    return None if is_guarded else next((host for host in _hosts(parts, asked, environment)), None)


def for_kombu(url: str) -> str:
    """Return a broker's URL with user, password and database where kombu looks for them.

    redis-py reads them from the query too; kombu fails with a TypeError at such a password.  Of several URLs
    each is written anew; a Unix socket becomes ``redis+socket://PATH?virtual_host=N``.
    """
    return ";".join(map(_one_for_kombu, url.split(";")))


def _one_for_kombu(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme not in ("redis", "rediss", "unix"):
        return url
    place, _, query = rest.partition("?")
    before, _, place = place.rpartition("@")
    asked = dict(parse_qsl(query))
    user, _, password = before.partition(":")
    # as redis-py has it: of two passwords the one before the host, of two databases the one of the query
    user = user or quote(asked.pop("username", ""), safe="")
    password = password or quote(asked.pop("password", ""), safe="")
    database = asked.pop("db", None)
    who = f"{user}:{password}@" if user or password else ""
    if scheme == "unix":
        return f"redis+socket://{who}{place}?virtual_host={database or 0}"
    if database is not None:
        place = f"{place.partition('/')[0]}/{database}"
    left = {name: value for name, value in asked.items() if name not in ("username", "password")}
    return f"{scheme}://{who}{place}" + (f"?{urlencode(left)}" if left else "")


def _hosts(parts: SplitResult, asked: Mapping[str, list[str]], environment: Mapping[str, str]) -> list[str]:
    named = asked.get("host") or [parts.hostname or environment.get("PGHOST", "")]
    # a host of the query may have its port behind it
    hosts = [host for one in named for host in one.split(",")]
    return [host for host in hosts if not _is_here(host if host.count(":") > 1 else host.partition(":")[0])]


def _is_here(host: str | None) -> bool:
    """Say whether a host is this machine: a socket's folder, localhost, an address of the loopback."""
    if not host or host.startswith(("/", "@")) or host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
