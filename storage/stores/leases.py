"""Whose turn it is, as rows with an expiry: nothing that a pooler between could take away or leave behind."""

from __future__ import annotations

from typing import Final

from engine.cluster.leases import LEASE_S
from storage.postgres.pool import Database, Row, Statement, Values
from storage.postgres.transactions import SETTINGS

_UNTIL: Final = f"now() + interval '{LEASE_S} seconds'"
_BEGIN: Final = Statement(
    "INSERT INTO cluster_job AS j (job, holder, held_until, began_at)"
    f" VALUES (%(job)s::text, %(holder)s::text, {_UNTIL}, now())"
    " ON CONFLICT (job) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until,"
    " began_at = excluded.began_at WHERE j.holder = excluded.holder"
    " OR coalesce(j.held_until < now(), true)"
    " AND j.began_at <= now() - %(every)s::float8 * interval '1 second'"
    " RETURNING (extract(epoch FROM now()) * 1000000)::bigint"
)
_RENEW: Final = Statement(
    f"UPDATE cluster_job SET held_until = {_UNTIL}"
    " WHERE job = %(job)s::text AND holder = %(holder)s::text RETURNING 1"
)
_END: Final = Statement(
    "UPDATE cluster_job SET held_until = NULL, report = coalesce(%(report)s::json, report)"
    " WHERE job = %(job)s::text AND holder = %(holder)s::text"
)
_REPORT: Final = Statement("SELECT report::text FROM cluster_job WHERE job = %(job)s::text")


class PostgresTurns:
    """``engine.cluster.leases.TurnStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, job: str, holder: str, every_s: float) -> int | None:
        """Give a turn, if it is free and due."""
        rows = await self._run(_BEGIN, {"job": job, "holder": holder, "every": str(every_s)})
        return int(rows[0][0]) if rows else None

    async def renew(self, job: str, holder: str) -> bool:
        """Begin the lease anew."""
        return bool(await self._run(_RENEW, {"job": job, "holder": holder}))

    async def end(self, job: str, holder: str, report: bytes | None) -> None:
        """Give a turn back."""
        text = None if report is None else report.decode()
        await self._run(_END, {"job": job, "holder": holder, "report": text})

    async def report(self, job: str) -> bytes | None:
        """Find what the last turn came to."""
        rows = await self._run(_REPORT, {"job": job})
        return rows[0][0].encode() if rows and rows[0][0] is not None else None

    async def _run(self, statement: Statement, values: Values) -> list[Row]:
        async with self._database.session() as session:
            rows = await session.run_prepared("", (SETTINGS, statement), "", values)
            session.warned()  # of a silent standby: a turn that is lost with its primary harms nobody
            return rows
