"""A name that a second tenant has, and tokens that are revoked: what was let in before is let in no more."""

from __future__ import annotations

import time

import jwt
import pytest

from engine.cache.ports import ANY_TENANT
from tests.harness.admin import add_tenants, remove_tenant, revoke_device
from tests.harness.commands import Run, command
from tests.harness.in_process_server import Running
from tests.harness.services import rows
from tests.harness.ws_device import Closed, Device, put
from tests.security.catalogue import against

__all__ = ["command"]  # a fixture


async def sent_away(device: Device) -> str:
    """Wait for the goodbye and the close."""
    reason = ""
    while not reason:
        message = await device.receive()
        reason = message.get("reason", "")
    with pytest.raises(Closed) as closed:
        await device.receive()
    assert closed.value.code == 4403
    return reason


@against("API2:2023", "V7.4")
async def test_tenant_of_a_used_name_tokens_of_the_earlier_one_are_refused(server: Running) -> None:
    [(old,)] = rows(server.dsn, "SELECT tenant_id FROM tenants WHERE name = 'acme'")
    hour_ago_s = int(time.time()) - 3600
    phone = await server.device()
    await phone.push(put("a1", None, n=1))
    revoke_device(server.dsn, "acme", "lost")
    remove_tenant(server.dsn, "acme", erase=True)
    assert await sent_away(phone) == "revoked"
    add_tenants(server.dsn, "acme")
    [(new,)] = rows(server.dsn, "SELECT tenant_id FROM tenants WHERE name = 'acme'")
    assert new != old

    async def verdict(device: str, tenant: str = "acme", **claims: int | None) -> int:
        headers = server.headers(device, tenant, **claims)
        async with server.http.get(f"{server.url}/v1/changes", headers=headers) as answer:
            assert answer.status in (200, 401)
            return answer.status

    for device in ("phone", "lost"):
        assert await verdict(device) == 401
        assert await verdict(device, iat=hour_ago_s) == 401
        assert await verdict(device, tnr=int(str(old)), iat=int(time.time())) == 401
        assert await verdict(device, tnr=int(str(new)), iat=hour_ago_s) == 200
        assert await verdict(device, iat=int(time.time())) == 200
        assert await verdict(device, nbf=int(time.time())) == 200
    assert await verdict("phone", "globex") == 200  # a name that no other had


@against("API2:2023", "V7.4")
async def test_token_revoked_its_connections_close_and_requests_are_refused(
    server: Running, command: Run
) -> None:
    [(acme,)] = rows(server.dsn, "SELECT tenant_id FROM tenants WHERE name = 'acme'")
    one, other = await server.device("phone", jti="j1"), await server.device("tablet", jti="j2")
    headers = server.headers("phone", jti="j1")
    changes = f"{server.url}/v1/changes"
    async with server.http.get(changes, headers=headers) as answer:
        assert answer.status == 200  # from here on the token is remembered
    ended = await command("token", "revoke", "j1", "--tenant", "acme")
    assert (ended.status, ended.out) == (0, "revoked token j1 of acme\n")
    assert await sent_away(one) == "revoked"
    async with server.http.get(changes, headers=headers) as answer:
        assert answer.status == 401
    async with server.http.get(changes, headers=server.headers("phone", "globex", jti="j1")) as answer:
        assert answer.status == 200  # the same jti of another tenant
    await other.ask("heartbeat")
    assert rows(server.dsn, "SELECT tenant_id, token_id FROM revoked_tokens") == [(acme, "j1")]
    again = await command("token", "revoke", "j1", "--tenant", "acme")
    assert again.out == "token j1 of acme was revoked already\n"
    everywhere = await command("token", "revoke", "j2")
    assert everywhere.out == "revoked token j2\n"
    assert await sent_away(other) == "revoked"
    revoked = "SELECT count(*)::int FROM revoked_tokens WHERE tenant_id = "
    remove_tenant(server.dsn, "acme", erase=True)
    assert rows(server.dsn, f"{revoked}{acme}") == [(0,)]
    assert rows(server.dsn, f"{revoked}{ANY_TENANT}") == [(1,)]


async def test_tenant_add_of_a_used_name_says_so_and_asks(dsn: str, command: Run) -> None:
    assert (await command("tenant", "add", "acme")).status == 0
    assert "earlier" not in (await command("tenant", "remove", "acme")).err
    refused = await command("tenant", "add", "acme")
    assert refused.status == 1
    assert "There was another tenant acme until" in refused.err
    assert rows(dsn, "SELECT FROM tenants") == []
    added = await command("tenant", "add", "acme", "--yes")
    [(number,)] = rows(dsn, "SELECT tenant_id FROM tenants")
    assert (added.status, added.out) == (0, "added acme\n")
    assert f'"tnr": {number}' in added.err
    assert "tenant acme already" in (await command("tenant", "add", "acme")).refusal()
    assert (
        "Options of revoke stand behind it"
        in (await command("token", "--tenant", "acme", "revoke", "j")).refusal()
    )
    for jti in ("", "a\x1b[2J"):
        assert "jti is required" in (await command("token", "revoke", "--", jti)).refusal()


async def test_token_revoke_of_a_whole_token_reads_its_jti_and_keeps_nothing_else(
    server: Running, command: Run
) -> None:
    phone = await server.device("phone", jti="j7")
    whole = server.headers("phone", jti="j7")["Authorization"].removeprefix("Bearer ")
    elsewhere = await command("token", "revoke", whole, "--tenant", "globex")
    assert "of the tenant acme" in elsewhere.refusal()
    ended = await command("token", "revoke", f"Bearer {whole}")
    assert (ended.status, ended.out) == (0, "revoked token j7\n")
    assert "the jti of that token is j7" in ended.err
    assert await sent_away(phone) == "revoked"
    assert rows(server.dsn, "SELECT token_id FROM revoked_tokens") == [("j7",)]
    nameless = jwt.encode({"tid": "acme"}, "a secret that nobody needs to know", "HS256")
    for part in (whole[:16], whole[:50], whole.rpartition(".")[0], whole.split(".")[1], nameless):
        refused = (await command("token", "revoke", part)).refusal()
        assert "jti" in refused
        assert part not in refused
    assert rows(server.dsn, "SELECT count(*)::int FROM revoked_tokens") == [(1,)]
