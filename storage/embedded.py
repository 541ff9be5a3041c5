"""PostgreSQL and Redis of our own, for whoever has configured none.

Every user of a data directory holds a shared lock on it; the first one in starts the servers, the
last one out stops them. A killed user's lock goes with it, and the servers wait for the next user.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from storage.embedded_account import Account, EmbeddedError, account_for, make_data_dir
from storage.embedded_postgres import EmbeddedPostgres
from storage.embedded_process import lock_file, wait_until
from storage.embedded_redis import EmbeddedRedis

#: Starting may mean creating a cluster or recovering one.
_TURN_S: Final = 300.0
#: A Unix socket's path ends there on Linux (103 elsewhere), ".s.PGSQL.5432" and NUL are added to it.
_SOCKETS_BYTES: Final = 103 - len("/.s.PGSQL.5432")
#: Neither libpq nor a URL wants these quoted.
_PLAIN: Final = re.compile(r"[A-Za-z0-9/._-]+\Z")


class Services(msgspec.Struct, frozen=True):
    """Where to reach what ``embedded`` started; empty for what it was not asked for.

    ``dsn`` is in libpq's keywords, ``redis_url`` for ``redis.asyncio.from_url``.
    """

    dsn: str
    redis_url: str


@contextmanager
def embedded(data_dir: Path, *, postgres: bool = True, redis: bool = True) -> Iterator[Services]:
    """Use the servers of ``data_dir``, starting them if nobody else does so. Raises EmbeddedError."""
    try:
        data_dir = data_dir.resolve()
        account = account_for(data_dir)
        make_data_dir(data_dir, account)
        sockets = _sockets(data_dir, account)
        database = EmbeddedPostgres(data_dir, account, sockets)
        bus = EmbeddedRedis(data_dir, account, sockets)
        users = lock_file(data_dir / "users.lock", account)
        try:
            with _turn(data_dir, account):
                fcntl.flock(users, fcntl.LOCK_SH)
                if postgres:
                    database.start()
                if redis:
                    bus.start()
            yield Services(database.dsn if postgres else "", bus.url if redis else "")
        finally:
            with _turn(data_dir, account):
                if _last_out(users):
                    bus.stop()
                    database.stop()
            os.close(users)
    except OSError as error:
        raise EmbeddedError(f"{error.filename or data_dir}: {error.strerror}") from error


def _last_out(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _turn(data_dir: Path, account: Account) -> Iterator[None]:
    """Be the only one who starts or stops servers."""
    turn = lock_file(data_dir / "turn.lock", account)
    try:
        if not wait_until(lambda: _last_out(turn), _TURN_S):
            raise EmbeddedError(
                f"another process has been starting or stopping the servers of {data_dir} for long"
            )
        yield
    finally:
        os.close(turn)


def _sockets(data_dir: Path, account: Account) -> Path:
    """Find the directory of the sockets: in ``data_dir`` where the path is short and plain, else in /tmp."""
    place = data_dir / "sockets"
    if place.is_symlink():
        return account.directory(place.readlink())
    if len(os.fsencode(place)) <= _SOCKETS_BYTES and _PLAIN.match(str(place)):
        return account.directory(place)
    short = account.directory(Path(tempfile.mktemp(prefix="tidemark-", dir="/tmp")))
    place.symlink_to(short)
    return short
