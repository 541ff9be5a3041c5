"""Checks of Redis for ``run.py doctor``, before a server is started."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import redis

from engine.operate.rows import CheckResult
from storage.bus.nodes import Nodes

_ANSWER_S: Final = 3.0
#: The beginning of a finding about a Redis that answers but refuses the password.
LOGIN_REFUSED: Final = "Redis refuses the login"
_LOGIN_REMEDY: Final = "correct the name and the password in redis.url or in the file of redis.url_file"


def bus_findings(url: str, *, alone: bool) -> Iterator[CheckResult]:
    """Check the Redis that carries the bus. ``alone``: there is one server process, which works without."""
    took_ms: list[float] = []
    wrong: list[str] = []
    login = ""
    try:
        for node in Nodes(url).urls:
            try:
                took_ms.append(_answered_ms(node))
            except redis.AuthenticationError as error:
                login = f"{LOGIN_REFUSED} ({error})"
                wrong.insert(0, login)
            except redis.RedisError as error:
                wrong.append(str(error))
    except ValueError as error:
        wrong.append(str(error))
    if wrong:
        remedy = _LOGIN_REMEDY if login else "make sure that Redis runs and that redis.url points to it"
        if alone:
            remedy += "; a single process works without Redis, several do not"
        yield CheckResult("warning" if alone or took_ms else "fault", "redis", wrong[0], remedy)
    else:
        yield CheckResult("ok", "redis", f"answers in {max(took_ms):.1f} ms")


def _answered_ms(url: str) -> float:
    with redis.Redis.from_url(url, socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S) as client:
        client.ping()
        began_s = time.monotonic()
        client.ping()
        return (time.monotonic() - began_s) * 1000
