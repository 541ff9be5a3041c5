"""What a thief of a disk finds: raw WAL, a base backup, a dump and a log of statements of PostgreSQL."""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from psycopg2.extensions import parse_dsn

from bench.harness import sealed
from bench.harness.clusters import Cluster, migrate_for_roles
from storage.embedded.account import account_for
from storage.embedded.binaries import postgres_binaries
from storage.embedded.servers import Services
from tests.harness.in_process_server import new_tenants, start_server
from tests.harness.services import cluster, deployed, execute
from tests.harness.ws_device import put

_SEEDS = 10_000
_MESSAGE_ITEMS = 500
#: Of a page of WAL, and of its head, which is longer at the begin of a segment.
_PAGE_BYTES, _HEAD_BYTES, _FIRST_HEAD_BYTES = 8192, 24, 40
_SEED = re.compile(rb"seed-\d{5}-[0-9a-f]{16}")


def _found(files: Iterator[Path]) -> set[bytes]:
    """Return the seeds in files, as their bytes stand there."""
    found: set[bytes] = set()
    for file in files:
        if file.is_file():
            found.update(_SEED.findall(file.read_bytes()))
    return found


def _found_in_wal(directory: Path) -> set[bytes]:
    """Return the seeds in raw segments, also those that the head of a page stands in the middle of."""
    stream = bytearray()
    for segment in sorted(file for file in directory.iterdir() if file.is_file()):
        content = segment.read_bytes()
        for start in range(0, len(content), _PAGE_BYTES):
            stream += content[start + (_HEAD_BYTES if start else _FIRST_HEAD_BYTES) : start + _PAGE_BYTES]
    return set(_SEED.findall(stream))


def _dump(own: Cluster, place: Path) -> Path:
    binaries = postgres_binaries(place, account_for(place), None)
    named = parse_dsn(own.dsn)
    with (place / "dump.sql").open("wb") as file:
        subprocess.run(
            [binaries / "pg_dump", "--no-password", own.dsn],
            env={"PGPASSWORD": named["password"]},
            check=True,
            stdout=file,
        )
    return place / "dump.sql"


@pytest.mark.slow
@pytest.mark.parametrize("on", [False, True], ids=["control", "sealed"])
async def test_disk_of_postgresql_has_seeds_only_if_sealing_is_off(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, on: bool
) -> None:
    monkeypatch.setenv(sealed._KEY, "")  # taken back in the end
    sealed.seal_from_now()
    seeds = {f"seed-{number:05}-{secrets.token_hex(8)}" for number in range(_SEEDS)}
    async with AsyncExitStack() as stack:
        own = stack.enter_context(cluster("disk"))
        migrate_for_roles(own.dsn)
        execute(
            own.dsn,
            new_tenants("acme"),
            "ALTER SYSTEM SET log_statement = 'all'",
            "SELECT pg_reload_conf()",
        )
        if on:
            sealed.seal(own.dsn)
        sections = {
            "data": {"dir": str(tmp_path)},
            "sealing": {"master_key": sealed.variables()["TIDEMARK__SEALING__MASTER_KEY"]},
        }
        server = await start_server(deployed(own.dsn, services.redis_url), stack, sections)
        device = await server.device()
        waiting = sorted(seeds)
        for start in range(0, _SEEDS, _MESSAGE_ITEMS):
            part = waiting[start : start + _MESSAGE_ITEMS]
            results = await device.push(*[put(seed[5:10], note=seed) for seed in part])
            assert {result["status"] for result in results} == {"applied"}
        wal = _found_in_wal(own.data / "pg_wal")  # before a checkpoint gives segments free
        backup = own.copy("backup")
        places = {
            "WAL": wal,
            "base backup": _found((backup.data / "base").rglob("*")),
            "log": _found(iter([own.data.parent / "disk.log"])),
            "dump": _found(iter([_dump(own, tmp_path)])),
        }
    wanted = set() if on else {seed.encode() for seed in seeds}
    assert {place: len(found) for place, found in places.items()} == dict.fromkeys(places, len(wanted))
    assert all(found == wanted for found in places.values())
