"""``GET /v1/admin/health``: who may ask about whom, and what is answered."""

from __future__ import annotations

import asyncio
from contextlib import closing
from functools import partial
from typing import Any

import psycopg2
import pytest

from engine.operate.health import HealthCheck
from engine.operate.monitor.report import Judgement
from engine.wire.close_codes import CloseCode
from handlers.operate.turns import MOST_REQUESTS
from storage.embedded.servers import Services
from tests.handlers.operate.test_probe_access import asked, bearer
from tests.harness.admin import revoke_device, revoke_token
from tests.harness.in_process_server import Running
from tests.harness.postgres_stalls import WAITS_FOR_LOCK, until
from tests.harness.services import outage, rows
from tests.harness.ws_device import token
from tests.security.catalogue import against

PATH = "/v1/admin/health"


async def ask(
    server: Running, query: str = "", role: str = "operator", tenant: str | None = None, **claims: Any
) -> tuple[int, Any]:
    """Ask as a person."""
    return await asked(server.url + PATH + query, bearer(token(tenant, None, role=role, **claims)))


@pytest.mark.parametrize("role", ["operator", "viewer"])
async def test_admin_health_of_all_tenants_has_their_sum_first(server: Running, role: str) -> None:
    status, body = await ask(server, role=role)
    assert status == 200
    assert [report["tenant"] for report in body["reports"]] == [None, "acme", "globex"]
    assert {"status", "score", "reasons", "findings", "unjudged", "values"} < body["reports"][0].keys()


async def test_admin_health_of_one_tenant_is_its_report_alone(server: Running) -> None:
    status, body = await ask(server, "?tenant=globex&hours=0.5")
    (report,) = body["reports"]
    assert (status, body["status"], report["status"], report["tenant"], report["window_s"]) == (
        (200, "unknown", "unknown", "globex", 1800)
    )
    assert report["reasons"] == ["no syncs within 30 minutes"]


@pytest.mark.parametrize("role", ["operator", "viewer"])
@against("API5:2023", "V8.3")
async def test_admin_health_token_of_one_tenant_sees_that_one_alone(server: Running, role: str) -> None:
    for query in ("", "?tenant=acme"):
        status, body = await ask(server, query, role, "acme")
        assert (status, [report["tenant"] for report in body["reports"]]) == (200, ["acme"])
    status, body = await ask(server, "?tenant=globex", role, "acme")
    assert (status, body["code"]) == (403, "forbidden")


@against("API5:2023", "V8.3")
async def test_admin_health_other_tokens_are_refused(server: Running) -> None:
    status, body = await asked(server.url + PATH)
    assert (status, body["code"]) == (401, "unauthenticated")
    for role in (None, "supervisor"):
        status, body = await asked(server.url + PATH, bearer(token("acme", "phone", role=role)))
        assert (status, body["code"]) == (403, "forbidden")
    status, body = await ask(server, tenant="nobody")
    assert (status, body["code"]) == (403, "forbidden")


async def refusal(server: Running, tenant: str | None, jti: str) -> tuple[int, Any] | None:
    """Ask, and return what is no answer."""
    status, body = await ask(server, tenant=tenant, jti=jti)
    return None if status == 200 else (status, body)


@against("API5:2023", "V8.3")
async def test_admin_health_revoked_token_is_refused(server: Running) -> None:
    """A token of people is revoked for all tenants, one of a tenant also by that tenant."""
    for tenant, revoked_of in ((None, None), ("acme", "acme"), ("globex", None)):
        jti = f"of {tenant}"
        assert (await ask(server, tenant=tenant, jti=jti))[0] == 200
        revoke_token(server.dsn, jti, revoked_of)
        refused = await until(partial(refusal, server, tenant, jti))
        assert refused is not None
        status, body = refused
        assert (status, body["code"]) == (401, "unauthenticated")


_REPORT_WAITS = (
    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND usename = 'tidemark_jobs'"
    f" AND {WAITS_FOR_LOCK}"
)


async def test_admin_health_that_takes_long_holds_up_no_revocation(server: Running) -> None:
    phone = await server.device()
    with closing(psycopg2.connect(server.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE upload_session")
        asking = asyncio.create_task(ask(server))
        await until(lambda: asyncio.to_thread(rows, server.dsn, _REPORT_WAITS))
        await asyncio.to_thread(revoke_device, server.dsn, "acme", "phone")
        async for _ in phone.socket:
            pass
        assert phone.socket.close_code == CloseCode.FORBIDDEN
        assert not asking.done()
    assert (await asking)[0] == 200


@pytest.mark.parametrize("hours", ["0", "-1", "48.1", "nan", "inf", "all", ""])
async def test_admin_health_wrong_hours_are_refused(server: Running, hours: str) -> None:
    status, body = await ask(server, f"?hours={hours}")
    assert (status, body["code"]) == (422, "invalid_message")
    assert body["message"].startswith("hours: a number above 0 and up to 48")


@pytest.mark.parametrize("query", ["?hour=3", "?tenant=acme&Hours=3", "?hours=3&tenant=acme&%00=1"])
async def test_admin_health_unknown_parameter_is_refused_with_the_known_ones(
    server: Running, query: str
) -> None:
    status, body = await ask(server, query)
    assert (status, body["code"]) == (400, "malformed")
    assert body["message"].endswith(": there is no such parameter; known: tenant, hours")
    status, body = await asked(server.url + PATH + query)
    assert (status, body["code"]) == (401, "unauthenticated")


async def test_admin_health_parameter_that_comes_twice_is_refused(server: Running) -> None:
    status, body = await ask(server, "?tenant=acme&tenant=globex")
    assert (status, body["code"]) == (400, "malformed")


@pytest.mark.parametrize("tenant", ["nobody", "acme%00", "%ff", "", "a" * 3000])
async def test_admin_health_unknown_tenant_is_not_found(server: Running, tenant: str) -> None:
    status, body = await ask(server, f"?tenant={tenant}")
    assert (status, body["code"]) == (404, "not_found")


@pytest.mark.parametrize(("query", "status"), [("", 200), ("?tenant=nobody", 404)])
async def test_admin_health_flood_of_one_token_is_refused(
    server: Running, monkeypatch: pytest.MonkeyPatch, query: str, status: int
) -> None:
    over, check = asyncio.Event(), HealthCheck.check

    async def late(self: HealthCheck, tenant: str | None, window_s: int) -> Judgement:
        await over.wait()
        return await check(self, tenant, window_s)

    monkeypatch.setattr(HealthCheck, "check", late)
    answers = asyncio.as_completed([ask(server, query, role="viewer", jti="flood") for _ in range(10)])
    async with asyncio.timeout(20):
        statuses = [(await next(answers))[0] for _ in range(10 - MOST_REQUESTS)]
    assert set(statuses) == {429}
    over.set()
    assert [(await one)[0] for one in answers] == [status] * MOST_REQUESTS


async def test_admin_health_database_away_is_unavailable(server: Running, services: Services) -> None:
    with outage(services, server.dsn):
        status, body = await ask(server)
    assert (status, body["code"]) == (503, "unavailable")
