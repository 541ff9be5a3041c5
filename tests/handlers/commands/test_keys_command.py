"""``run.py keys``: what a script sees, and what the database holds then."""

from __future__ import annotations

import asyncio
import json
import os
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from compose.configuration import layers
from compose.sealing import admin
from compose.sealing.master_key import master_keys
from engine.cache.key_ring import TenantKeyRing
from engine.runtime.ports import StoreError
from engine.runtime.setting_layers import settings
from engine.seal.master_keys import MasterKeys, master_key_id
from storage.postgres.server_processes import ServerProcess
from storage.stores.keys import admin as key_admin
from storage.stores.keys.wrapped import PostgresTenantKeys
from tests.harness.admin import add_tenants
from tests.harness.commands import Ended, Run, command
from tests.harness.postgres_stalls import WAITS_FOR_LOCK, backend
from tests.harness.services import Serving, execute, rows

__all__ = ["command"]

ONE, TWO = b"1" * 32, b"2" * 32
ID_1, ID_2 = master_key_id(ONE), master_key_id(TWO)
PLACE = ("records.data", "voice", "r1", 1)
_NUMBERS = "SELECT name, tenant_id FROM tenants"
KEYS = "SELECT key_number, master_key_id, retired_at IS NOT NULL FROM tenant_keys ORDER BY tenant_id, 1"


class Source:
    """Master keys as a test gives them."""

    def __init__(self, *given: bytes) -> None:
        self.given = given

    async def keys(self, _: str | None = None) -> MasterKeys:
        """Return them."""
        return MasterKeys(self.given)


@pytest.fixture
def keys(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``keys`` with a file of master keys, and servers that are not waited for."""
    monkeypatch.setattr(admin, "_READ_AGAIN_S", 0.0)
    file = tmp_path / "master"

    async def run(*arguments: str, given: tuple[bytes, ...] = (ONE,)) -> Ended:
        file.write_bytes(b"\n".join(map(b64encode, given)))
        file.chmod(0o600)
        return await command("keys", *arguments, TIDEMARK__SEALING__MASTER_KEY_FILE=str(file))

    return run


async def sealed(dsn: str, *given: bytes) -> dict[str, bytes]:
    """Have two tenants seal a value each."""
    add_tenants(dsn, "acme", "globex")
    numbers = {str(name): int(str(number)) for name, number in rows(dsn, _NUMBERS)}
    database = Serving(dsn, 1)
    ring = TenantKeyRing(PostgresTenantKeys(database), Source(*given), os.urandom)
    try:
        await ring.load_to_seal(list(numbers.values()))
        return {name: ring.sealing_keys_of(number).seal(*PLACE, b"plain") for name, number in numbers.items()}
    finally:
        await database.close()


async def opened(dsn: str, values: dict[str, bytes], *given: bytes) -> set[bytes]:
    """Open the values with these master keys alone."""
    numbers = {str(name): int(str(number)) for name, number in rows(dsn, _NUMBERS)}
    database = Serving(dsn, 1)
    ring = TenantKeyRing(PostgresTenantKeys(database), Source(*given), os.urandom)
    try:
        await ring.load([numbers[name] for name in values])
        return {ring.keys_of(numbers[name]).open(*PLACE, value) for name, value in values.items()}
    finally:
        await database.close()


def process(dsn: str, *, sealing: int = 1, master: str = "", place: str = "db9, port 8080") -> None:
    """Have a server process use the database."""
    execute(
        dsn,
        "INSERT INTO server_processes (process, place, slot, sealing, master_keys)"
        f" VALUES (gen_random_uuid(), '{place}', 'x', {sealing}, '{{{master}}}')",
    )


async def test_keys_status_shows_master_keys_domains_and_tenants(keys: Run, dsn: str) -> None:
    await sealed(dsn, ONE)
    add_tenants(dsn, "silent")
    found = json.loads((await keys("status", "--json")).out)
    assert (found["given"], found["in_use"], found["domains"]) == ([ID_1], [ID_1], [])
    acme, _, silent = found["tenants"]
    assert (acme["tenant"], acme["key"], acme["master_key"], acme["old_keys"]) == ("acme", 1, ID_1, 0)
    assert acme["seals"] == 1 << 18
    assert (silent["key"], silent["seals"]) == (None, None)
    text = (await keys("status")).out
    assert f"master keys of the settings: {ID_1}\n" in text
    assert text.splitlines()[-1].split() == ["silent", "none", "yet", "0"]
    lost = await keys("status", given=(TWO,))
    assert f"MISSING: {ID_1}, without which sealed data cannot be read" in lost.out
    assert [lost.status, (await keys("status", "--json", given=(TWO,))).status] == [1, 1]
    assert (await keys("status", "--json")).status == 0


async def test_keys_rotate_master_wraps_all_keys_again_and_values_open(keys: Run, dsn: str) -> None:
    values = await sealed(dsn, ONE)
    refused = (await keys("rotate-master")).refusal()
    assert f"the master key {ID_1} is in use already: put a new one before it" in refused
    done = await keys("rotate-master", given=(TWO, ONE))
    assert done.out == f"2 keys are wrapped by the master key {ID_2} now\n"
    assert f"{ID_1} wraps nothing now" in done.err
    assert {row[1] for row in rows(dsn, KEYS)} == {ID_2}
    assert await opened(dsn, values, TWO) == {b"plain"}
    assert rows(dsn, "SELECT event, target, details->>'keys' FROM audit_log WHERE event LIKE 'master%'") == [
        ("master_key_rotated", ID_2, "2")
    ]
    assert f"{ID_2} is in use already" in (await keys("rotate-master", given=(TWO,))).refusal()


async def test_keys_rotate_master_that_was_cut_short_goes_on(
    keys: Run, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = await sealed(dsn, ONE)
    rewrap = key_admin.PostgresKeyAdmin.rewrap

    async def once(*arguments: Any) -> int:
        await rewrap(*arguments)
        raise StoreError("cut short")

    with monkeypatch.context() as cut:
        cut.setattr(key_admin, "_REWRAPPED_TENANTS", 1)
        cut.setattr(key_admin.PostgresKeyAdmin, "rewrap", once)
        assert "cut short" in (await keys("rotate-master", given=(TWO, ONE))).refusal()
    assert [row[1] for row in rows(dsn, KEYS)] == [ID_2, ID_1]
    assert await opened(dsn, values, ONE, TWO) == {b"plain"}
    done = json.loads((await keys("rotate-master", "--json", given=(TWO, ONE))).out)
    assert done == {"master_key": ID_2, "retired": [ID_1], "keys": 1}
    assert await opened(dsn, values, TWO) == {b"plain"}


async def test_keys_rotate_master_without_the_old_key_is_refused_and_changes_nothing(
    keys: Run, dsn: str
) -> None:
    await sealed(dsn, ONE)
    refused = (await keys("rotate-master", given=(TWO,))).refusal()
    assert f"the master key {ID_1} is needed to open sealed data, and given is {ID_2}" in refused
    assert {row[1] for row in rows(dsn, KEYS)} == {ID_1}


async def test_keys_rotate_master_retires_a_missing_key_that_wraps_nothing(keys: Run, dsn: str) -> None:
    await sealed(dsn, ONE)
    execute(dsn, f"INSERT INTO master_keys VALUES ('{ID_2}')")  # as an older version left it
    assert f"MISSING: {ID_2}" in (await keys("status")).out
    done = json.loads((await keys("rotate-master", "--json")).out)
    assert done == {"master_key": ID_1, "retired": [ID_2], "keys": 0}
    assert "MISSING" not in (await keys("status")).out
    assert {row[1] for row in rows(dsn, KEYS)} == {ID_1}


async def test_keys_rewrap_locks_keys_in_the_order_of_servers_that_lease_seals(dsn: str) -> None:
    await sealed(dsn, ONE)
    database = Serving(dsn, 2)
    lock = (
        "SELECT FROM tenant_keys JOIN tenants USING (tenant_id) WHERE name = '{}' FOR UPDATE OF tenant_keys"
    )
    try:
        store = key_admin.PostgresKeyAdmin(database)
        found = sorted(await store.wrapped_by_others(ID_2), key=lambda one: -one.tenant_id)
        async with database.transaction(tenants=[one.tenant_id for one in found]) as server:
            await server.query(lock.format("acme"))
            rewrapping = asyncio.create_task(store.rewrap([ID_2, ID_1], [(one, b"k") for one in found]))
            await backend(dsn, WAITS_FOR_LOCK)
            await server.query(lock.format("globex") + " NOWAIT")
        assert await rewrapping == 2
    finally:
        await database.close()


async def test_keys_rotate_master_while_a_server_lacks_the_new_key_is_refused(keys: Run, dsn: str) -> None:
    await sealed(dsn, ONE)
    process(dsn, master=ID_1)
    refused = (await keys("rotate-master", given=(TWO, ONE))).refusal()
    assert f"1 server processes do not have the master key {ID_2} yet, such as db9" in refused
    assert {row[1] for row in rows(dsn, KEYS)} == {ID_1}
    execute(dsn, f"UPDATE server_processes SET master_keys = '{{{ID_2},{ID_1}}}'")
    assert (await keys("rotate-master", given=(TWO, ONE))).status == 0


async def test_keys_rotate_master_twice_at_once_on_the_embedded_default_loses_no_key(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "_READ_AGAIN_S", 0.0)
    file = tmp_path / "master.key"
    file.write_bytes(b64encode(ONE))
    file.chmod(0o600)
    await sealed(dsn, ONE)
    chosen = settings(layers(None, {"data": {"dir": str(tmp_path)}}))
    database = Serving(dsn, 2)
    try:
        both = [admin.KeyAdmin(chosen, database).rotate_master(lambda _: None) for _ in range(2)]
        done = await asyncio.gather(*both, return_exceptions=True)
    finally:
        await database.close()
    assert sorted(type(one).__name__ for one in done) == ["MasterRotation", "RefusedError"]
    new, before = master_keys(chosen).ids
    assert before == ID_1
    assert {row[1] for row in rows(dsn, KEYS)} == {new}


async def test_keys_rotate_tenant_seals_with_a_new_key_and_asks_for_a_pass(keys: Run, dsn: str) -> None:
    values = await sealed(dsn, ONE)
    done = await keys("rotate-tenant", "--tenant", "acme")
    assert done.out == "acme seals with its key 2 now\n"
    assert rows(dsn, KEYS) == [(1, ID_1, True), (2, ID_1, False), (1, ID_1, False)]
    assert await opened(dsn, values, ONE) == {b"plain"}
    assert len(rows(dsn, "SELECT FROM reseal_passes WHERE wanted_at IS NOT NULL")) == 1
    (acme, globex) = json.loads((await keys("status", "--json")).out)["tenants"]
    assert (acme["old_keys"], acme["waits"], globex["waits"]) == (1, True, None)
    assert "there is no tenant nobody" in (await keys("rotate-tenant", "--tenant", "nobody")).refusal()


async def test_keys_rotate_tenant_cut_short_after_the_new_key_has_asked_for_a_pass(
    keys: Run, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sealed(dsn, ONE)
    replace = PostgresTenantKeys.replace

    async def once(*arguments: Any, **named: Any) -> bool:
        await replace(*arguments, **named)
        raise StoreError("cut short")

    monkeypatch.setattr(PostgresTenantKeys, "replace", once)
    assert "cut short" in (await keys("rotate-tenant", "--tenant", "acme")).refusal()
    assert (2, ID_1, False) in rows(dsn, KEYS)
    assert len(rows(dsn, "SELECT FROM reseal_passes WHERE wanted_at IS NOT NULL")) == 1


async def test_keys_seal_domain_is_switched_on_once_and_audited(keys: Run, dsn: str) -> None:
    add_tenants(dsn, "acme")
    assert (await keys("seal-domain", "voice")).out == "voice is sealed from now on\n"
    assert (await keys("seal-domain", "voice")).out.startswith("voice is sealed since 2")
    assert rows(dsn, "SELECT event, target FROM audit_log WHERE event LIKE 'domain%'") == [
        ("domain_sealed", "voice")
    ]
    (acme,) = json.loads((await keys("status", "--json")).out)["tenants"]
    assert acme["waits"] is True
    add_tenants(dsn, "later")  # all that it stores is sealed from the first
    assert [one["waits"] for one in json.loads((await keys("status", "--json")).out)["tenants"]][1] is None
    for domain in ("task", "nothing"):
        refused = (await keys("seal-domain", domain)).refusal()
        assert f"the domain {domain} names no pii fields" in refused


async def test_tenant_add_once_anything_is_sealed_makes_its_key_or_refuses(
    command: Run, dsn: str, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_bytes(b64encode(ONE))
    file.chmod(0o600)
    at = {"TIDEMARK__SEALING__MASTER_KEY_FILE": str(file)}
    await command("tenant", "add", "before", **at)
    assert rows(dsn, KEYS) == []
    await command("keys", "seal-domain", "voice", **at)
    await command("tenant", "add", "after", **at)
    assert rows(dsn, KEYS) == [(1, ID_1, False)]
    assert "there is no master key" in (await command("tenant", "add", "other")).refusal()
    file.write_bytes(b64encode(TWO))
    assert f"{ID_1} is needed to open" in (await command("tenant", "add", "other", **at)).refusal()
    assert rows(dsn, KEYS) == [(1, ID_1, False)]
    assert rows(dsn, "SELECT name FROM tenants ORDER BY name") == [("after",), ("before",)]


async def test_keys_seal_domain_without_a_master_key_is_refused(command: Run, dsn: str) -> None:
    assert "there is no master key" in (await command("keys", "seal-domain", "voice")).refusal()
    assert rows(dsn, "SELECT FROM sealed_domains") == []


async def test_keys_seal_domain_refuses_servers_of_an_older_version_now_and_later(
    keys: Run, dsn: str
) -> None:
    process(dsn, sealing=0, place="old1, port 8080")
    process(dsn, master=ID_1)
    refused = (await keys("seal-domain", "voice")).refusal()
    assert "a server of an older version uses this database (old1, port 8080)" in refused
    execute(dsn, "DELETE FROM server_processes WHERE sealing = 0")
    assert (await keys("seal-domain", "voice")).status == 0
    database = Serving(dsn, 1)
    try:
        await ServerProcess(database, 8080).record()
        with pytest.raises(StoreError):
            await database.execute(
                "INSERT INTO server_processes (process, place, slot) VALUES (gen_random_uuid(), 'old', 'x')"
            )
    finally:
        await database.close()


@pytest.mark.parametrize("others", ["", ID_2])
async def test_keys_seal_domain_server_without_the_master_key_is_refused(
    keys: Run, dsn: str, others: str
) -> None:
    process(dsn, master=ID_1)
    process(dsn, master=others, place="db8, port 8080")
    refused = (await keys("seal-domain", "voice")).refusal()
    assert f"1 server processes do not have the master key {ID_1} yet, such as db8, port 8080" in refused
    assert rows(dsn, "SELECT FROM sealed_domains") == []
    execute(dsn, f"UPDATE server_processes SET master_keys = '{{{ID_2},{ID_1}}}'")
    assert (await keys("seal-domain", "voice")).status == 0


async def test_keys_seal_domain_waits_for_a_server_that_starts(keys: Run, dsn: str) -> None:
    """A process of an older version that says that it starts, and has not committed, is waited for."""
    database = Serving(dsn, 1)
    transaction = await database.begin()
    try:
        await transaction.query(
            "INSERT INTO server_processes (process, place, slot) VALUES (gen_random_uuid(), 'old', 'x')"
        )
        sealing = asyncio.ensure_future(keys("seal-domain", "voice"))
        waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'server_processes'::regclass"
        async with asyncio.timeout(30):
            while True:
                if await asyncio.to_thread(rows, dsn, waiting):
                    break
                await asyncio.sleep(0.01)
        await transaction.commit()
        assert "a server of an older version uses this database (old)" in (await sealing).refusal()
    finally:
        await transaction.rollback()
        await database.close()


async def test_keys_status_and_job_name_what_is_plain_lost_or_cannot_be_opened(
    keys: Run, command: Run, dsn: str
) -> None:
    assert "not sealed, though they name pii fields: voice" in (await keys("status")).out
    await sealed(dsn, ONE)
    execute(
        dsn,
        "UPDATE tenants SET created_at = now() - interval '1 day'",
        "INSERT INTO sealed_domains VALUES ('voice', now() - interval '1 hour')",
        "INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data)"
        " SELECT tenant_id, 'voice', 'e1', 1, 1, 'phone', '\"AQAAAAk=\"' FROM tenants WHERE name = 'acme'",
    )
    done = await command("job", "reseal", TIDEMARK__SEALING__MASTER_KEY=b64encode(ONE).decode())
    assert done.status == 1
    assert "that cannot be opened, which were left as they are: 1; `run.py keys status` lists" in done.err
    execute(
        dsn,
        "DELETE FROM tenant_keys WHERE tenant_id = (SELECT tenant_id FROM tenants WHERE name = 'globex')",
    )
    verified = await keys("verify")
    assert verified.status == 1
    assert [line.split(maxsplit=2) for line in verified.out.splitlines()[1:]] == [
        ["acme", "1", "1"],
        ["globex", "0", "0"],
    ]
    assert "acme: sealed values that cannot be opened: 1 (events voice e1)" in verified.err
    assert "there is no tenant nobody" in (await keys("verify", "--tenant", "nobody")).refusal()
    status = await keys("status")
    assert "acme: sealed values that cannot be opened: 1 (events voice e1)" in status.err
    assert status.out.splitlines()[-1].split()[:2] == ["globex", "LOST"]
    assert status.out.splitlines()[-2].endswith(", 1 CANNOT BE OPENED")
    assert [status.status, (await keys("status", "--json")).status] == [1, 1]
    assert (
        "globex: keys missing from tenant_keys, without which what they sealed cannot be read: 1"
        in status.err
    )
    assert "not sealed" not in status.out
    execute(dsn, "DELETE FROM events")
    (healed,) = json.loads((await keys("verify", "--tenant", "acme", "--json")).out)
    assert healed["unreadable_values"] == 0
    assert "cannot be opened" not in (await keys("status")).err
    execute(dsn, "UPDATE tenants SET newest_key = 0 WHERE name = 'globex'")
    assert (await keys("status")).status == 0
