"""A PostgreSQL that waits for a standby: what may be lost with this host is not acknowledged."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import pytest

from bench.harness.clusters import migrate_for_roles
from storage.embedded.servers import embedded
from tests.harness.in_process_server import Serve
from tests.harness.postgres_stalls import UNKNOWN, WAITS_FOR_STANDBY, backend, counts
from tests.harness.scratch import scratch
from tests.harness.services import execute, rows
from tests.harness.ws_device import put


@pytest.fixture
def dsn() -> Iterator[str]:
    """A database on a PostgreSQL of its own, whose settings may be changed."""
    with scratch("tidemark-standby-") as home, embedded(home / "data", redis=False) as services:
        migrate_for_roles(services.owner)
        yield services.owner


async def test_commit_unconfirmed_by_standby_is_answered_after_confirmation(serve: Serve, dsn: str) -> None:
    """A cancelled wait for the standby ends in a mere warning, and the transaction stands here."""
    server = await serve()
    phone = await server.device()
    execute(dsn, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    items = [put("a1", None, n=1)]
    pushing = asyncio.create_task(phone.told("synced", "sync", key="k", items=items))
    for unknown in (1, 2):
        execute(dsn, f"SELECT pg_cancel_backend({await backend(dsn, WAITS_FOR_STANDBY)})")
        await counts(server, UNKNOWN, unknown, unless=pushing)
        assert not pushing.done()
    await backend(dsn, WAITS_FOR_STANDBY)
    assert not pushing.done()
    execute(dsn, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
    (result,) = (await pushing)["results"]
    assert (result["status"], result["version"], result["seq"]) == ("applied", 1, 1)
    assert rows(dsn, "SELECT id, version, seq FROM records") == [("a1", 1, 1)]


async def test_pull_of_sealed_records_is_answered_while_nothing_can_be_committed(
    serve: Serve, dsn: str
) -> None:
    """A process that has no keys of the tenant yet reads them, and takes no seals, which would be a write."""
    sealing = {"master_key": base64.b64encode(b"1" * 32).decode()}
    execute(dsn, "INSERT INTO sealed_domains VALUES ('task')")
    first, second = await serve(sealing=sealing), await serve(sealing=sealing)
    await (await first.device()).sync("k", put("a1", None, title="paint"))
    assert rows(dsn, "SELECT left(data::text, 1) FROM records") == [('"',)]
    leased = rows(dsn, "SELECT seals_leased FROM tenant_keys")
    tablet = await second.device()
    execute(dsn, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    try:
        (change,) = (await tablet.pull())["changes"]
    finally:
        execute(dsn, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
    assert change["data"]["title"] == "paint"
    assert rows(dsn, "SELECT seals_leased FROM tenant_keys") == leased
