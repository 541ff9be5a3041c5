"""Checks of Redis for ``run.py doctor``, before a server is started."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import redis
from redis.exceptions import NoPermissionError

from engine.operate.rows import CheckResult
from storage.bus.nodes import Nodes
from storage.postgres.checkup.database import APART_REMEDY, WARN_APART_S

_ANSWER_S: Final = 3.0
#: The first with users that have rights of their own, which redis.url may name. Valkey began with 7.
_OLDEST: Final = 6
#: The beginning of a finding about a Redis that answers but refuses the password.
LOGIN_REFUSED: Final = "Redis refuses the login"
_LOGIN_REMEDY: Final = "correct the name and the password in redis.url or in the file of redis.url_file"


def bus_findings(url: str, *, alone: bool) -> Iterator[CheckResult]:
    """Check the Redis that carries the bus. ``alone``: there is one server process, which works without."""
    took_ms: list[float] = []
    wrong: list[str] = []
    versions: set[str] = set()
    login = ""
    try:
        for node in Nodes(url).urls:
            try:
                took, version = _asked(node)
                took_ms.append(took)
                versions.add(version)
            except redis.AuthenticationError as error:
                login = f"{LOGIN_REFUSED} ({error})"
                wrong.insert(0, login)
            except redis.RedisError as error:
                wrong.append(str(error))
    except ValueError as error:
        wrong.append(str(error))
    old = sorted(version for version in versions if is_too_old(version))
    if wrong:
        remedy = _LOGIN_REMEDY if login else "make sure that Redis runs and that redis.url points to it"
        if alone:
            remedy += "; a single process works without Redis, several do not"
        yield CheckResult("warning" if alone or took_ms else "fault", "redis", wrong[0], remedy)
    elif old:
        remedy = f"use Redis {_OLDEST} or later, or Valkey"
        yield CheckResult("warning" if alone else "fault", "redis", f"{old[0]} is too old", remedy)
    else:
        found = f"{', '.join(sorted(versions))} answers in {max(took_ms):.1f} ms"
        yield CheckResult("ok", "redis", found)


def redis_clock_findings(url: str) -> Iterator[CheckResult]:
    """Compare the clock of each Redis with this host's. One that does not answer is told of by others."""
    for node in Nodes(url).urls:
        try:
            with _client(node) as client:
                before_s = time.time()
                seconds, microseconds = client.time()
                middle_s = (before_s + time.time()) / 2
        except NoPermissionError:
            why = "the user of redis.url may not ask for the time of Redis"
            yield CheckResult("not checked", "clock of redis", why, "allow it +time, or compare by hand")
            continue
        except redis.RedisError:
            continue
        apart_s = seconds + microseconds / 1e6 - middle_s
        found = f"the clock of Redis is {apart_s * 1000:+.0f} ms from this host's"
        if abs(apart_s) > WARN_APART_S:
            yield CheckResult("warning", "clock of redis", found, APART_REMEDY)
        else:
            yield CheckResult("ok", "clock of redis", found)


def is_too_old(version: str) -> bool:
    """Whether a Redis of such a version, as ``Redis 5.0.7``, has no users with rights of their own."""
    number = version.rpartition(" ")[2].partition(".")[0]
    return number.isdecimal() and int(number) < _OLDEST


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S)


def _asked(url: str) -> tuple[float, str]:
    """Return how long an answer takes, in ms, and name and version."""
    with _client(url) as client:
        try:
            told = client.info("server")
            version = f"Valkey {told['valkey_version']}" if "valkey_version" in told else ""
            version = version or f"Redis {told['redis_version']}"
        except NoPermissionError:  # it needs no right but those of the bus
            version = "Redis"
            client.ping()
        began_s = time.monotonic()
        client.ping()
        return (time.monotonic() - began_s) * 1000, version
