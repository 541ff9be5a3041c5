"""Whom the embedded servers run as, the directories that account owns, and what it can reach.

PostgreSQL refuses to run as root, so root hands both servers to an unprivileged account. Modes of
what exists are never changed: a path that is closed to the account is refused with the remedy.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec

#: Tried in this order by root; the first is what a packaged PostgreSQL runs as.
_SYSTEM_ACCOUNTS: Final = ("postgres", "nobody")


class EmbeddedError(Exception):
    """The embedded services cannot be had; one sentence says why and names the remedy."""


class Account(msgspec.Struct, frozen=True):
    """Who runs the servers. ``switched`` says that it is not who runs this process."""

    uid: int
    gid: int
    switched: bool

    @property
    def spawning(self) -> dict[str, Any]:
        """The arguments for ``subprocess`` that make a child run as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switched else {}

    def own(self, descriptor: int) -> None:
        """Give what this process has just created, open as ``descriptor``, to the account."""
        if self.switched:
            os.fchown(descriptor, self.uid, self.gid)

    def directory(self, path: Path) -> Path:
        """Create a directory that is the account's alone, and return it.

        One that exists is taken only if it is the account's. Raises EmbeddedError, OSError.
        """
        created = _make(path, 0o700)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if created:
                self.own(descriptor)
            elif os.fstat(descriptor).st_uid != self.uid:
                raise EmbeddedError(
                    f"{path} belongs to another account: give it back or choose another --data-dir"
                )
        finally:
            os.close(descriptor)
        return path


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
        except FileNotFoundError:
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
    for path in (*reversed(data_dir.parents), data_dir):
        if not account.switched:
            _make(path, 0o700)
        elif _make(path, 0o710):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                os.fchown(descriptor, 0, account.gid)
                os.fchmod(descriptor, 0o710)  # whatever the umask took away
            finally:
                os.close(descriptor)
    closed = closed_to(account, data_dir)
    if closed is not None:
        raise EmbeddedError(
            f"{closed} is closed to the account that PostgreSQL runs as, since it does not run as root:"
            " choose an open place such as --data-dir /var/lib/tidemark or start as another user"
        )


def closed_to(account: Account, path: Path) -> Path | None:
    """Find the first directory on the way to ``path``, itself included, that the account cannot enter."""
    if not account.switched:
        return None
    way = [str(part) for part in (*reversed(path.parents), path)]
    # The account itself is asked: modes alone do not tell, as there may be access lists.
    script = 'for part do [ -x "$part" ] || { printf %s "$part"; exit; }; done'
    asked = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *way], cwd="/", capture_output=True, check=True, **account.spawning
    )
    return Path(os.fsdecode(asked.stdout)) if asked.stdout else None


def _make(path: Path, mode: int) -> bool:
    """Create a directory; tell whether it was missing."""
    try:
        path.mkdir(mode)
    except FileExistsError:
        return False
    return True
