"""Master keys: a value, a file, the output of a command, or the file that the embedded default makes."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import anyio.to_thread

from engine.operate.ports import RefusedError
from engine.runtime.settings import Sealing, Settings
from engine.seal.master_keys import KEY_BYTES, MasterKeyError, MasterKeys, parse_master_keys
from handlers.http.keys import make_secret_file, replace_secret_file
from storage.embedded.account import account_for
from storage.embedded.process import lock_file, locked

#: The file of the embedded default, beside the secret of tokens.
MADE_MASTER_KEY: Final = "master.key"
_COMMAND_S: Final = 20.0
#: Keys that are missing are looked for again after so long.
_AGAIN_S: Final = 10.0
#: A command that prints more is not the right one.
_MOST_BYTES: Final = 65_536
_OPEN_TO_OTHERS: Final = stat.S_IRWXO | stat.S_IWGRP


class _FileState(NamedTuple):
    """Another one: the file was written or replaced."""

    changed_ns: int
    inode: int
    size_bytes: int


_NONE_SET: Final = (
    "there is no master key: set sealing.master_key_file, sealing.master_key_command or"
    " TIDEMARK__SEALING__MASTER_KEY, such as to a file with the output of `openssl rand -base64 32`"
)


class MasterKeySource:
    """``engine.cache.key_ring.MasterKeySource``: what the settings name, read again if it changed.

    Keys that were read once stay, whatever becomes of their source: a file that is written badly, or a
    service that is away, must not close the data that they open.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        named = settings.sealing.master_key_file
        self._file = Path(named) if named else made_master_key(settings)
        self._read: MasterKeys | MasterKeyError = MasterKeyError(_NONE_SET)
        self._failed = False
        self._state: _FileState | None = None
        self._again_s = float("-inf")

    async def keys(self, wanted: str | None = None) -> MasterKeys:
        """Return the master keys. They are read in a thread: a command may ask a service.

        Without a changed file they are read again every ten seconds at most, for a tenant whose master key is
        missing must not have a command run for each of its messages.

        Raises:
            MasterKeyError: None could be read, now or before.
        """
        state, now_s = _state_of(self._file), time.monotonic()
        if state != self._state or (self._lacks(wanted) and now_s >= self._again_s):
            self._state, self._again_s = state, now_s + _AGAIN_S
            try:
                self._read = await anyio.to_thread.run_sync(master_keys, self._settings)
                self._failed = False
            except MasterKeyError as error:
                self._failed = True
                if isinstance(self._read, MasterKeyError):
                    self._read = error
        if isinstance(self._read, MasterKeyError):
            raise self._read
        return self._read

    def _lacks(self, wanted: str | None) -> bool:
        read = self._read
        if isinstance(read, MasterKeyError) or (self._failed and self._file is not None):
            return True
        return wanted is not None and wanted not in read.ids

    async def ids(self) -> list[str]:
        """List the ids of the master keys; none if there are none, or they cannot be read.

        They are read once, and again if the file changed: who asks every ten seconds must not wait for a
        command that does not answer.
        """
        if self._again_s == float("-inf") or _state_of(self._file) != self._state:
            with suppress(MasterKeyError):
                return (await self.keys()).ids
        return [] if isinstance(self._read, MasterKeyError) else self._read.ids


def _state_of(path: Path | None) -> _FileState | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return _FileState(found.st_mtime_ns, found.st_ino, found.st_size)


def master_keys(settings: Settings) -> MasterKeys:
    """Read the master keys.

    Raises:
        MasterKeyError: None is set, or it cannot be read.
    """
    sealing = settings.sealing
    if sealing.master_key:
        return _parsed("sealing.master_key", sealing.master_key)
    if sealing.master_key_file:
        return _parsed("sealing.master_key_file", _file(Path(sealing.master_key_file)))
    if sealing.master_key_command:
        return _parsed("sealing.master_key_command", _printed(sealing.master_key_command))
    made = made_master_key(settings)
    if made is None:
        raise MasterKeyError(_NONE_SET)
    return _parsed(str(made), _file(made))


def made_master_key(settings: Settings) -> Path | None:
    """Return the file of the embedded default; None if the database or the master key is the operator's."""
    if is_set(settings.sealing) or not settings.postgres.is_embedded:
        return None
    return Path(settings.data.dir).resolve() / MADE_MASTER_KEY


def make_master_key(path: Path) -> None:
    """Make the file of the embedded default, unless there is one. Raises OSError."""
    if not path.exists():
        make_secret_file(path, new_master_key() + b"\n")


def new_master_key() -> bytes:
    """Return a new master key as it stands in a file."""
    return b64encode(secrets.token_bytes(KEY_BYTES))


def is_set(sealing: Sealing) -> bool:
    """Return whether the settings name a master key."""
    return bool(sealing.master_key or sealing.master_key_file or sealing.master_key_command)


def _parsed(source: str, text: str) -> MasterKeys:
    try:
        return parse_master_keys(text)
    except MasterKeyError as error:
        raise MasterKeyError(f"{source}: {error}") from None


def _file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MOST_BYTES)
    except OSError as error:
        raise MasterKeyError(
            f"{path}: {error.strerror}: put the master key there, and let this account read it"
            " (root:tidemark, mode 0640), or run this as another one (sudo -u tidemark)"
        ) from None
    if mode & _OPEN_TO_OTHERS:
        raise MasterKeyError(
            f"{path}: other accounts may read or write it (mode {mode:04o}): chmod 0600 {path}, or 0640 with"
            " the server's group"
        )
    return _text(str(path), content)


def _printed(command: Sequence[str]) -> str:
    """Run the command, as it stands, without a shell, and return what it prints."""
    name = "sealing.master_key_command"
    try:
        ended = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_S, check=False
        )
    except OSError as error:
        raise MasterKeyError(
            f"{name}: {command[0]}: {error.strerror}: name a program that exists, and each argument by itself"
        ) from None
    except subprocess.TimeoutExpired:
        raise MasterKeyError(
            f"{name}: {command[0]} did not end within {_COMMAND_S:g} s: run it by hand, and see"
            " what it waits for"
        ) from None
    if ended.returncode:
        said = " ".join(ended.stderr.decode(errors="replace").split())[-200:] or "it said nothing"
        raise MasterKeyError(
            f"{name}: {command[0]} ended with status {ended.returncode} ({said}): run it by hand, as"
            " this account"
        )
    return _text(name, ended.stdout[:_MOST_BYTES])


def _text(source: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise MasterKeyError(f"{source}: not a text in UTF-8: a master key is base64") from None


@contextmanager
def refused() -> Iterator[None]:
    """Have a command refuse what a master key is missing for. Raises RefusedError."""
    try:
        yield
    except MasterKeyError as error:
        raise RefusedError(str(error)) from None


@contextmanager
def file_alone(path: Path) -> Iterator[bool]:
    """Lock the file of the embedded default for one who changes it; yield whether nobody else has it.

    Raises OSError.
    """
    descriptor = lock_file(path.with_name(f"{path.name}.lock"), account_for(path.parent))
    try:
        yield locked(descriptor)
    finally:
        os.close(descriptor)


def put_in_front(path: Path) -> None:
    """Put a new master key before those of a file, which is replaced at once. Raises OSError.

    Of two at once one key would be lost: hold ``file_alone``.
    """
    replace_secret_file(path, new_master_key() + b"\n" + path.read_bytes())
