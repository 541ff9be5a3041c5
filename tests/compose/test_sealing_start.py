"""The start of a server checks master keys before anything is served."""

from __future__ import annotations

import os
from base64 import b64encode
from pathlib import Path

import pytest

from bench.harness.clusters import as_role
from compose.sealing import start
from compose.sealing.start import check_master_keys, sealing_findings, start_sealing
from engine.cache.key_ring import TenantKeyRing
from engine.runtime.settings import Settings
from engine.seal.master_keys import MasterKeyError, MasterKeys, master_key_id
from storage.postgres.commands import command_database
from storage.stores.keys.admin import PostgresKeyAdmin
from storage.stores.keys.wrapped import PostgresTenantKeys
from tests.compose.test_master_key import ONE, TEXT, TWO, given, key_file
from tests.harness.admin import add_tenants
from tests.harness.services import Serving, execute, rows

_DOMAINS = "SELECT domain FROM sealed_domains"
_EVENT = (
    "INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data, received_at)"
    " VALUES (1, 'voice', 'e1', 1, 1, 'phone', '{}', now())"
)
_OLDER = (
    "INSERT INTO server_processes (process, place, slot, sealing) VALUES (gen_random_uuid(), 'db9', 'x', 0)"
)
_KEYLESS = (
    "INSERT INTO server_processes (process, place, slot, sealing, master_keys)"
    " VALUES (gen_random_uuid(), 'db9', 'x', 1, '{%s}')"
)


class _Source:
    async def keys(self, _: str | None = None) -> MasterKeys:
        return MasterKeys([ONE])


async def _wrap_a_key(dsn: str) -> None:
    add_tenants(dsn, "acme")
    database = Serving(dsn, 1)
    try:
        ((number,),) = rows(dsn, "SELECT tenant_id FROM tenants")
        await TenantKeyRing(PostgresTenantKeys(database), _Source(), os.urandom).load_to_seal(
            [int(str(number))]
        )
    finally:
        await database.close()


async def _check(settings: Settings, dsn: str) -> None:
    async with command_database(dsn) as database:
        store = PostgresKeyAdmin(database)
        await check_master_keys(settings, store, await store.sealed_domains())


async def test_check_without_master_keys_is_fine_until_something_is_sealed(dsn: str) -> None:
    await _check(given(), dsn)
    execute(dsn, "INSERT INTO sealed_domains VALUES ('voice')")
    with pytest.raises(MasterKeyError, match="there is no master key"):
        await _check(given(), dsn)


async def test_check_lost_master_key_is_refused_by_its_id(dsn: str, tmp_path: Path) -> None:
    await _wrap_a_key(dsn)
    for wrong in (TWO, b"3" * 32):
        file = key_file(tmp_path / "key", wrong)
        with pytest.raises(MasterKeyError, match=f"{master_key_id(ONE)} is needed to open sealed data"):
            await _check(given(master_key_file=str(file)), dsn)
    with pytest.raises(MasterKeyError, match="there is no master key"):
        await _check(given(), dsn)
    await _check(given(master_key_file=str(key_file(tmp_path / "key", TWO, ONE))), dsn)


async def test_check_embedded_default_makes_a_key_and_never_in_place_of_a_lost_one(
    dsn: str, tmp_path: Path
) -> None:
    chosen = given(dsn="", data_dir=str(tmp_path))
    await _check(chosen, dsn)
    file = tmp_path / "master.key"
    assert file.exists()
    await _wrap_a_key(dsn)
    with pytest.raises(MasterKeyError, match=f"{master_key_id(ONE)} is needed"):
        await _check(chosen, dsn)
    file.unlink()
    with pytest.raises(MasterKeyError, match=r"master\.key: No such file or directory"):
        await _check(chosen, dsn)
    assert not file.exists()


async def test_start_new_database_with_a_master_key_seals_domains_with_personal_data(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    monkeypatch.setattr(start._log, "warning", lambda *_, **fields: said.append(fields), raising=False)
    add_tenants(dsn, "demo")
    embedded = given(dsn="", data_dir=str(tmp_path))
    for _ in range(2):
        await start_sealing(embedded, as_role(dsn, "serving"), as_role(dsn, "jobs"))
    assert rows(dsn, _DOMAINS) == [("voice",)]
    assert said == []
    assert rows(dsn, "SELECT event, target FROM audit_log WHERE event = 'domain_sealed'") == [
        ("domain_sealed", "voice")
    ]


async def test_start_sealed_new_database_with_another_master_key_is_refused(dsn: str) -> None:
    roles = as_role(dsn, "serving"), as_role(dsn, "jobs")
    await start_sealing(given(master_key=TEXT), *roles)
    other = b64encode(TWO).decode()
    with pytest.raises(MasterKeyError, match=f"{master_key_id(ONE)} is needed to open sealed data"):
        await start_sealing(given(master_key=other), *roles)
    await start_sealing(given(master_key=f"{other} {TEXT}"), *roles)


@pytest.mark.parametrize(
    ("master_key", "statement", "remedy"),
    [
        (TEXT, _EVENT, "run `run.py keys seal-domain voice`"),
        (TEXT, _OLDER, "run `run.py keys seal-domain voice`"),
        (TEXT, _KEYLESS % "", "run `run.py keys seal-domain voice`"),
        (TEXT, _KEYLESS % master_key_id(TWO), "run `run.py keys seal-domain voice`"),
        ("", "SELECT", "set sealing.master_key_file, then run `run.py keys seal-domain voice`"),
    ],
    ids=["stored", "older server", "server without a key", "server with another key", "no key"],
)
async def test_start_leaves_domains_plain_and_says_so(
    dsn: str, monkeypatch: pytest.MonkeyPatch, master_key: str, statement: str, remedy: str
) -> None:
    said: list[object] = []
    monkeypatch.setattr(start._log, "warning", lambda *_, **fields: said.append(fields), raising=False)
    add_tenants(dsn, "acme")
    execute(dsn, statement)
    await start_sealing(given(master_key=master_key), as_role(dsn, "serving"), as_role(dsn, "jobs"))
    assert rows(dsn, _DOMAINS) == []
    assert said == [{"domains": ["voice"], "remedy": remedy}]


async def test_findings_while_nothing_is_stored_say_that_the_next_start_seals(
    dsn: str, tmp_path: Path
) -> None:
    roles = as_role(dsn, "serving"), as_role(dsn, "jobs")
    for chosen in (given(master_key=TEXT), given(dsn="", data_dir=str(tmp_path))):
        (before,) = await sealing_findings(chosen, *roles)
        assert (before.level, before.remedy) == ("ok", "")
        assert before.found == "nothing is stored yet: the next start of `serve` seals voice"
    (without,) = await sealing_findings(given(), *roles)
    assert (without.level, without.found) == ("warning", "personal data of voice would be stored in plain")
    assert without.remedy == "set sealing.master_key_file: the next start of `serve` seals them then"
    add_tenants(dsn, "acme")
    execute(dsn, _EVENT)
    (stored,) = await sealing_findings(given(master_key=TEXT), *roles)
    assert (stored.level, stored.found) == ("warning", "personal data of voice are stored in plain")
