"""A real dump of the database has nothing of personal data; with sealing off it has all of it."""

from __future__ import annotations

import base64
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import parse_dsn

from compose.sealing.stores import open_sealing
from engine.model.commit_counts import HOUR_US
from engine.operate.figures.voice import verification
from storage.embedded.account import account_for
from storage.embedded.binaries import postgres_binaries
from storage.stores.monitoring.voice import PostgresVoice
from storage.stores.sealed.sealing import Sealing
from tests.harness.commands import Run, command
from tests.harness.in_process_server import Running, Serve, settings_with
from tests.harness.services import Serving, execute
from tests.harness.uploads.tus_uploader import photo, uploader
from tests.harness.ws_device import change, day

__all__ = ["command"]

MASTER_KEY = base64.b64encode(b"1" * 32).decode()
#: Tenants and answers of before the sealing.
_EARLIER = (
    "UPDATE sealed_domains SET since = since - interval '6 seconds'",
    "UPDATE tenants SET created_at = created_at - interval '1 hour'",
    "UPDATE sync_idempotency_record SET created_at = created_at - interval '1 hour'",
)
#: ``form`` and ``visit`` are records with personal data, ``voice`` has events with them.
DOMAINS: dict[str, dict[str, Any]] = {
    "form": {"policy": "manual", "pii": ["name"]},
    "visit": {"policy": "client_wins", "pii": ["name"], "required": ["place"]},
}
#: What devices say, each at one place alone. A dump is searched for each of them.
SEEDS = {
    name: f"seed-{name}-{number:04x}"
    for number, name in enumerate(
        (
            "record",
            "patched",
            "deleted",
            "server side",
            "client side",
            "held",
            "rejected of unknown domain",
            "rejected of a known domain",
            "event",
            "verification",
            "person",
            "answer",
            "file name",
            "metadata",
        ),
        start=0xA000,
    )
}


async def _seed(server: Running) -> None:
    """Have a seed in every column that devices fill with data."""
    phone, tablet = await server.device("phone"), await server.device("tablet")

    async def push(*items: dict[str, Any]) -> list[str]:
        return [result["status"] for result in await phone.push(*items)]

    def form(record_id: str, op: str, when: int, base: int | None, **fields: Any) -> dict[str, Any]:
        return {"domain": "form", "id": record_id, "base": base} | change(op, when, **fields)

    assert await push(form("f1", "put", 1, None, data={"name": SEEDS["record"]})) == ["applied"]
    assert await push(form("f2", "put", 1, None, data={"name": SEEDS["deleted"]})) == ["applied"]
    assert await push(form("f2", "delete", 2, 1)) == ["applied"]
    assert await push(form("f3", "put", 1, None, data={"name": SEEDS["server side"]})) == ["applied"]
    assert await push(form("f3", "patch", 2, 1, data={"more": SEEDS["patched"]})) == ["applied"]
    held = await tablet.push(form("f3", "put", 3, 1, data={"name": SEEDS["client side"]}))
    assert held[0]["status"] == "conflict"
    assert held[0]["data"]["name"] == SEEDS["server side"]
    held = await tablet.push(form("f3", "patch", 4, 1, data={"more": SEEDS["held"]}))
    assert held[0]["status"] == "conflict"
    visit = {"domain": "visit", "id": "v1", "base": None}
    rejected = {"name": SEEDS["rejected of a known domain"]}
    assert await push(visit | change("put", 1, data=rejected)) == ["rejected"]
    unknown = {"name": SEEDS["rejected of unknown domain"]}
    assert await push(visit | {"domain": "vizit"} | change("put", 1, data=unknown)) == ["rejected"]
    data = {"place": "gate", "name": SEEDS["answer"]}
    assert await push(visit | change("put", 1, data=data)) == ["applied"]
    resolved = await tablet.push(visit | change("put", 2, data={"place": "hall"}))
    assert resolved[0]["status"] == "resolved"
    event = {
        "verification_id": SEEDS["verification"],
        "user_id": SEEDS["person"],
        "note": SEEDS["event"],
        "timestamp": day(1),
        "verified": True,
        "confidence_score": 0.9,
    }
    voice = {"domain": "voice", "id": "e1", "op": "append", "at": day(1), "data": event}
    assert await push(voice) == ["applied"]
    named = {"filename": f"{SEEDS['file name']}.jpg", "domain": "form", "record_id": "f1"}
    await uploader(server).uploaded(photo(100), **named, more=SEEDS["metadata"])


async def _retry(server: Running) -> None:
    """Send a message again, which is applied once, and another one under its key, which is refused."""
    phone = await server.device("phone")
    item = {"domain": "form", "id": "once", "op": "put", "base": None, "data": {"name": "1"}}
    assert (await phone.sync("once", item))[0]["status"] == "applied"
    again = await phone.told("synced", "sync", key="once", items=[item])
    assert (again["replayed"], again["results"][0]["version"]) == (True, 1)
    refused = await phone.refused("sync", key="once", items=[item | {"data": {"name": "2"}}])
    assert refused["code"] == "idempotency_key_reused"


async def _log_voice(dsn: str, sealing: Sealing) -> None:
    """Log the verification, as the job ``aggregate`` does after the hour."""
    database = Serving(dsn, 1)
    voice = PostgresVoice(database, sealing)
    hour_us = int(time.time()) * 1_000_000 // HOUR_US * HOUR_US
    events = [
        event
        for since_us in (hour_us - HOUR_US, hour_us)
        for event in await voice.events(1, since_us, None, 9)
    ]
    rows = [row for event in events if (row := verification(event)) is not None]
    assert await voice.put(1, rows) == 1
    assert await voice.put(1, rows) == 0, "found again by its id"
    (logged,) = await voice.voice("acme", 0, 2 * hour_us)
    assert (logged.result.verified, logged.result.confidence_score) == (True, 0.9)
    await database.close()


def _dumped(dsn: str, place: Path) -> str:
    binaries = postgres_binaries(place, account_for(place), None)
    named = parse_dsn(dsn)
    done = subprocess.run(
        [binaries / "pg_dump", "--no-password", "--inserts", dsn],
        env={"PGPASSWORD": named["password"]},
        check=True,
        capture_output=True,
    )
    return done.stdout.decode()


def _found(dump: str) -> set[str]:
    """Return the seeds of a dump; a header of tus has its values in base64."""
    return {
        name
        for name, seed in SEEDS.items()
        if seed in dump or base64.b64encode(seed.encode()).decode().rstrip("=") in dump
    }


@pytest.mark.parametrize("sealed", ["never", "from the first", "later"])
async def test_dump_has_seeds_only_if_sealing_is_off(
    serve: Serve, dsn: str, tmp_path: Path, command: Run, sealed: str
) -> None:
    async def seal() -> None:
        for domain in ("form", "visit", "voice"):
            assert (await command("keys", "seal-domain", domain, **variables)).status == 0

    variables = {f"TIDEMARK__DOMAINS__{name.upper()}__PII": '["name"]' for name in DOMAINS}
    variables |= {"TIDEMARK__SEALING__MASTER_KEY": MASTER_KEY}
    sections: dict[str, Any] = {"domains": DOMAINS, "sealing": {"master_key": MASTER_KEY}}
    if sealed == "from the first":
        await seal()
    server = await serve(**sections)
    await _seed(server)
    database = Serving(dsn, 1)
    await _log_voice(dsn, await open_sealing(settings_with(**sections), database))
    if sealed == "later":
        await seal()
        # Sealed long enough ago for servers to follow.
        execute(dsn, *_EARLIER)
        done = await command("job", "reseal", "--data-dir", str(tmp_path), **variables)
        assert ", values " in done.out, done.err
        assert "stays in dead rows until VACUUM FULL" in done.err
    await database.close()
    await _retry(server)
    dump = _dumped(dsn, tmp_path)
    assert _found(dump) == (SEEDS.keys() if sealed == "never" else set())
    # Devices see all of it as before.
    page = await (await server.device("watch")).pull()
    shown = {change["id"]: change for change in page["changes"]}
    assert shown["f1"]["data"] == {"name": SEEDS["record"]}
    assert shown["f1"]["attachments"][0]["filename"] == f"{SEEDS['file name']}.jpg"
    assert shown["f3"]["data"] == {"name": SEEDS["server side"], "more": SEEDS["patched"]}
