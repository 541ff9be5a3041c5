"""The devices of scenario ``faults`` whose messages go wrong, on a real server."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from bench.client.crew import DOMAINS, Setting, crew
from bench.faults import device
from bench.faults.history import Answered, History, Refused, Sent, only
from bench.faults.pipelining import PipeliningDevice
from bench.faults.tables import read_tables
from bench.tools.convergence import faults
from tests.harness.in_process_server import ON_SHARED, Running

pytestmark = ON_SHARED


@pytest.mark.parametrize("kind", [device.FaultsDevice, PipeliningDevice])
async def test_harmed_devices_meet_it_all_and_lose_no_edit(
    shared: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[device.FaultsDevice]
) -> None:
    changed = {"_DELAY_S": (0.0, 0.05), "_ANSWERS_LOST": 0.1, "_THOUSAND": 10}
    changed |= {"HARMS": {"delayed": 1, "doubled": 2, "dropped": 1, "garbled": 2}}
    for name, value in changed.items():
        monkeypatch.setattr(device, name, value)
    history, tenant = History(), shared.tenant()
    setting = Setting(shared.url, shared.token, tmp_path, 1, DOMAINS, 4, 1200.0, tenant=tenant)
    setting = setting._replace(make=partial(kind, history, tenant, (1, 0, 1)), unseen=0.2)

    def met_it_all() -> bool:
        lost = any(one.attempt > 1 for one in only(Sent, history.events))
        repeated = any(one.replayed for one in only(Answered, history.events))
        return lost and repeated and {one.code for one in only(Refused, history.events)} == {"malformed"}

    async with crew({"one": setting, "two": setting}) as working, asyncio.timeout(60):
        while not met_it_all():
            await working.work(0.5, lambda _: iter(()))
        assert await working.converge(30)
        assert all(history.harms[harm] for harm in device.HARMS)
        assert faults(working, history, read_tables(shared.dsn, [tenant])) == []
