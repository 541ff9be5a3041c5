"""Voice events, and their log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from engine.model.commit_counts import HOUR_US
from engine.operate.figures.voice import VOICE, LoggedResult, Result, Verification, VoiceEvent
from storage.postgres.arrays import int_array, text_array, text_array_or_null
from storage.postgres.connection import Statement
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import EVERYONE
from storage.postgres.transactions import Transaction
from storage.stores.monitoring.hours import span
from storage.stores.monitoring.minutes import BEFORE
from storage.stores.sealed.checked import NUMBERED, Look, write_checked
from storage.stores.sealed.followed import ANY_SEALED_SQL
from storage.stores.sealed.sealing import EVENT_DATA, VOICE_ID, VOICE_RESULT, Sealing
from storage.stores.tenant_rows import tenant_id_of

#: The counts of an hour name the domains of its items.
_HOURS: Final = (
    f"SELECT DISTINCT tenant_id, sync_hour * {HOUR_US} FROM sync_hour_counts"
    " WHERE tenant_id = ANY(%(tenants)s::int[])"
    " AND sync_hour >= %(since_hour)s AND sync_hour < %(until_hour)s"
    f""" AND strpos(sync_counts, '"{VOICE}":') > 0 ORDER BY 1, 2"""
)
#: The hour of a commit and the time of its events are of one clock: the beginning of the transaction.
_OF_HOUR: Final = (
    f"WHERE tenant_id = %(tenant)s AND domain = '{VOICE}' AND received_at >= to_timestamp(%(since)s::bigint)"
    " AND received_at < to_timestamp(%(until)s::bigint)"
    " AND (received_at, id, sent_at_us) > (to_timestamp(%(after_us)s::float8 / 1000000),"
    " %(after_id)s, %(after_sent)s)"
)
_COLUMNS: Final = "id, sent_at_us, received_at, at_us, device_id, data::text"
#: ``events_later`` may be detached for a while (storage/postgres/partitions/maintenance.py).
_EVENTS: Final = (
    "SELECT DISTINCT ON (received_at, id, sent_at_us) id, sent_at_us,"
    " (extract(epoch FROM received_at) * 1000000)::bigint, at_us, device_id, data"
    f" FROM (SELECT {_COLUMNS} FROM events {_OF_HOUR}"
    f" UNION ALL SELECT {_COLUMNS} FROM events_later {_OF_HOUR}) AS e"
    " ORDER BY received_at, id, sent_at_us LIMIT %(limit)s"
)
_WRITTEN: Final = "(tenant_id, verification_id, device_id, user_id, occurred_at, result)"
_PUT: Final = Statement(
    f"WITH put {_WRITTEN} AS MATERIALIZED"
    " (SELECT %(tenant)s::int, w.i, w.d, w.u, 'epoch'::timestamptz + w.o * interval '1 microsecond',"
    " w.r::json FROM unnest(%(ids)s::text[], %(devices)s::text[], %(users)s::text[], %(times)s::bigint[],"
    " %(results)s::text[], %(formers)s::text[]) AS w(i, d, u, o, r, f)"
    " WHERE EXISTS (SELECT FROM tenants WHERE tenants.tenant_id = %(tenant)s::int)"
    " AND NOT EXISTS (SELECT FROM voice_verification_log AS v WHERE v.tenant_id = %(tenant)s::int"
    " AND v.verification_id = ANY(w.f::text[]))),"
    f" done AS (INSERT INTO voice_verification_log {_WRITTEN} SELECT * FROM put"
    f" ON CONFLICT DO NOTHING RETURNING 1) SELECT {ANY_SEALED_SQL} FROM done"
)
_DELETE: Final = (
    "WITH old AS MATERIALIZED (SELECT f.* FROM tenants AS t CROSS JOIN LATERAL"
    " (SELECT v.tenant_id AS t, v.verification_id AS i FROM voice_verification_log AS v"
    f" WHERE v.tenant_id = t.tenant_id AND v.occurred_at < {BEFORE} AND v.created_at < {BEFORE}"
    " ORDER BY v.occurred_at LIMIT %(limit)s::int) AS f LIMIT %(limit)s::int),"
    " gone AS (DELETE FROM voice_verification_log AS g USING old WHERE g.tenant_id = old.t"
    " AND g.verification_id = old.i RETURNING 1) SELECT count(*) FROM gone"
)
_LOGGED: Final = (
    "SELECT device_id, (extract(epoch FROM occurred_at) * 1000000)::bigint AS at_us, result::text,"
    " verification_id FROM voice_verification_log WHERE tenant_id = %(tenant)s"
    " AND occurred_at < to_timestamp(%(until)s::float8 / 1000000)"
    " AND (occurred_at, verification_id) >"
    " ('epoch'::timestamptz + %(after_us)s * interval '1 microsecond', %(after_id)s)"
    " ORDER BY occurred_at, verification_id LIMIT 5000"
)
_decode: Final = msgspec.json.Decoder(Result).decode


class _Stored(NamedTuple):
    """The columns of a verification that may be sealed.

    ``former_ids`` are those of its row from before its domain was sealed, or its tenant's key rotated.
    """

    verification_id: str
    user_id: str | None
    result: str
    former_ids: Sequence[str] = ()


class PostgresVoice:
    """``engine.operate.figures.voice.VoiceStore`` and ``VoiceReads``."""

    def __init__(self, database: Database, sealing: Sealing) -> None:
        self._database = database
        self._sealing = sealing

    async def hours(self, tenant_ids: Sequence[int], since_us: int, until_us: int) -> list[tuple[int, int]]:
        """Return the tenants and hours that have events."""
        rows = await self._database.query(_HOURS, span(tenant_ids, since_us, until_us), tenant_ids)
        return [(tenant_id, hour_us) for tenant_id, hour_us in rows]

    async def events(
        self, tenant_id: int, hour_us: int, after: VoiceEvent | None, limit: int
    ) -> list[VoiceEvent]:
        """Read events of an hour."""
        values = {
            "tenant": tenant_id,
            "since": hour_us // 1_000_000,
            "until": (hour_us + HOUR_US) // 1_000_000,
            "after_us": hour_us if after is None else after.received_us,
            "after_id": "" if after is None else after.id,
            "after_sent": 0 if after is None else after.sent_at_us,
            "limit": limit,
        }

        def event(row: Row) -> VoiceEvent:
            event_id, sent_at_us, received_us, at_us, device_id, stored = row
            data = self._sealing.open(EVENT_DATA, tenant_id, VOICE, event_id, sent_at_us, stored)
            assert data is not None
            return VoiceEvent(event_id, sent_at_us, received_us, at_us, device_id, data.decode())

        return await self._sealing.opened(await self._database.query(_EVENTS, values, [tenant_id]), event)

    async def put(self, tenant_id: int, rows: Sequence[Verification]) -> int:
        """Add to the log."""
        if not rows:
            return 0

        async def write(transaction: Transaction, look: Look) -> int:
            stored = [self._stored(tenant_id, row) for row in rows]
            values = {
                "tenant": str(tenant_id),
                "ids": text_array(row.verification_id for row in stored),
                "devices": text_array(row.device_id for row in rows),
                "users": text_array_or_null(row.user_id for row in stored),
                "times": int_array(row.occurred_at_us for row in rows),
                "results": text_array(row.result for row in stored),
                "formers": text_array(text_array(row.former_ids) for row in stored),
            }
            put = await transaction.run((NUMBERED, _PUT), values)
            look(put)
            return len(put)

        return await write_checked(self._database, self._sealing, [tenant_id], write)

    def _stored(self, tenant_id: int, row: Verification) -> _Stored:
        """Return the columns of a row. If it is sealed, the person and the id are in the result, too."""
        if not self._sealing.covers(VOICE):
            return _Stored(row.verification_id, row.user_id, msgspec.json.encode(row.result).decode())
        found = self._sealing.keyed_hash(VOICE_ID, tenant_id, VOICE, row.verification_id)
        named = {"verification_id": row.verification_id, "user_id": row.user_id}
        plain = msgspec.json.encode(named | msgspec.structs.asdict(row.result))
        sealed = self._sealing.seal(VOICE_RESULT, tenant_id, VOICE, found, 0, plain)
        assert sealed is not None
        former_ids = self._sealing.former_hashes(VOICE_ID, tenant_id, VOICE, row.verification_id)
        return _Stored(found, None, sealed.decode(), former_ids)

    async def delete(self, before_us: int, limit: int) -> int:
        """Delete rows, each tenant's oldest first."""
        ((count,),) = await self._database.execute(
            _DELETE, {"before": before_us, "limit": limit}, tenants=EVERYONE
        )
        return int(count)

    async def voice(self, tenant: str, since_us: int, until_us: int) -> list[LoggedResult]:
        """Read the log, page by page."""
        tenant_id = await tenant_id_of(self._database, tenant)
        values: dict[str, object] = {"tenant": tenant_id, "until": until_us}
        values |= {"after_us": since_us, "after_id": ""}

        def logged_result(row: Row) -> LoggedResult:
            device_id, at_us, stored, found = row
            result = self._sealing.open(VOICE_RESULT, tenant_id, VOICE, found, 0, stored)
            assert result is not None
            return LoggedResult(device_id, at_us, _decode(result))

        logged: list[LoggedResult] = []
        while rows := await self._database.query(_LOGGED, values, [tenant_id]):
            logged += await self._sealing.opened(rows, logged_result)
            values |= {"after_us": rows[-1][1], "after_id": rows[-1][3]}
        return logged
