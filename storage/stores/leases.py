"""Leases of jobs as rows with an expiry; session locks would not survive a connection pooler."""

from __future__ import annotations

from typing import Final

from engine.cluster.leases import LEASE_S
from storage.postgres.connection import Statement
from storage.postgres.driver import Row, Values
from storage.postgres.pool import Database
from storage.postgres.transactions import LOCAL_SETTINGS

_UNTIL: Final = f"now() + interval '{LEASE_S} seconds'"
_BEGIN: Final = Statement(
    "INSERT INTO cluster_job AS j (job, holder, held_until, began_at)"
    f" VALUES (%(job)s::text, %(owner)s::text, {_UNTIL}, now())"
    " ON CONFLICT (job) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until,"
    " began_at = excluded.began_at WHERE j.holder = excluded.holder"
    " OR coalesce(j.held_until < now(), true)"
    " AND j.began_at <= now() - %(every)s::float8 * interval '1 second'"
    " RETURNING (extract(epoch FROM now()) * 1000000)::bigint"
)
_RENEW: Final = Statement(
    f"UPDATE cluster_job SET held_until = {_UNTIL}"
    " WHERE job = %(job)s::text AND holder = %(owner)s::text RETURNING 1"
)
_END: Final = Statement(
    "UPDATE cluster_job SET held_until = NULL, report = coalesce(%(report)s::json, report)"
    " WHERE job = %(job)s::text AND holder = %(owner)s::text"
)
_REPORT: Final = Statement("SELECT report::text FROM cluster_job WHERE job = %(job)s::text")


class PostgresLeases:
    """``engine.cluster.leases.LeaseStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, job: str, owner: str, every_s: float) -> int | None:
        """Take a lease that is free and due."""
        rows = await self._run(_BEGIN, {"job": job, "owner": owner, "every": str(every_s)})
        return int(rows[0][0]) if rows else None

    async def renew(self, job: str, owner: str) -> bool:
        """Extend a lease."""
        return bool(await self._run(_RENEW, {"job": job, "owner": owner}))

    async def end(self, job: str, owner: str, report: bytes | None) -> None:
        """Release a lease."""
        text = None if report is None else report.decode()
        await self._run(_END, {"job": job, "owner": owner, "report": text})

    async def report(self, job: str) -> bytes | None:
        """Read the last report of a job."""
        rows = await self._run(_REPORT, {"job": job})
        return rows[0][0].encode() if rows and rows[0][0] is not None else None

    async def _run(self, statement: Statement, values: Values) -> list[Row]:
        # No wait for a standby: a lease that is lost with its primary only runs out.
        return await self._database.execute(statement, values, LOCAL_SETTINGS)
