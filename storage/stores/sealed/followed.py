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
#: The sealed domains as one text, NULL if there are none: ``sealed_text`` of the same domains. It costs a
#: batch 10 µs; string_agg() would cost 15.
SEALED_SQL: Final = (
    "(SELECT nullif(array_to_string(ARRAY(SELECT domain FROM sealed_domains ORDER BY domain), ','), ''))"
)
#: One of them, NULL if there are none: 5 µs a batch, for a process that seals nothing.
ANY_SEALED_SQL: Final = "(SELECT domain FROM sealed_domains LIMIT 1)"


class SealingChangedError(StoreRetryError):
    """This process is behind in what is sealed, or by which key. Nothing was written."""

    def __init__(self) -> None:
        super().__init__("other processes changed what is sealed, or the key of a tenant")


def sealed_text(domains: Collection[str]) -> str | None:
    """Return sealed domains as ``SEALED_SQL`` has them; their names have no comma."""
    return ",".join(sorted(domains)) or None
