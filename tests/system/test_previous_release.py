"""The release before this one, on the schema of this one and beside it: to the same devices by turns."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from bench.harness.product import HERE, Version
from bench.harness.server import Server
from storage.embedded.servers import Services
from tests.bench.test_smoke import smoke_tokens
from tests.harness import previous_release
from tests.harness.admin import ensure_tenant
from tests.harness.previous_release import PREVIOUS, previous, site, unpacked
from tests.harness.services import Databases, execute, rows
from tests.harness.uploads.tus_uploader import Uploader, photo
from tests.harness.ws_device import Device, connected, item, put, token

__all__ = ["previous"]

MIGRATIONS = Path(__file__).parents[2] / "storage" / "migrations"
#: What a server of before, which still runs, would miss or trip over.
_CONTRACTS = re.compile(
    r"\b(DROP (TABLE|COLUMN|TYPE)|RENAME|SET NOT NULL|ALTER COLUMN \w+ (SET DATA )?TYPE|SET SCHEMA)\b"
    r"|\bADD COLUMN (IF NOT EXISTS )?(?![^,;]*\b(DEFAULT|GENERATED)\b)[^,;]*\bNOT NULL\b",
    re.IGNORECASE,
)
#: Migrations that contract, with the version since which no server uses what they drop: before the last one.
CONTRACTS: dict[str, str] = {}


def contracts(text: str) -> str | None:
    """Return the first piece of a migration that is no expansion."""
    found = _CONTRACTS.search(re.sub(r"--.*", "", text))
    return None if found is None else found[0]


def test_migrations_since_the_release_before_only_expand() -> None:
    files = sorted(path for path in MIGRATIONS.glob("*.sql") if not path.name.endswith(".rollback.sql"))
    names = [path.stem for path in files]
    assert PREVIOUS.migration in names
    for path in files[names.index(PREVIOUS.migration) + 1 :]:
        if path.stem not in CONTRACTS:
            found = contracts(path.read_text("utf-8"))
            assert found is None, (
                f"{path.name}: {found}: {PREVIOUS.version} serves on this schema, contract it later"
            )


def test_migrations_contraction_is_recognized() -> None:
    for text in (
        "ALTER TABLE a DROP COLUMN b;",
        "DROP TABLE a;",
        "ALTER TABLE a RENAME COLUMN b TO c;",
        "ALTER TABLE a ALTER COLUMN b TYPE bigint;",
        "ALTER TABLE a ADD COLUMN b text NOT NULL;",
    ):
        assert contracts(text), text
    for text in (
        "-- DROP TABLE a;\nCREATE TABLE b (c integer NOT NULL);",
        "ALTER TABLE a ADD COLUMN b text, ADD COLUMN c integer NOT NULL DEFAULT 0;",
        "CREATE INDEX a ON b (c); DROP INDEX d;",
    ):
        assert contracts(text) is None, text


@pytest.mark.parametrize(
    ("whole", "outcome", "reason"),
    [
        (True, pytest.fail.Exception, "names no commit of this repository"),
        (False, pytest.xfail.Exception, "git fetch --unshallow brings it"),
    ],
)
def test_release_before_absent_fails_where_the_history_is_whole(
    whole: bool, outcome: type[Exception], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previous_release, "_history_is_whole", lambda: whole)
    with pytest.raises(outcome, match=reason) as passed_over:
        unpacked(PREVIOUS._replace(commit="0" * 40), tmp_path / "tree")
    assert passed_over.type is outcome  # the one is a class of the other


class Sides:
    """A server of each version, and devices that go to either."""

    def __init__(
        self, dsn: str, servers: dict[str, Server], session: ClientSession, stack: AsyncExitStack
    ) -> None:
        self.dsn = dsn
        self.session = session
        self._servers = servers
        self._stack = stack

    def url(self, side: str) -> str:
        """Where a version listens."""
        return f"http://127.0.0.1:{self._servers[side].port}"

    async def device(self, side: str, name: str) -> Device:
        """Connect a device to a version, which closes the one that it had."""
        opening = connected(self.url(side), self.session, signed=token("acme", name))
        return await self._stack.enter_async_context(opening)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sides(
    previous: Version,
    databases: Databases,
    template: str,
    services: Services,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Sides]:
    """The release before this one and this one, on one database, Redis and folder of files."""
    async with AsyncExitStack() as stack:
        dsn = stack.enter_context(databases.copy(template))
        ensure_tenant(dsn, "acme")
        execute(
            dsn,
            "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy)"
            " SELECT tenant_id, 'ticket', 'manual' FROM tenants",
        )
        variables = site(dsn, services.redis_url, tmp_path_factory.mktemp("data"))
        servers = {"old": previous.server(variables), "new": HERE.server(variables)}
        await asyncio.gather(*(stack.enter_async_context(server) for server in servers.values()))
        session = await stack.enter_async_context(ClientSession())
        yield Sides(dsn, servers, session, stack)


on_both = pytest.mark.asyncio(loop_scope="module")
TURNS = [("old", "new"), ("new", "old")]


@on_both
async def test_both_versions_serve_the_same_devices_by_turns(sides: Sides) -> None:
    for first, second in TURNS:
        name = f"{first}-{second}"
        phone, tablet = await sides.device(first, "phone"), await sides.device(second, "tablet")
        await tablet.told("changes", "subscribe", cursor=None)
        [stored] = await phone.sync(f"key {name}", put(name, None, title="pump", place="north"))
        assert (stored["status"], stored["version"]) == ("applied", 1)
        live = await tablet.changes()
        assert [change["id"] for change in live["changes"]] == [name]

        # The answer was lost: the device comes back to the other version.
        again = await sides.device(second, "phone")
        key = {"key": f"key {name}", "items": [put(name, None, title="pump", place="north")]}
        replayed = await again.told("synced", "sync", **key)
        assert (replayed["replayed"], replayed["results"]) == (True, [stored])
        event = {"at": "2026-01-02T03:04:05Z", "data": {"metric_name": "m", "value": 1, "timestamp": "t"}}
        [appended] = await again.push(item("append", "metrics", name, **event))
        assert appended["status"] == "applied"

        # Both change the same version, each on its side.
        [other] = await tablet.push(item("patch", "task", name, base=1, data={"place": "gate"}))
        assert (other["status"], other["version"]) == ("applied", 2)
        phone = await sides.device(first, "phone")
        [unchanged] = await phone.push(item("append", "metrics", name, **event))
        assert unchanged["status"] == "unchanged"
        [merged] = await phone.push(item("patch", "task", name, base=1, data={"title": "pump 3"}))
        assert (merged["status"], merged["version"]) == ("resolved", 3)
        assert merged["data"] == {"title": "pump 3", "place": "gate"}
        for side in (first, second):
            page = await (await sides.device(side, "office")).pull()
            assert [one["data"] for one in page["changes"] if one["id"] == name] == [merged["data"]]

        # What waits for a person on one side is settled on the other.
        await phone.push(item("put", "ticket", name, base=None, data={"status": "NEW"}))
        await tablet.push(item("patch", "ticket", name, base=1, data={"note": "a"}))
        [held] = await phone.push(item("put", "ticket", name, base=7, data={"status": "NEW", "note": "b"}))
        assert held["status"] == "conflict", held
        again = await sides.device(second, "phone")
        [case] = (await again.told("conflicts", "conflicts"))["conflicts"]
        seen = {"conflict_id": case["conflict_id"], "version": case["server"]["version"], "choice": "client"}
        assert (await again.told("resolved", "resolve", **seen))["version"] == 3
    assert rows(sides.dsn, "SELECT count(*) FROM conflict_resolution_log WHERE outcome = 'open'") == [(0,)]


@on_both
async def test_upload_begun_by_one_version_is_finished_by_the_other(sides: Sides) -> None:
    content = photo(3000)
    for first, second in TURNS:
        phone = Uploader(sides.session, sides.url(first), token("acme", "phone"))
        path = await phone.begun(len(content), content[:1000])
        phone.url = sides.url(second)
        assert await phone.offset(path) == 1000
        assert (await phone.append(path, 1000, content[1000:2000])).status == 204
        phone.url = sides.url(first)
        assert (await phone.append(path, 2000, content[2000:])).status == 204
        for side in (first, second):
            phone.url = sides.url(side)
            assert await phone.file(path) == content


@on_both
async def test_smoke_of_this_version_goes_through_on_the_one_before(sides: Sides, tmp_path: Path) -> None:
    ended = await smoke_tokens(sides.url("old"), tmp_path, "a", "b")
    assert ended.status == 0, ended.out
