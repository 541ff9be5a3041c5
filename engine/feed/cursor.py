"""Cursors: a device's position in its tenant's feed, as an opaque string."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection
from typing import Final

from engine.wire.errors import SyncError

MAX_DOMAINS: Final = 100
MAX_DOMAIN_CHARS: Final = 255


class Scope:
    """The tenant, epoch and set of domains that a cursor is valid for.

    ``domains`` is None for all domains. ``unknown`` has the names of ``domains`` that ``known`` lacks,
    sorted.

    Args:
        epoch: The database's epoch.
        tenant_id: The tenant.
        domains: 1 to ``MAX_DOMAINS`` names, in any order; None for all.
        known: The domains that may hold records; None if that does not matter.

    Raises:
        SyncError: ``invalid_message``: too many domains, none, or a name that is too long.
    """

    __slots__ = ("_bound", "domains", "unknown")

    def __init__(
        self, epoch: str, tenant_id: int, domains: list[str] | None, known: Collection[str] | None = None
    ) -> None:
        if domains is not None:
            if not 1 <= len(domains) <= MAX_DOMAINS:
                raise SyncError("invalid_message", f"domains: 1 to {MAX_DOMAINS} names, or null for all")
            if any(len(name) > MAX_DOMAIN_CHARS or "\0" in name for name in domains):
                fault = f"domains: names of at most {MAX_DOMAIN_CHARS} characters, without U+0000"
                raise SyncError("invalid_message", fault)
        self.domains = None if domains is None else frozenset(domains)
        self.unknown: tuple[str, ...] = ()
        if self.domains is not None and known is not None:
            self.unknown = tuple(sorted(name for name in self.domains if name not in known))
        names = "" if domains is None else "\0".join(sorted(set(domains)))
        digest = hashlib.blake2b(names.encode("utf-8", "replace"), digest_size=6).hexdigest()
        self._bound = f"1.{epoch}.{tenant_id}.{digest if domains is not None else 'all'}."

    def cursor(self, seq: int) -> str:
        """Return the cursor of the position after ``seq``."""
        return base64.urlsafe_b64encode(f"{self._bound}{seq}".encode()).rstrip(b"=").decode()

    def seq(self, cursor: str | None) -> int:
        """Return the seq of a cursor; 0, the beginning, for null.

        Raises:
            SyncError: ``invalid_message`` if it is not a cursor, ``cursor_expired`` if it is one of another
                tenant, epoch or set of domains.
        """
        if cursor is None:
            return 0
        try:
            padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
            text = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
            version, _, rest = text.partition(".")
            number = rest.rpartition(".")[2]
        except (UnicodeError, binascii.Error):
            raise _no_cursor() from None
        if version != "1" or text.count(".") != 4 or not number.isdecimal() or len(number) > 19:
            raise _no_cursor()
        if text != f"{self._bound}{number}":
            raise expired()
        return int(number)


def expired() -> SyncError:
    """Return the error for a cursor that does not fit this feed."""
    return SyncError("cursor_expired", "this cursor is of another feed; pull again with cursor null")


def _no_cursor() -> SyncError:
    return SyncError("invalid_message", "cursor: not a cursor; send one that the server gave, or null")
