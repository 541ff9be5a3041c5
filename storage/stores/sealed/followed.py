"""What seals in the database, as the first round trip of a transaction reads it that writes sealed values.

A process follows sealed domains and keys within a second. Until then, or if it stood still, it would store
plain values of a domain that is sealed, or seal with a key that no longer seals. After a failover to a
standby that had not received a key, it would seal with one that nobody has. So both are compared with what
this process seals with (``Sealing.check``), and nothing is written if it is behind.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from engine.runtime.ports import StoreRetryError

#: Times that a process reads again what seals, before what it writes is tried later.
BEHIND_TRIES: Final = 2
#: The sealed domains as one text, NULL if there are none: ``sealed_text`` of the same domains.
SEALED_SQL: Final = "(SELECT string_agg(domain, ',' ORDER BY domain) FROM sealed_domains)"


class SealingChangedError(StoreRetryError):
    """This process is behind in what is sealed, or by which key. Nothing was written."""

    def __init__(self) -> None:
        super().__init__("other processes changed what is sealed, or the key of a tenant")


def sealed_text(domains: Collection[str]) -> str | None:
    """Return sealed domains as ``SEALED_SQL`` has them; their names have no comma."""
    return ",".join(sorted(domains)) or None


def key_sql(tenant: str) -> str:
    """Return the SQL of the id of the key that seals for a tenant, NULL if there is none."""
    return (
        f"(SELECT k.key_id::text FROM tenant_keys AS k WHERE k.tenant_id = {tenant} AND k.retired_at IS NULL)"
    )
