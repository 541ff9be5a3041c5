"""Whom the embedded servers run as, and the directories made for that account.

PostgreSQL refuses to run as root, so root hands both servers to an unprivileged account. Modes of
what exists are never changed: a path that is closed to the account is refused with the remedy.
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
#: What a killed start left half-made ends like this, and so many hexadecimal digits.
_NEW: Final = ".new-"


class EmbeddedError(Exception):
    """The embedded services cannot be had; one sentence says why and names the remedy."""


class Account(msgspec.Struct, frozen=True):
    """Who runs the servers; ``switched`` where that is not who runs this process."""

    uid: int
    gid: int
    switched: bool

    @property
    def spawning(self) -> dict[str, Any]:
        """The arguments for ``subprocess`` that run a child as this account, in no environment of ours."""
        as_account = {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switched else {}
        return {"cwd": "/", "env": {"PATH": os.defpath, "HOME": "/", "LC_ALL": "C"}, **as_account}

    def own(self, descriptor: int) -> None:
        """Give what this process has just created, open as ``descriptor``, to the account."""
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
        """Tell whether ``path`` is a directory, not a link to one, of the account."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False
        try:
            return os.fstat(descriptor).st_uid == self.uid
        finally:
            os.close(descriptor)


def account_for(data_dir: Path) -> Account:
    """Choose who runs the servers of ``data_dir``, which need not exist yet. Raises EmbeddedError.

    Everybody runs them himself, root as the owner of the cluster or of the directory, else as a
    system account.
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
    """Create ``data_dir`` and what is missing above it, closed to all but us and the account.

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
def made_whole(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to build under; what was built moves to ``path`` at the end, durably."""
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


def sweep(directory: Path) -> None:
    """Remove what was being made in ``directory`` when its maker was killed."""
    for torn in directory.glob(f"*{_NEW}*"):
        # Its maker's child may still be writing: what that leaves is swept the next time.
        shutil.rmtree(torn, ignore_errors=True)


def _make(path: Path, uid: int, gid: int, mode: int) -> None:
    """Create a directory, unless there is one, that never exists with another owner or mode."""
    if path.is_dir():
        return
    try:
        with made_whole(path) as new:
            new.mkdir(0o700)
            descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if (uid, gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)  # whatever the umask took away
            finally:
                os.close(descriptor)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            error.filename = str(path)  # the name that a person knows
            raise
        # Somebody else was faster, and is using it already.
