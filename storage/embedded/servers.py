"""PostgreSQL and Redis of our own, for whoever has configured none.

Every user of a data directory holds a shared lock on it; the first one in starts the servers, the
last one out stops them. A killed user's lock goes with it, and the servers wait for the next user.
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

#: The remedy where a server was set up elsewhere, or not yet.
NAME_IT: Final = (
    "name the server's settings (--config FILE or TIDEMARK_CONFIG) or its --data-dir DIR, or start"
    " `run.py serve`, which makes one"
)
#: Starting may mean recovering a large database.
_TURN_S: Final = 300.0
#: A Unix socket's path may have 107 bytes on Linux and 103 elsewhere.
_SOCKETS_BYTES: Final = 103 - len("/.s.PGSQL.5432")
_SHORT: Final = Path("/tmp")  # noqa: S108
#: What neither libpq, PostgreSQL's lists nor a URL need quoted.
_PLAIN: Final = re.compile(r"[A-Za-z0-9/._-]+\Z")


class Services(msgspec.Struct, frozen=True):
    """Where to reach what ``embedded`` started; empty for what it was not asked for.

    ``dsn`` is in libpq's keywords, ``redis_url`` for ``redis.asyncio.from_url``.
    """

    dsn: str
    redis_url: str


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
        EmbeddedError: The servers cannot be had.
    """
    with ExitStack() as stack:
        with _plainly(data_dir):
            home = data_dir.resolve()
            if not make:
                _refuse_missing(home, postgres=postgres)
            account = account_for(home)
            make_data_dir(home, account)
            users = lock_file(home / "users.lock", account)
            stack.callback(os.close, users)
            with _turn(home, account):
                fcntl.flock(users, fcntl.LOCK_SH)
                stack.callback(_leave, home, account, users)
                running = servers(home)
                if postgres:
                    running.postgres.start()
                if redis:
                    running.redis.start()
        yield Services(running.postgres.dsn if postgres else "", running.redis.url if redis else "")


def _refuse_missing(home: Path, *, postgres: bool) -> None:
    """See that a server's files were made in ``home``. Raises NotMadeError, OSError."""
    try:
        # Not exists(): a directory that is closed to us may well hold one.
        (home / ("postgres" if postgres else "redis")).stat()
    except (FileNotFoundError, NotADirectoryError):
        unset, what = ("postgres.dsn", "database") if postgres else ("redis.url", "Redis")
        found = f"{unset} is not set, and there is no embedded {what} in {home}"
        raise NotMadeError(found, NAME_IT) from None


def servers(data_dir: Path) -> Servers:
    """Reach for the servers of a directory that ``embedded`` has made. Raises EmbeddedError, OSError."""
    home = data_dir.resolve()
    account = account_for(home)
    sockets = _sockets(home, account)
    return Servers(EmbeddedPostgres(home, account, sockets), EmbeddedRedis(home, account, sockets))


def _leave(home: Path, account: Account, users: int) -> None:
    """Stop the servers if nobody else uses them."""
    with _plainly(home), _turn(home, account):
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
    """Say where the Redis of a directory is, or would be, without starting it; empty if there is none."""
    try:
        return servers(data_dir).redis.url if (data_dir / "redis").is_dir() else ""
    except (EmbeddedError, OSError):  # another user's
        return ""


@contextmanager
def _turn(home: Path, account: Account) -> Iterator[None]:
    """Be the only one who starts or stops servers."""
    turn = lock_file(home / "turn.lock", account)
    try:
        if not wait_until(lambda: locked(turn), _TURN_S):
            raise EmbeddedError(
                f"another process has been starting or stopping the servers of {home} for {_TURN_S:.0f} s:"
                f" see {home / 'logs'} or end that process"
            )
        yield
    finally:
        # Not left to closing alone: a process forked meanwhile would go on holding it.
        fcntl.flock(turn, fcntl.LOCK_UN)
        os.close(turn)


@contextmanager
def _plainly(data_dir: Path) -> Iterator[None]:
    """Turn what the system refuses into a sentence with its remedy."""
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
