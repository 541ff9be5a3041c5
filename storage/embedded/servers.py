"""Embedded PostgreSQL and Redis, for a deployment that configures none.

Every process that uses a data directory holds a shared lock on it. The first one starts the servers, the last
one stops them. If all are killed, the servers go on, and the next process finds them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from storage.embedded.account import Account, EmbeddedError, account_for, make_data_dir
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.process import lock_file, locked, wait_until
from storage.embedded.redis import EmbeddedRedis

__all__ = [
    "NAME_IT",
    "EmbeddedError",
    "NotMadeError",
    "Servers",
    "Services",
    "embedded",
    "embedded_redis_url",
    "servers",
]

#: The remedy if the server was set up elsewhere, or not yet.
NAME_IT: Final = (
    "name the server's settings (--config FILE or TIDEMARK_CONFIG) or its --data-dir DIR, or start"
    " `run.py serve`, which makes one"
)
#: A start may have to recover a large database.
_START_LOCK_S: Final = 300.0
#: A Unix socket's path may have 107 bytes on Linux and 103 elsewhere.
_SOCKETS_BYTES: Final = 103 - len("/.s.PGSQL.5432")
_SHORT: Final = Path("/tmp")  # noqa: S108
#: Characters that need no quotes for libpq, in lists of PostgreSQL and in URLs.
_PLAIN: Final = re.compile(r"[A-Za-z0-9/._-]+\Z")


class Services(msgspec.Struct, frozen=True):
    """Where PostgreSQL and Redis are; empty for one that ``embedded`` was not asked for.

    ``dsn`` is in libpq's keywords, ``redis_url`` for ``redis.asyncio.from_url``. ``owner_dsn`` and
    ``jobs_dsn`` are for the roles that own the tables, and that work over all tenants; empty is ``dsn``.
    """

    dsn: str
    redis_url: str
    owner_dsn: str = ""
    jobs_dsn: str = ""

    @property
    def owner(self) -> str:
        """The DSN of the role that owns the tables."""
        return self.owner_dsn or self.dsn

    @property
    def jobs(self) -> str:
        """The DSN of the role that works over all tenants."""
        return self.jobs_dsn or self.dsn


class Servers(NamedTuple):
    """The two servers of one data directory, running or not."""

    postgres: EmbeddedPostgres
    redis: EmbeddedRedis


class NotMadeError(EmbeddedError):
    """There is no embedded server to use, and none is made: ``found`` and ``remedy`` say so apart."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}: {remedy}")
        self.found = found
        self.remedy = remedy


@contextmanager
def embedded(
    data_dir: Path, *, postgres: bool = True, redis: bool = True, make: bool = True
) -> Iterator[Services]:
    """Use the servers of ``data_dir`` until the block is left.

    A process forked inside the block counts as the same user.

    Args:
        data_dir: Where they keep their files.
        postgres: Whether PostgreSQL is wanted.
        redis: Whether Redis is wanted.
        make: Whether the directory and the servers' files are made where they are missing.

    Raises:
        NotMadeError: There is none, and none is to be made.
        EmbeddedError: The servers cannot be started.
    """
    with ExitStack() as stack:
        with _readable_errors(data_dir):
            home = data_dir.resolve()
            if not make:
                _refuse_missing(home, postgres=postgres)
            account = account_for(home)
            make_data_dir(home, account)
            users = lock_file(home / "users.lock", account)
            stack.callback(os.close, users)
            with _start_lock(home, account):
                fcntl.flock(users, fcntl.LOCK_SH)
                stack.callback(_leave, home, account, users)
                running = servers(home)
                if postgres:
                    running.postgres.start()
                if redis:
                    running.redis.start()
        own = running.postgres
        dsns = (own.serving_dsn, own.dsn, own.jobs_dsn) if postgres else ("", "", "")
        yield Services(dsns[0], running.redis.url if redis else "", *dsns[1:])


def _refuse_missing(home: Path, *, postgres: bool) -> None:
    """Check that the files of a server exist in ``home``. Raises NotMadeError, OSError."""
    try:
        # Not exists(): a directory that is closed to us may well hold one.
        (home / ("postgres" if postgres else "redis")).stat()
    except (FileNotFoundError, NotADirectoryError):
        unset, what = ("postgres.dsn", "database") if postgres else ("redis.url", "Redis")
        found = f"{unset} is not set, and there is no embedded {what} in {home}"
        raise NotMadeError(found, NAME_IT) from None


def servers(data_dir: Path) -> Servers:
    """Return the servers of a directory that ``embedded`` has made. Raises EmbeddedError, OSError."""
    home = data_dir.resolve()
    account = account_for(home)
    sockets = _sockets(home, account)
    return Servers(EmbeddedPostgres(home, account, sockets), EmbeddedRedis(home, account, sockets))


def _leave(home: Path, account: Account, users: int) -> None:
    """Stop the servers if nobody else uses them."""
    with _readable_errors(home), _start_lock(home, account):
        if locked(users):
            running = servers(home)
            running.redis.stop()
            running.postgres.stop()
            place = home / "sockets"
            with suppress(OSError):  # of a server that nobody stopped something is left, for the next start
                if place.is_symlink():
                    place.readlink().rmdir()
                    place.unlink()
                else:
                    place.rmdir()


def embedded_redis_url(data_dir: Path) -> str:
    """Return the URL of the Redis of a directory, running or not; empty if there is none."""
    try:
        return servers(data_dir).redis.url if (data_dir / "redis").is_dir() else ""
    except (EmbeddedError, OSError):  # another user's
        return ""


@contextmanager
def _start_lock(home: Path, account: Account) -> Iterator[None]:
    """Hold the lock under which servers are started and stopped."""
    turn = lock_file(home / "turn.lock", account)
    try:
        if not wait_until(lambda: locked(turn), _START_LOCK_S):
            raise EmbeddedError(
                f"another process has been starting or stopping the servers of {home} for {_START_LOCK_S:.0f}"
                f" s: see {home / 'logs'} or end that process"
            )
        yield
    finally:
        # Closing it is not enough: a process that was forked since still holds it.
        fcntl.flock(turn, fcntl.LOCK_UN)
        os.close(turn)


@contextmanager
def _readable_errors(data_dir: Path) -> Iterator[None]:
    """Turn an OSError into an EmbeddedError that names the remedy."""
    try:
        yield
    except OSError as error:
        where = error.filename or data_dir
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT:
                sentence = f"there is no room left for {where}: free some or choose another --data-dir"
            case errno.EACCES | errno.EPERM | errno.EROFS:
                sentence = f"{where} is closed to this user: start as its owner or choose another --data-dir"
            case _:
                sentence = f"{where}: {error.strerror}: choose another --data-dir"
        raise EmbeddedError(sentence) from error


def _sockets(home: Path, account: Account) -> Path:
    """Find the directory of the sockets: in ``home`` where its path is short and plain, else in /tmp."""
    place = home / "sockets"
    if place.is_symlink():
        short = place.readlink()
        if short.parent == _SHORT and account.owns(short):
            return short
        place.unlink()  # /tmp was cleaned up, and the name may be anybody's now
    if len(os.fsencode(place)) <= _SOCKETS_BYTES and _PLAIN.match(str(place)):
        return account.directory(place)
    if place.is_dir():
        shutil.rmtree(place)  # the directory was moved here from where its path was short
    # Closed to others from its first moment on, and nobody can have taken its name before us.
    short = account.directory(_SHORT / f"tidemark-{secrets.token_hex(8)}")
    place.symlink_to(short)
    return short
