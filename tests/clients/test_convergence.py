"""Devices with wrong clocks on a line that loses answers agree, and every edit is accounted for."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
from aiohttp import ClientSession
from click.testing import CliRunner

from bench.client.crew import DOMAINS, Crew, Member, Setting, crew
from bench.client.simulate import Access, simulate, status_table
from bench.faults.device import FaultsDevice
from bench.faults.history import History
from bench.faults.tables import read_tables
from bench.tools.convergence import EDITED, SKEW_S, converge, faults
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.services import execute
from tests.harness.ws_device import token

pytestmark = ON_SHARED


async def test_convergence_fifty_devices_agree_and_no_edit_missing(shared: Running, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")  # noqa: T201  # to run it again
    setting = Setting(shared.url, shared.token, tmp_path, seed, EDITED, 12, 40.0, skew_s=SKEW_S)
    report = await converge(50, 12.0, setting, shared.dsn, shared.tenant())
    assert report["faults"] == []
    assert report["edits"] == sum(report["outcomes"].values()) > 100
    assert report["answers_lost"] > 0


async def _worked(working: Crew, name: str) -> None:
    await working.catch_up(20)
    for member in working.members:
        member.device.edit("journal", name, "patch", {member.name: 1})
        member.made += 1
    assert await working.converge(20)


async def test_convergence_check_missing_edit_found(shared: Running, tmp_path: Path) -> None:
    history, tenant = History(), shared.tenant()
    setting = Setting(shared.url, shared.token, tmp_path, 1, DOMAINS, 4, 60.0)
    setting = setting._replace(make=partial(FaultsDevice, history, tenant, None))
    async with crew({"one": setting, "two": setting}) as working:
        await _worked(working, "a")
        tables = read_tables(shared.dsn, [tenant])
        assert faults(working, history, tables) == []
        where = tenant, "journal", "a"
        tables.records[where] = tables.records[where]._replace(version=3)
        found = faults(working, history, tables)
        wrong = f"{'/'.join(where)}: version 3 was written by no acknowledged item"
        assert any(fault.startswith(wrong) for fault in found)
        assert any("holds other records" in fault for fault in found)
        tables = read_tables(shared.dsn, [tenant])
        tables.counts["settled changes"].clear()
        assert any(
            "1 settled changes as the device knows, 0 in" in fault
            for fault in faults(working, history, tables)
        )
        tables = read_tables(shared.dsn, [tenant])
        tables.counts["held changes"][tenant, "one", "note", "a"] += 1
        assert any(
            "0 held changes as the device knows, 1 in" in fault for fault in faults(working, history, tables)
        )
        working.members[0].made += 1
        tables = read_tables(shared.dsn, [tenant])
        assert faults(working, history, tables) == ["one made 2 edits and was told of 1"]


async def test_convergence_check_replica_behind_is_no_agreement(shared: Running, tmp_path: Path) -> None:
    setting = Setting(shared.url, shared.token, tmp_path, 1, DOMAINS, 4, 60.0)
    async with crew({"one": setting, "two": setting}) as working:
        await _worked(working, "a")
        execute(shared.dsn, f"UPDATE records SET data = '{{}}' WHERE tenant_id = {_tenant(shared)}")
        assert not await working.converge(0.5)


def _tenant(shared: Running) -> str:
    return f"(SELECT tenant_id FROM tenants WHERE name = '{shared.tenant()}')"


def _signed(tenant: str) -> Access:
    return Access("http://127.0.0.1:9", lambda _, device: token(tenant, device))


async def test_simulate_crew_shown_converging(shared: Running) -> None:
    arguments = ["--tenant", "x", "--device", "d", "--devices", "3", "--offline-for", "0.3"]
    arguments += ["--duration", "0.6"]
    arguments += ["--edits-per-minute", "600", "--seed", "5", "--url", shared.url, "--json"]
    status, out, err = await _command(arguments, shared.tenant())
    summary = msgspec.json.decode(out[out.index("{\n") :])  # the server of this process may log before it
    assert (status, summary["converged"], summary["waiting"]) == (0, True, 0)
    assert summary["made"] == sum(summary["outcomes"].values()) > 0
    assert "of 3 online" in err


async def test_simulate_without_a_server_names_the_remedy() -> None:
    status, out, err = await _command(["--tenant", "x", "--device", "d"], "acme")
    assert (status, out) == (1, "")
    assert "start `run.py serve`, or give --url" in err


async def _command(arguments: list[str], tenant: str) -> tuple[int, str, str]:
    run = partial(CliRunner().invoke, simulate, arguments, obj=lambda *_: _signed(tenant))
    result = await asyncio.to_thread(run)
    return result.exit_code, result.stdout, result.stderr


async def test_progress_table_shows_as_many_devices_as_fit(tmp_path: Path) -> None:
    setting = Setting("", str, tmp_path, 1, DOMAINS, 4, 60.0)
    members = [Member(f"d{number}", setting, cast(ClientSession, None)) for number in range(9)]
    lines = status_table(members, 6)
    assert [line.split()[0] for line in lines] == ["DEVICE", "d0", "d1", "d2", "all"]
    for member in members:
        member.store.close()
