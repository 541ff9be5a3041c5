"""Reads the token keys that the settings name; without any, a secret is generated for embedded services."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.runtime.settings import Auth
from handlers.http.tokens import Key, KeySet, UnusableKeyError, jwks_keys, pem_key, secret_key

_SECRET_BYTES = 48


def key_set(auth: Auth, generated: Callable[[], Path] | None) -> KeySet:
    """Read the keys of tokens.

    Args:
        auth: The settings.
        generated: Returns the path of a secret that is generated if no key is set. With None a key has to be
            set.

    Raises:
        UnusableKeyError: A key is missing, unreadable or set twice.
    """
    named = [name for name in ("secret", "secret_file", "key_file") if getattr(auth, name)]
    if len(named) > 1:
        raise UnusableKeyError(f"auth.{named[0]} and auth.{named[1]} are both set: keep one")
    by_id = jwks_keys(Path(auth.jwks_file)) if auth.jwks_file else {}
    if auth.key_file:
        return KeySet(pem_key(Path(auth.key_file)), by_id)
    if auth.secret:
        return KeySet(secret_key(auth.secret.encode()), by_id)
    if auth.secret_file:
        return KeySet(secret_key(_read(Path(auth.secret_file), "auth.secret_file: ")), by_id)
    if by_id:
        return KeySet(None, by_id)
    if generated is None:
        raise UnusableKeyError(
            "with a database of your own the tokens' key must be set:"
            " auth.secret_file, auth.key_file, auth.jwks_file or TIDEMARK__AUTH__SECRET"
        )
    return KeySet(secret_key(_generated(generated())), by_id)


def _read(path: Path, key: str = "") -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise UnusableKeyError(
            f"{key}{path}: {error.strerror}: put the secret there, and let this account read it"
            " (root:tidemark, mode 0640), or run this as another one (sudo -u tidemark)"
        ) from None


def _generated(path: Path) -> bytes:
    """Read the generated secret. It is made on first use."""
    try:
        if not path.exists():
            make_secret_file(path, secrets.token_urlsafe(_SECRET_BYTES).encode() + b"\n")
    except OSError as error:
        raise UnusableKeyError(f"{path}: {error.strerror}") from None
    return _read(path)


def make_secret_file(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all; one that exists stays. Raises OSError.

    Of several processes that make one, one wins. On return it is durable.
    """
    with suppress(FileExistsError), _whole_file(path, content) as whole:
        os.link(whole, path)
    _sync_directory(path.parent)


def replace_secret_file(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads in place of one that exists, at once. Raises OSError.

    On return it is durable.
    """
    mode, owner = path.stat().st_mode, path.stat().st_uid
    with _whole_file(path, content) as whole:
        whole.chmod(stat.S_IMODE(mode))
        if os.geteuid() == 0:
            os.chown(whole, owner, -1)
        whole.rename(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make names of files durable: a key that seals data must not be gone after a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _whole_file(path: Path, content: bytes) -> Iterator[Path]:
    """Write a file beside a path, durably, for the block to put in its place."""
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)  # 0600 from the start
    whole = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if os.geteuid() == 0:  # root at work in somebody's directory leaves them their secret
                os.fchown(descriptor, path.parent.stat().st_uid, -1)
            os.fsync(descriptor)
        yield whole
    finally:
        whole.unlink(missing_ok=True)


def signing_key(keys: KeySet) -> Key:
    """Return the key that signs tokens. Raises UnusableKeyError."""
    if keys.default is None or keys.default.private is None:
        raise UnusableKeyError(
            "no key here can sign tokens: set auth.secret_file, or auth.key_file with a private key"
        )
    return keys.default
