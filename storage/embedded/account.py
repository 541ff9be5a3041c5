"""The account that runs the embedded servers, and the directories made for it.

PostgreSQL refuses to run as root, so root runs both servers as an unprivileged account. The modes of existing
paths are never changed: a path that the account cannot enter is refused with the remedy.
"""

from __future__ import annotations

import errno
import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

#: Tried in this order by root; the first is what a packaged PostgreSQL runs as.
_SYSTEM_ACCOUNTS: Final = ("postgres", "nobody")
#: Names of unfinished directories end so, followed by hexadecimal digits.
_NEW: Final = ".new-"


class EmbeddedError(Exception):
    """The embedded servers cannot be used; one sentence says why and names the remedy."""


class Account(msgspec.Struct, frozen=True):
    """The account that runs the servers; ``switched`` if it is not the account of this process."""

    uid: int
    gid: int
    switched: bool

    @property
    def spawning(self) -> dict[str, Any]:
        """The arguments for ``subprocess`` that run a child as this account, in no environment of ours."""
        as_account = {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switched else {}
        return {"cwd": "/", "env": {"PATH": os.defpath, "HOME": "/", "LC_ALL": "C"}, **as_account}

    def own(self, descriptor: int) -> None:
        """Give a file that this process has just created, open as ``descriptor``, to the account."""
        if self.switched:
            os.fchown(descriptor, self.uid, self.gid)

    def directory(self, path: Path) -> Path:
        """Create a directory that is the account's alone, and return it.

        One that exists is taken only if it is the account's. Raises EmbeddedError, OSError.
        """
        _make(path, self.uid, self.gid, 0o700)
        if not self.owns(path):
            raise EmbeddedError(f"{path} belongs to another account: remove it or choose another --data-dir")
        return path

    def owns(self, path: Path) -> bool:
        """Return whether ``path`` is a directory of the account, and not a link to one."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False
        try:
            return os.fstat(descriptor).st_uid == self.uid
        finally:
            os.close(descriptor)


def account_for(data_dir: Path) -> Account:
    """Choose the account for the servers of ``data_dir``, which need not exist yet. Raises EmbeddedError.

    An ordinary user runs them as itself. Root runs them as the owner of the cluster or of the directory, or
    else as a system account.
    """
    uid = os.geteuid()
    if uid != 0:
        return Account(uid, os.getegid(), switched=False)
    for path in (data_dir / "postgres", data_dir):
        try:
            status = path.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if status.st_uid != 0:
            return Account(status.st_uid, status.st_gid, switched=True)
    for name in _SYSTEM_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, switched=True)
    raise EmbeddedError(
        "PostgreSQL does not run as root and there is no account 'postgres' or 'nobody':"
        " create one or start as another user"
    )


def make_data_dir(data_dir: Path, account: Account) -> None:
    """Create ``data_dir`` and its missing parents, open to this process and the account alone.

    ``data_dir`` is absolute. Raises EmbeddedError if the account cannot come through, OSError.
    """
    gid, mode = (account.gid, 0o710) if account.switched else (os.getegid(), 0o700)
    way = [*reversed(data_dir.parents), data_dir]
    if account.switched and (closed := _closed(account, [path for path in way if path.is_dir()])):
        raise EmbeddedError(
            f"{closed} is closed to the account that PostgreSQL runs as in root's stead:"
            " choose an open place such as --data-dir /var/lib/tidemark or start as another user"
        )
    for path in way:
        _make(path, os.geteuid(), gid, mode)


def _closed(account: Account, way: list[Path]) -> str:
    """Name the first directory that the account cannot enter, if any."""
    # The account itself is asked: modes alone do not tell, as there may be access lists.
    script = 'for part do [ -x "$part" ] || { printf %s "$part"; exit; }; done'
    command = ["/bin/sh", "-c", script, "sh", *map(str, way)]
    return os.fsdecode(subprocess.run(command, capture_output=True, check=True, **account.spawning).stdout)


@contextmanager
def made_atomically(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to build under; at the end the result moves to ``path``, durably."""
    new = path.with_name(f"{path.name}{_NEW}{secrets.token_hex(8)}")
    try:
        yield new
        new.rename(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    above = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(above)
    finally:
        os.close(above)


def remove_unfinished(directory: Path) -> None:
    """Remove directories that were left unfinished by a process that was killed."""
    for torn in directory.glob(f"*{_NEW}*"):
        # A child of that process may still write: the next call removes the rest.
        shutil.rmtree(torn, ignore_errors=True)


def _make(path: Path, uid: int, gid: int, mode: int) -> None:
    """Create a directory, unless there is one, that never exists with another owner or mode."""
    if path.is_dir():
        return
    try:
        with made_atomically(path) as new:
            new.mkdir(0o700)
            descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if (uid, gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)  # the umask may have taken bits away
            finally:
                os.close(descriptor)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            error.filename = str(path)  # the name that a person knows
            raise
        # Another process made it first, and may use it already.
