"""Kept answers by key: those of the last two days for every message, older ones only where they may be met.

A key that was not used before is looked for in every partition that the statement may read. With the 30 days
that answers are kept that would be 93 µs a key, with the last two days 5 µs.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

#: A message that was first sent within a day is found in these, however long its batch waited for a lock.
RECENT_H: Final = 48

#: The database's day, as days since 1970-01-01 UTC.
TODAY: Final = "(extract(epoch FROM now())::bigint / 86400)"

_DAY: Final = timedelta(days=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

#: LATERAL with LIMIT fixes the plan: one index probe a row and partition, however the tables are analysed.
_FOUND: Final = (
    "SELECT 1, w.t, w.k::text, encode(f.request_sha256, 'hex'),"
    " extract(epoch FROM now() - f.created_at)::bigint, NULL, NULL, NULL, f.results::text,"
    " NULL, NULL, NULL, NULL"
    " FROM unnest(%({0}key_tenants)s::int[], %({0}key_hashes)s::uuid[]) AS w(t, k)"
    " CROSS JOIN LATERAL (SELECT request_sha256, results, created_at FROM sync_idempotency_record"
    " WHERE tenant_id = w.t AND key_hash = w.k{1} LIMIT 1) AS f"
)


def recent(lifetime_h: float, day: int | None) -> str:
    """Make the query of the answers of the last two days.

    now() is the transaction's start, and the holder of the lock before may have started later, or on a host
    whose clock is ahead: hence the day on top. It is said in hours, which are added in 20 ns; adding a day
    looks at the time zone, 0.5 µs for each key and partition.

    Args:
        lifetime_h: How long answers are kept.
        day: The database's day or the day before it, from 1970-01-01; None where it is not known. It leaves
            all other partitions out when the statement is planned: a plan that holds the others, too, locks
            each of them at every batch, 40 µs for 48 of them.

    Returns:
        The query, without an end.
    """
    bounds = (
        f" AND created_at > now() - interval '{min(lifetime_h, RECENT_H)} hours'"
        " AND created_at < now() + interval '24 hours'"
    )
    if day is not None:
        bounds += f" AND created_at >= '{_begin(day - 2)}' AND created_at < '{_begin(day + 3)}'"
    return _FOUND.format("", bounds)


def older(lifetime_h: float) -> str:
    """Make the query of the answers that are kept and older than those of ``recent``."""
    return _FOUND.format(
        "old_",
        f" AND created_at > now() - interval '{lifetime_h} hours'"
        # Of a key that a device used for several messages, weeks apart, the latest answer.
        f" AND created_at <= now() - interval '{RECENT_H} hours' ORDER BY created_at DESC",
    )


def _begin(day: int) -> str:
    return f"{_EPOCH + day * _DAY:%Y-%m-%d} 00:00:00+00"
