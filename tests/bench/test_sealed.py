"""A benchmark of sealed data: nobody reads it in the tables but its audits."""

from __future__ import annotations

import pytest

from bench.harness import sealed
from storage.postgres.blocking import connected
from tests.harness.in_process_server import Serve
from tests.harness.services import rows
from tests.harness.ws_device import day, put


async def test_open_tables_shows_what_devices_sent_and_the_tables_do_not(
    serve: Serve, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sealed._KEY, "")  # taken back in the end
    sealed.seal_from_now()
    sealed.seal(dsn)
    server = await serve(sealing={"master_key": sealed.variables()["TIDEMARK__SEALING__MASTER_KEY"]})
    device = await server.device()
    event = {"event_id": "e1", "event_type": "pace", "timestamp": day(1)}
    await device.push(
        put("t1", note="seen"),
        {"domain": "behavioral", "id": "e1", "op": "append", "at": day(1), "data": event},
    )
    await device.push({"domain": "tusk", "id": "t2", "op": "put", "data": {"note": "rejected"}})
    stored = rows(dsn, "SELECT json_typeof(data) FROM records UNION ALL SELECT json_typeof(data) FROM events")
    assert stored == [("string",), ("string",)]
    with connected(dsn) as connection, connection.cursor() as cursor:
        sealed.open_tables(cursor, dsn)
        cursor.execute("SELECT data ->> 'note' FROM records")
        assert cursor.fetchall() == [("seen",)]
        cursor.execute("SELECT data FROM events")
        assert cursor.fetchall() == [(event,)]
        cursor.execute("SELECT DISTINCT json_typeof(results) FROM sync_idempotency_record")
        assert cursor.fetchall() == [("array",)]
