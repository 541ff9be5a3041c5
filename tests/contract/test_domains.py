"""What a device is told of domains: the rules of each, which hold events, and which it asked for in vain."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.harness.in_process_server import ON_SHARED, SHARED, Running, Serve
from tests.harness.services import execute
from tests.harness.ws_device import Json, item, put

pytestmark = ON_SHARED

CONFIG: Json = tomllib.loads((Path(__file__).parents[2] / "config.toml").read_text("utf-8"))["domains"]
EVENTS = ["behavioral", "metrics", "session", "voice"]


async def test_welcome_names_the_domains_of_events(shared: Running) -> None:
    welcome = (await shared.device()).welcome
    assert sorted(welcome["events"]) == EVENTS
    assert not set(EVENTS) & set(welcome["policies"])


async def test_domains_give_the_rules_of_each(shared: Running) -> None:
    reply = await shared.get("/v1/domains")
    assert (reply.status, reply.message["type"]) == (200, "domains")
    told = reply.message["domains"]
    assert told.keys() == CONFIG.keys() | SHARED["domains"].keys()
    for name, rules in (CONFIG | SHARED["domains"]).items():
        assert told[name]["kind"] == rules.get("kind", "record")
        assert told[name]["required"] == rules.get("required", [])
        assert told[name]["status"] == rules.get("status", {})
        assert ("policy" in told[name]) is (told[name]["kind"] == "record")
    assert told["ticket"]["server_owned"] == ["escalation_level", "escalated_at", "escalated_by", "status"]
    assert told["form_server"]["fallback"] == "server_wins"
    assert told["voice"] == {"kind": "event", "required": CONFIG["voice"]["required"], "status": {}}
    assert "pii" not in reply.body.decode()


async def test_domains_in_messagepack(shared: Running) -> None:
    reply = await shared.get("/v1/domains", headers={"Accept": "application/msgpack"})
    assert msgspec.msgpack.decode(reply.body) == (await shared.get("/v1/domains")).message


@pytest.mark.asyncio(loop_scope="function")
async def test_domains_tell_each_tenant_its_own_policies(serve: Serve, dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy, fallback)"
        " SELECT tenant_id, 'journal', 'field_merge', 'manual' FROM tenants WHERE name = 'acme'",
    )
    server = await serve()
    acme = (await server.get("/v1/domains")).message["domains"]["journal"]
    globex = (await server.get("/v1/domains", tenant="globex")).message["domains"]["journal"]
    assert (acme["policy"], acme["fallback"]) == ("field_merge", "manual")
    assert globex["policy"] == "client_wins"


@pytest.mark.parametrize(
    ("domains", "unknown"),
    [
        (None, None),
        (["task"], None),
        (["task", "taks", "voice", "Task"], ["Task", "taks", "voice"]),
        (["nothing", "nothing"], ["nothing"]),
        (['quote " and ü'], ['quote " and ü']),
    ],
)
async def test_page_names_the_domains_that_hold_no_records(
    domains: list[str] | None, unknown: Any, shared: Running
) -> None:
    phone = await shared.device()
    await phone.push(put("a1", None, n=1), item("put", "ticket", "t1", data={}))
    over_http = await shared.get("/v1/changes", params={"domains": ",".join(domains or [])})
    pulled: Json = await phone.pull(domains=domains)
    office = await shared.device("office")
    first = await office.told("changes", "subscribe", domains=domains)
    pages = [over_http.message, pulled, first]
    if domains is None or "task" in domains:
        await phone.push(put("a2", None, n=1))
        pages.append(await office.changes())
        assert [one["id"] for one in pages[-1]["changes"]] == ["a2"]
    for page in pages:
        assert page.get("unknown_domains") == unknown
        assert all(one["domain"] in (domains or ["task", "ticket"]) for one in page["changes"])
