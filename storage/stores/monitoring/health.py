"""The last judgement: one row, replaced by each."""

from __future__ import annotations

from typing import Final

import msgspec

from engine.operate.monitor.statuses import LastHealth
from storage.postgres.pool import Database
from storage.postgres.transactions import LOCAL_SETTINGS

_LAST: Final = "SELECT health::text FROM health_report"
_REPLACE: Final = (
    "INSERT INTO health_report (health) VALUES (%(health)s::json)"
    " ON CONFLICT (singleton) DO UPDATE SET health = excluded.health"
)


class PostgresHealth:
    """``engine.operate.ports.HealthStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last(self) -> LastHealth | None:
        """Read the row. One that another version wrote, and that this one cannot read, counts as none."""
        rows = await self._database.query(_LAST)
        try:
            return msgspec.json.decode(rows[0][0], type=LastHealth) if rows else None
        except msgspec.ValidationError:  # a server could not start, and no judgement would replace it
            return None

    async def replace(self, health: LastHealth) -> None:
        """Write the row. No wait for a standby: the next judgement writes it again."""
        values = {"health": msgspec.json.encode(health).decode()}
        await self._database.execute(_REPLACE, values, LOCAL_SETTINGS)
