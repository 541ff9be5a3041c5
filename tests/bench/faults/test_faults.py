"""Scenario ``faults`` small, on a real server of two workers; and what it does to lines and devices."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import cast

import msgspec
import pytest
from aiohttp import ClientSession
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.cli import bench
from bench.client.crew import DOMAINS, Member, Setting
from bench.faults import cell, device, inject, scenario
from bench.faults.history import Answered, Event, Fault, Joined, Paged
from bench.faults.inject import FAULTS, crash_postgres, cut_lines, end_connections
from bench.faults.tables import Tables, read_tables
from bench.load.proxy import Chances, proxied
from storage.embedded.servers import Services
from tests.harness.services import data_dir


@pytest.fixture
def home(services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The benchmark's data directory, where the servers' account may pass; ``services`` keeps it short."""
    place = data_dir(services) / tmp_path.name
    monkeypatch.setenv("TIDEMARK__DATA__DIR", str(place))
    monkeypatch.setattr(cell, "DEVICES", 8)
    monkeypatch.setattr(cell, "PER_S", 10.0)
    monkeypatch.setattr(scenario, "CALM_S", (0.1, 0.2))
    monkeypatch.setattr(cell, "_STOPPED_S", 0.3)
    monkeypatch.setattr(device, "_THOUSAND", 100)
    monkeypatch.setitem(device.HARMS, "delayed", 5)
    monkeypatch.setitem(device.HARMS, "doubled", 5)
    monkeypatch.setattr(inject, "_AWAY_S", (0.0, 0.1))
    monkeypatch.setattr(inject, "_CUTTING_S", 0.3)
    cheap = {
        "cut": cut_lines,
        "end": end_connections,
        "crash": crash_postgres,
    }
    monkeypatch.setattr(scenario, "FAULTS", cheap)
    return place


def run_faults(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    options = ("--scenario", "faults", "--json", str(tmp_path / "r.json"), *arguments)
    result = CliRunner().invoke(bench, options)
    return result.exit_code, result.output


def test_faults_lose_nothing_and_write_the_history(home: Path, tmp_path: Path) -> None:
    status, text = run_faults(tmp_path, "--rounds", "3", "--html", str(tmp_path / "r.html"))
    assert status == 0, text
    (report,) = msgspec.json.decode((tmp_path / "r.json").read_bytes())["reports"]
    assert report["audit"]["items"] > 20
    names = [figure["name"].rpartition(": ")[2] for figure in report["figures"]]
    assert sorted(names[:3]) == ["crash", "cut", "end"]
    assert names[3:] == [
        "behind a stopped worker",
        "a policy in force",
        "a policy in force without Redis",
        "connections to PostgreSQL",
    ]
    (wrong,) = report["bars"]
    assert (wrong["value"], wrong["met"]) == (0, True)
    assert re.fullmatch(r"syncs: \d+ delayed, \d+ doubled, \d+ dropped, \d+ garbled", wrong["beside"])
    lines = (tmp_path / "r.json.history.jsonl").read_bytes()
    history = msgspec.json.Decoder(Event).decode_lines(lines)
    assert [one.phase for one in history if isinstance(one, Fault)] == ["begins", "over", "answered"] * 3
    assert any(isinstance(event, Answered) for event in history)
    assert (
        len({one.device for one in history if isinstance(one, Paged) and one.feed == "whole"})
        == 8 + cell.REFERENCES
    )
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_faults_of_two_cells_at_once_lose_nothing_and_stay_apart(home: Path, tmp_path: Path) -> None:
    """Tenants, devices and records of both have the same names."""
    status, text = run_faults(tmp_path, "--rounds", "3", "--cells", "2")
    assert status == 0, text
    (report,) = msgspec.json.decode((tmp_path / "r.json").read_bytes())["reports"]
    found = "lost, applied twice or otherwise wrong"
    assert {bar["name"]: bar["value"] for bar in report["bars"]} == {
        f"cell_a: {found}": 0,
        f"cell_b: {found}": 0,
    }
    assert {figure["beside"].split(" took")[0] for figure in report["figures"][:3]} == {
        "the fault in cell_a",
        "the fault in cell_b",
    }
    decode = msgspec.json.Decoder(Event).decode_lines
    histories = [
        decode((tmp_path / f"r.json.history.{name}.jsonl").read_bytes()) for name in ("cell_a", "cell_b")
    ]
    told = [{one.device: one.tenant for one in events if isinstance(one, Joined)} for events in histories]
    assert told[0].keys() == told[1].keys()
    assert {*told[0].values()} == {f"cell_a/{tenant}" for tenant in cell.TENANTS}
    pages = [[one for one in events if isinstance(one, Paged)] for events in histories]
    ids = [{change.id for page in own for change in page.changes} for own in pages]
    assert ids[0] & ids[1]
    assert list(home.iterdir()) == []


def test_faults_in_cells_of_another_scenario_are_refused() -> None:
    result = CliRunner().invoke(bench, ["--scenario", "limits", "--cells", "2"])
    assert result.exit_code == 2
    assert "leave --cells out" in result.output


def test_faults_in_cells_beside_the_cell_of_the_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMARK__POSTGRES__SCHEMA", "north")
    status, text = run_faults(tmp_path, "--cells", "2")
    assert status == 2
    assert "leave postgres.schema empty" in text


@pytest.mark.usefixtures("home")
def test_faults_found_are_exit_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_rounds(*_: object) -> None:
        pass

    def forgetful(dsn: str, tenants: tuple[str, ...], prefix: str) -> Tables:
        tables = read_tables(dsn, tenants, prefix)
        tables.counters[f"{prefix}fault-b"] += 1
        return tables

    monkeypatch.setattr(cell, "read_tables", forgetful)
    monkeypatch.setattr(scenario._Run, "rounds", no_rounds)
    status, text = run_faults(tmp_path, "--rounds", "1")
    assert status == 1, text
    assert "was acknowledged to nobody" in text


def test_faults_leave_a_server_that_runs_already_alone(tmp_path: Path) -> None:
    status, text = run_faults(tmp_path, "--url", "http://127.0.0.1:1")
    assert status == 2
    assert "leave --url out" in text


async def test_proxy_cuts_in_the_middle() -> None:
    got = bytearray()
    ended = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.read())
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, proxied("127.0.0.1", port, Random(1), Chances(cut=1.0)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"half of this")
        assert await reader.read() == b""
        await ended.wait()
        assert bytes(got) == b"half o"
        assert proxy.cuts == 1
        writer.close()
        await writer.wait_closed()


def test_workload_seed_decides_what_devices_send(tmp_path: Path) -> None:
    def drawn(seed: int, name: str) -> list[tuple[object, ...]]:
        (tmp_path / name).mkdir()
        setting = Setting("", str, tmp_path / name, seed, DOMAINS, 4, 60.0, tenant="t")
        member = Member("d", setting, cast(ClientSession, None))
        for _ in range(200):
            member.edit()
        message = member.store.message(200, 1 << 20, 1 << 20)
        member.store.close()
        assert message is not None
        made = [msgspec.json.decode(item) for item in message.items]
        assert all(one["data"]["tenant"] == "t" for one in made if one["op"] == "put")
        return [(one["domain"], one["id"].partition("-")[2], one["op"], one.get("data")) for one in made]

    assert drawn(1, "a") == drawn(1, "b") != drawn(2, "c")
    assert {op for _, _, op, _ in drawn(1, "d")} == {"put", "patch", "delete", "append"}


@given(st.integers(0, 99), st.integers(1, 50))
def test_harms_of_each_thousand_syncs_of_all_devices_are_the_shares(seed: int, devices: int) -> None:
    of_device = [device.harms(seed, index, devices) for index in range(devices)]
    for first in (0, 1000):
        found = Counter(next(of_device[place % devices]) for place in range(first, first + 1000))
        assert found.pop("") == 1000 - sum(device.HARMS.values())
        assert found == device.HARMS


def test_order_has_every_fault_once_before_one_comes_again() -> None:
    names = scenario.order(Random(3), len(FAULTS) * 2)
    assert sorted(names[: len(FAULTS)]) == sorted(names[len(FAULTS) :]) == sorted(FAULTS)
    assert names == scenario.order(Random(3), len(FAULTS) * 2) != scenario.order(Random(4), len(FAULTS) * 2)
