"""What tenants hold is what is stored of them, and no message takes one past its bounds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.model.rows import TenantUsage
from engine.plan.bounds.tenant_usage import NAMES
from storage.postgres.partitions.maintenance import drop_expired, ensure_partitions
from storage.stores.usage import recount
from tests.harness.in_process_server import Running, Serve
from tests.harness.services import execute, rows
from tests.harness.ws_device import Json, item, put

SHARED: dict[str, Any] = {"domains": {"form": {"policy": "manual"}, "journal": {"policy": "server_wins"}}}
FULL = "insufficient_storage"

_TEXTS = {
    "record": ("records", "concat(data::text, fields::text, last_data::text)"),
    "conflict": (
        "conflict_resolution_log",
        (
            "concat(server_data::text, client_data::text, (SELECT string_agg(c->>'data', '')"
            " FROM json_array_elements(client_changes) AS c))"
        ),
    ),
    "quarantine": ("quarantine", "item"),
    "event": ("events", "data::text"),
    "answer": ("sync_idempotency_record", "results::text"),
}


def held(dsn: str) -> list[TenantUsage]:
    """Read what each tenant is said to hold."""
    columns = ", ".join(f"{name}::int" for name in NAMES)
    found = rows(dsn, f"SELECT {columns} FROM tenant_counters ORDER BY tenant_id")
    return [TenantUsage(*row) for row in found]  # type: ignore[arg-type]  # they are numbers


def stored(dsn: str) -> list[TenantUsage]:
    """Count what is stored of each tenant."""
    usages = []
    for (tenant_id,) in rows(dsn, "SELECT tenant_id FROM tenant_counters ORDER BY tenant_id"):
        numbers: dict[str, Any] = {}
        for kind, (table, text) in _TEXTS.items():
            of_tenant = f"FROM {table} WHERE tenant_id = {tenant_id}"
            ((count, size),) = rows(
                dsn, f"SELECT count(*)::int, coalesce(sum(octet_length({text})), 0)::int {of_tenant}"
            )
            numbers |= {f"{kind}_rows": count, f"{kind}_bytes": size}
        in_a_day = "(extract(epoch FROM now()) + 86400) * 1000000"
        ahead = f"SELECT count(*)::int FROM events WHERE tenant_id = {tenant_id} AND sent_at_us > {in_a_day}"
        usages.append(TenantUsage(**numbers, future_event_rows=rows(dsn, ahead)[0][0]))  # type: ignore[arg-type]
    return usages


async def bounded(serve: Serve, **bounds: int) -> Running:
    """Start a server whose tenants may hold little."""
    return await serve(tenant_limits=bounds, **SHARED)


def event(event_id: str, ahead_days: int = 0) -> Json:
    """Make an event of today, or of a day to come."""
    at = datetime.now(UTC) + timedelta(days=ahead_days)
    data = {"metric_name": "m", "value": 1, "timestamp": "t"}
    return item("append", "metrics", event_id, at=at.isoformat(), data=data)


async def test_columns_are_what_is_stored_after_all_that_devices_do(serve: Serve) -> None:
    server = await serve(**SHARED)
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await server.device("phone", "globex")
    for domain in ("task", "form", "journal"):
        await phone.push(item("put", domain, "a", data={"n": {"ä": 1}, "m": 2}), event(f"e-{domain}"))
        await tablet.push(item("patch", domain, "a", base=7, data={"n": {"ä": 2}}))
        await tablet.push(item("patch", domain, "a", base=7, data={"n": None}), item("patch", domain, "a"))
        await phone.push(item("delete", domain, "a", base=1), event("ahead", 3))
        await tablet.push(item("put", domain, "a", base=1, data={"n": "鍵"}))
    await phone.push(put("x", None, n=1), item("put", "nothing", "x", data={}), atomic=True)
    (waiting,) = (await tablet.ask("conflicts"))["conflicts"]
    await tablet.ask(
        "resolve", conflict_id=waiting["conflict_id"], choice="client", version=waiting["server"]["version"]
    )
    usage = held(server.dsn)
    assert usage == stored(server.dsn)
    assert all(usage[0].numbers())


@pytest.mark.parametrize(
    ("bounds", "fits", "too_much"),
    [
        ({"record_rows": 1}, put("a", None, n=1), put("b", None, n=1)),
        ({"record_bytes": 200}, put("a", None, n=1), put("a", 1, n="x" * 200)),
        ({"event_rows": 1}, event("a"), event("b")),
        ({"event_bytes": 60}, event("a"), event("b")),
        ({"future_event_rows": 1}, event("a", 2), event("b", 2)),
        ({"quarantine_rows": 1}, item("put", "nothing", "a", data={}), item("put", "nothing", "b", data={})),
        ({"quarantine_bytes": 60}, item("put", "nothing", "a"), item("put", "nothing", "b", data={"n": 1})),
        ({"answer_rows": 1}, put("a", None, n=1), put("a", 1, n=2)),
        ({"answer_bytes": 100}, put("a", None, n=1), put("a", 1, n=2)),
    ],
)
async def test_message_past_a_bound_is_refused_whole_and_its_key_not_used(
    serve: Serve, bounds: dict[str, int], fits: Json, too_much: Json
) -> None:
    server = await bounded(serve, **bounds)
    phone = await server.device("phone")
    first = await phone.ask("sync", key="k1", items=[fits])
    before, state = held(server.dsn), _rows_of_all(server.dsn)
    for _ in range(2):
        refused = await phone.ask("sync", key="k2", items=[put("other", None, n=1), too_much])
        assert (refused["code"], refused["retryable"]) == (FULL, True)
        assert refused["retry_after_ms"] >= 45_000
        assert f"tenant_limits.{next(iter(bounds))}" in refused["message"]
    assert (held(server.dsn), _rows_of_all(server.dsn)) == (before, state)
    again = await phone.ask("sync", key="k1", items=[fits])
    assert again["results"] == first["results"]
    assert again["replayed"]
    stranger = await server.device("phone", "globex")
    await stranger.push(fits)
    message = {"type": "sync", "key": "k3", "items": [put("other", None, n=1), too_much]}
    reply = await server.post("/v1/sync", message)
    assert reply.status == 507
    assert held(server.dsn)[0] == stored(server.dsn)[0]


def _rows_of_all(dsn: str) -> list[object]:
    return [
        rows(dsn, f"SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {table} AS t")
        for table, _ in _TEXTS.values()
    ]


async def test_deletes_resolves_and_what_frees_room_go_on_in_a_full_tenant(serve: Serve) -> None:
    server = await bounded(serve, record_rows=2, record_bytes=400, conflict_rows=1)
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await phone.push(item("put", "form", "a", data={"n": "x" * 150}), item("put", "form", "b", data={"n": 1}))
    (conflict,) = await tablet.push(item("patch", "form", "a", base=9, data={"m": 1}))
    message = {"key": "late", "items": [item("put", "form", "b", base=1, data={"n": "x" * 350})]}
    assert (await phone.ask("sync", **message))["code"] == FULL
    second = await tablet.ask("sync", key="c", items=[item("patch", "form", "b", base=9, data={"m": 1})])
    assert second["code"] == FULL
    await tablet.ask("resolve", conflict_id=conflict["conflict_id"], choice="client", version=1)
    (shrunk,) = await phone.push(item("put", "form", "a", base=2, data={}))
    assert shrunk["status"] == "applied"
    (deleted,) = await phone.push(item("delete", "form", "a", base=3))
    assert deleted["status"] == "applied"
    (late,) = (await phone.ask("sync", **message))["results"]
    assert late["status"] == "applied"
    assert held(server.dsn) == stored(server.dsn)


async def test_nothing_of_a_device_overtakes_its_refused_message(serve: Serve) -> None:
    server = await bounded(serve, record_bytes=300)
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await tablet.push(item("put", "journal", "full", data={"n": "x" * 200}))
    created = {"key": "first", "items": [item("put", "journal", "a", data={"n": "x" * 100})]}
    assert (await phone.ask("sync", **created))["code"] == FULL
    patched = {"key": "second", "items": [item("patch", "journal", "a", data={"m": 1})]}
    assert "before this one" in (await phone.ask("sync", **patched))["message"]
    (other,) = await phone.push(item("put", "journal", "b", data={"n": 1}))
    (others,) = await tablet.push(item("delete", "journal", "full", base=1))
    assert (other["status"], others["status"]) == ("applied", "applied")
    execute(server.dsn, "UPDATE tenant_counters SET record_bytes = 0")
    assert "before this one" in (await phone.ask("sync", **patched))["message"]
    statuses = [(await phone.ask("sync", **one))["results"][0]["status"] for one in (created, patched)]
    assert statuses == ["applied", "applied"]


async def test_recount_mends_what_was_written_past_the_columns(serve: Serve) -> None:
    server = await serve(**SHARED)
    phone = await server.device("phone")
    await phone.push(put("a", None, n=1), event("e"), event("f", 3), item("put", "nothing", "q"))
    right = held(server.dsn)
    wrong = ", ".join(f"{name} = {name} + {number}" for number, name in enumerate(NAMES, 3))
    execute(server.dsn, f"UPDATE tenant_counters SET {wrong}")
    assert recount(server.dsn) == 2
    assert held(server.dsn) == right == stored(server.dsn)
    execute(server.dsn, "UPDATE tenant_counters SET record_rows = 9")
    assert recount(server.dsn) == 0, "each tenant is counted once a week"


async def test_event_is_ahead_no_more_once_its_day_has_come(serve: Serve) -> None:
    server = await serve(**SHARED)
    await (await server.device("phone")).push(event("e", 2))
    assert held(server.dsn)[0].future_event_rows == 1
    execute(server.dsn, "UPDATE events SET sent_at_us = sent_at_us - 2 * 86400000000::bigint")
    recount(server.dsn)
    assert held(server.dsn)[0].future_event_rows == 0


async def test_kept_answers_that_are_dropped_count_no_more(serve: Serve) -> None:
    server = await serve(**SHARED)
    await (await server.device("phone")).push(put("a", None, n=1))
    await (await server.device("phone", "globex")).push(put("a", None, n=1))
    today = datetime.now(UTC)
    ensure_partitions(server.dsn, today.date(), 3)
    assert [one.answer_rows for one in held(server.dsn)] == [1, 1]
    drop_expired(server.dsn, today + timedelta(days=3))
    assert [(one.answer_rows, one.answer_bytes) for one in held(server.dsn)] == [(0, 0)] * 2
    assert held(server.dsn) == stored(server.dsn)


async def test_full_disk_refuses_pushes_and_readyz_names_it(serve: Serve) -> None:
    server = await serve(postgres={"min_free_bytes": 1 << 60})
    phone = await server.device("phone")
    refused = await phone.ask("sync", key="k", items=[put("a", None, n=1)])
    assert (refused["code"], refused["retryable"]) == (FULL, True)
    assert refused["retry_after_ms"] >= 45_000
    assert (await phone.pull())["changes"] == []
    ready = await server.get("/readyz")
    assert ready.status == 200
    assert re.search(r"disk has \d+ bytes left", ready.message["degraded"][0])


async def test_database_of_its_greatest_size_refuses_pushes(serve: Serve) -> None:
    server = await serve(postgres={"min_free_bytes": 0, "max_bytes": 1})
    refused = await (await server.device("phone")).ask("sync", key="k", items=[put("a", None, n=1)])
    assert "postgres.max_bytes" in refused["message"]


async def test_metrics_tell_the_fullest_tenant_and_what_found_no_room(serve: Serve) -> None:
    server = await bounded(serve, record_rows=0)
    refused = await (await server.device("phone")).ask("sync", key="k", items=[put("a", None, n=1)])
    assert refused["code"] == FULL
    page = (await server.get("/metrics")).body.decode()
    assert 'tidemark_tenant_fullest_ratio{bound="record_rows"} 1.0' in page
    assert "tidemark_messages_without_room_total 1.0" in page
