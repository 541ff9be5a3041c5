"""The scenarios from the command line to their report, small, on real servers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from bench.cli import AT_URL, SCENARIOS, bench
from bench.harness import load_run
from bench.harness.audit import syncs_of
from bench.harness.environment import BenchError, read_settings, secret_of
from bench.harness.load_run import Target, run_tasks
from bench.harness.server import Server
from bench.harness.stage import Options, add_tenants, fill
from bench.live import scenario as live
from bench.overload import scenario as overload
from bench.report.results import Bar, Report, Row
from bench.report.summary import row_of
from bench.scenarios import concurrent, limits, scaling
from bench.uploads import criteria
from bench.uploads import scenario as uploads
from engine.runtime.settings import SettingsError
from storage.embedded.servers import Services
from storage.postgres.display_names import database_name
from tests.harness.in_process_server import Serve
from tests.harness.services import data_dir, rows
from tests.harness.ws_device import SECRET

TENANTS = ["acme", "globex", "initech"]
OWN = sorted({*SCENARIOS} - {*AT_URL})


@pytest.fixture
def home(services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The benchmark's data directory, where the servers' account may pass; ``services`` keeps it short."""
    place = data_dir(services) / tmp_path.name
    monkeypatch.setenv("TIDEMARK__DATA__DIR", str(place))
    return place


def faultless(row: Row) -> bool:
    return not row.lost and (row.audit is None or not row.audit.fault_count)


def run_bench(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(bench, arguments)
    return result.exit_code, result.output


def test_concurrent_measures_audits_and_reports(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("P50_MS", "P95_MS", "P99_MS"):
        monkeypatch.setattr(concurrent, name, 60_000.0)
    monkeypatch.setattr(concurrent, "_REFERENCE_S", 0.5)
    status, text = run_bench(
        *("--connections", "5", "--tenants", "2", "--rate", "100", "--duration", "1", "--rounds", "2"),
        *("--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")),
    )
    assert status == 0, text
    whole = msgspec.json.decode((tmp_path / "r.json").read_bytes())
    (report,) = whole["reports"]
    rows_by_name = {row["name"]: row for row in report["rows"]}
    assert list(rows_by_name) == ["round 1", "round 2", "c at 5, round 1", "product at 5, round 1"]
    first = rows_by_name["round 1"]
    assert first["audit"]["items"] == first["sent"] > 50
    assert first["cpu_ms"].keys() == {"generator", "server", "postgres"}
    assert all(spent > 0 for spent in first["cpu_ms"].values())
    assert [bar["name"] for bar in report["bars"] if not bar["met"]] == []
    figures = {figure["name"]: figure["value"] for figure in report["figures"]}
    assert "product as a ratio of (c) at 5" in figures
    assert figures["success"] == 100
    assert figures["policies read from memory"] > 90
    assert figures["connections to PostgreSQL"] <= 8
    assert figures["requests to PostgreSQL"] > 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(("limit_ms", "expected"), [(1.0, 1), (3.0, 0)])
def test_bench_missed_bar_is_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, limit_ms: float, expected: int
) -> None:
    async def scenario(_: Options) -> Report:
        bars = [Bar("p50", 2.0, "at most", limit_ms, "ms")]
        return Report(scenario="concurrent", work="", bars=bars)

    monkeypatch.setitem(SCENARIOS, "concurrent", scenario)
    status, text = run_bench("--scenario", "concurrent")
    assert status == expected
    assert ("MISSED  p50" in text) is bool(expected)


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_concurrent_filled_and_empty_go_by_turns() -> None:
    _, text = run_bench(
        *("--connections", "3", "--tenants", "3", "--rate", "50", "--duration", "1"),
        *("--rounds", "2", "--fill", "900"),
    )
    names = [line.split("  ")[0] for line in text.splitlines() if ", round " in line and "/3 in" in line]
    assert names == ["empty, round 1", "filled, round 1", "filled, round 2", "empty, round 2"]
    assert "p95 filled over p95 empty" in text
    assert "p50, 900 records" in text


@pytest.mark.slow
@pytest.mark.usefixtures("home")
async def test_limits_measure_all_three_and_idle_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SIZES", (1, 4))
    monkeypatch.setattr(limits, "TABLE_A", {1: 1, 4: 1})
    monkeypatch.setattr(limits, "IDLE_CONNECTIONS", 30)
    monkeypatch.setattr(limits, "IDLE_KIB", 1_000_000.0)
    monkeypatch.setattr(limits, "_IDLE_S", 0.2)
    monkeypatch.setattr(load_run, "WARMUP_S", 0.1)
    report = await limits.limits(options(rounds=1, duration_s=0.3))
    assert report.passed
    figures = {figure.name: figure.value for figure in report.figures}
    for size in (1, 4):
        assert figures[f"(a) decode and acknowledge at {size}"] > 0
        assert figures[f"(b) group commit alone at {size}"] > 0
        assert figures[f"product as a ratio of (c) at {size}"] == pytest.approx(
            figures[f"product at {size}"] / figures[f"(c) simplest durable pipeline at {size}"]
        )
    assert figures["idle subscribed connection without compression"] > 0
    assert "idle subscribed connection with compression" in figures
    audits = [row.audit for row in report.rows if row.name.startswith("product")]
    assert [audit is not None and audit.fault_count for audit in audits] == [0, 0]
    assert all(faultless(row) for row in report.rows)


async def test_concurrent_measures_a_server_that_runs_already(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await serve(limits={"messages_per_minute": 1_000_000})
    monkeypatch.setenv("TIDEMARK__POSTGRES__DSN", server.dsn)
    monkeypatch.setenv("TIDEMARK__AUTH__SECRET", SECRET.decode())
    report = await concurrent.concurrent(options(url=server.url))
    (row,) = report.rows
    assert row.connected == 3
    assert faultless(row)
    assert row.audit is not None
    assert row.audit.items == row.sent > 0
    assert row.cpu_ms.keys() == {"generator"}
    assert f"database: {database_name(server.dsn)}\n" in capsys.readouterr().err  # it has new tenants now


@pytest.mark.slow
@pytest.mark.usefixtures("home")
async def test_overload_climbs_comes_back_and_has_a_quiet_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "_UNDER_WAY", 8)
    monkeypatch.setattr(overload, "_WARMUP_S", 0.1)
    monkeypatch.setattr(overload, "_AFTER_S", 0.3)
    report = await overload.overload(options(connections=8, duration_s=0.25, rounds=1))
    assert [(row.name, row.times) for row in report.rows] == [
        ("capacity", None),
        ("0.5 times", 0.5),
        ("1 times", 1.0),
        ("2 times", 2.0),
        ("4 times", 4.0),
        ("normal before", None),
        ("10 times", 10.0),
        ("normal after", None),
        *((f"{name}, round 1", None) for name in ("quiet alone", "quiet beside", "flood of 4 times")),
        ("capacity again", None),
    ]
    assert report.audit is not None
    assert report.audit.faults == []
    assert report.audit.items > 0
    assert all(row.rss_peak_mib for row in report.rows)
    assert all({"generator", "server", "postgres"} <= row.cpus.keys() for row in report.rows)
    assert report.rows[6].windows
    assert {bar.name for bar in report.bars} >= {
        "of each load at least offered",
        "syncs of the quiet tenant refused beside a flood",
    }


async def test_overload_of_a_server_that_runs_already(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await serve(limits={"messages_per_minute": 1_000_000})
    monkeypatch.setenv("TIDEMARK__POSTGRES__DSN", server.dsn)
    monkeypatch.setenv("TIDEMARK__AUTH__SECRET", SECRET.decode())
    monkeypatch.setattr(overload, "_UNDER_WAY", 4)
    monkeypatch.setattr(overload, "_WARMUP_S", 0.1)
    monkeypatch.setattr(overload, "_AFTER_S", 0.3)
    report = await overload.overload(options(connections=4, duration_s=0.2, rounds=1, url=server.url))
    assert report.audit is not None
    assert report.audit.faults == []
    assert {row.rss_peak_mib for row in report.rows} == {None}
    assert "CPU and memory of a server that was not started here are not measured" in report.notes


@pytest.mark.slow
@pytest.mark.usefixtures("home")
async def test_concurrent_measures_each_of_two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent, "_REFERENCE_S", 0.2)
    report = await concurrent.concurrent(options(connections=8, workers=2, saturate=True, duration_s=3.0))
    row = report.rows[0]
    assert faultless(row)
    assert len(row.worker_cpu_ms) == 2
    assert all(spent > 0 for spent in row.worker_cpu_ms)
    assert row.cpu_ms["server"] >= sum(row.worker_cpu_ms)
    assert " and 2 workers, closed loop" in report.work


@pytest.mark.slow
@pytest.mark.usefixtures("home")
async def test_scaling_goes_by_turns_over_one_two_and_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "MANY", 3)
    monkeypatch.setattr(load_run, "WARMUP_S", 0.1)
    turns = [msgspec.structs.replace(turn, workers=min(turn.workers, 3)) for turn in scaling.TURNS]
    monkeypatch.setattr(scaling, "TURNS", tuple(turns))
    report = await scaling.scaling(options(connections=12, duration_s=0.3, rounds=1))
    names = [row.name.rpartition(", ")[0] for row in report.rows]
    assert names == [turn.name for turn in turns]
    assert [len(row.worker_cpu_ms) for row in report.rows] == [0, 2, 2, 3, 0, 2]
    assert all(faultless(row) for row in report.rows)
    assert {bar.name for bar in report.bars} >= {
        "2 workers over 1, saturated",
        "one tenant on 2 workers, over many tenants",
        "8 workers over 2, saturated",
        "p95 of 2 workers, over 1",
    }


@pytest.mark.usefixtures("home")
async def test_live_delivers_to_another_worker_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_run, "WARMUP_S", 0.1)
    for name, value in (("WIDE", 4), ("DENSE", 2), ("PUSHERS", 4)):
        monkeypatch.setattr(live, name, value)
    for name in ("FROM_ACK_P95_MS", "SYNC_RATIO", "MEMORY_RATIO"):
        monkeypatch.setattr(live, name, 60_000.0)
    report = await live.live(options(connections=8, rounds=1))
    assert [bar.name for bar in report.bars if not bar.met] == []
    alone, wide, dense = report.rows
    assert all(faultless(row) and row.sent for row in report.rows)
    assert alone.cpu_ms.keys() == {"generator", "server", "postgres"}
    assert {"subscribers 1", "subscribers 2"} < wide.cpu_ms.keys()
    figures = {figure.name: figure.value for figure in report.figures}
    assert figures["p95 from acknowledgement to subscriber, over 4 tenants"] > 0
    assert figures["delivered, over 4 tenants"] > 0
    # Each of four subscribers of a tenant gets all of it.
    assert figures["delivered, over 2 tenants"] > 2 * dense.stored_per_s


@pytest.mark.slow
@pytest.mark.usefixtures("home")
async def test_connections_are_idle_but_for_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PUSHERS", 4)
    monkeypatch.setattr(load_run, "WARMUP_S", 0.1)
    for name in ("P95_MS", "IDLE_KIB"):
        monkeypatch.setattr(live, name, 60_000.0)
    report = await live.connections(options(connections=90, duration_s=1.0))
    assert [bar.name for bar in report.bars if not bar.met] == []
    (row,) = report.rows
    assert faultless(row)
    figures = {figure.name: figure for figure in report.figures}
    assert figures["heartbeats"].value >= 1
    assert figures["connections opened and subscribed"].value > 0


@pytest.mark.slow
@pytest.mark.usefixtures("home")
async def test_uploads_take_turns_with_others_and_go_on_beside_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    sizes = {"UPLOADERS": 3, "FILE_BYTES": 100_000, "CHUNK_BYTES": 40_000, "WARMUP_BYTES": 50_000}
    monkeypatch.setattr(load_run, "WARMUP_S", 0.1)
    for name, value in sizes.items():
        monkeypatch.setattr(uploads, name, value)
    for name, bound in {"PLAIN_RATIO": 0.0, "GROWN_MIB": 1e6, "SYNC_RATIO": 1e6}.items():
        monkeypatch.setattr(criteria, name, bound)
    report = await uploads.uploads(options(rounds=1))
    assert [transfer.name for transfer in report.transfers] == [
        *(f"{side}, round 1" for side in ("a", "product", "b")),
        "product beside syncs, round 1",
    ]
    assert [transfer.faults for transfer in report.transfers] == [[]] * 4
    assert all(transfer.whole == transfer.begun >= 3 for transfer in report.transfers)
    assert [transfer.chunks / transfer.begun for transfer in report.transfers] == [3] * 4
    assert [row.name for row in report.rows] == [
        "syncs alone, round 1",
        "syncs beside uploads, round 1",
    ]
    assert all(faultless(row) and row.sent for row in report.rows)
    assert "uploads" in report.rows[1].cpu_ms
    assert {bar.name for bar in report.bars if not bar.met} <= {"product over (b), by rounds"}


@pytest.mark.parametrize("arguments", [*(("--scenario", name) for name in OWN), ("--compare", "HEAD")])
def test_scenarios_with_servers_of_their_own_refuse_a_url(arguments: tuple[str, str]) -> None:
    status, text = run_bench(*arguments, "--url", "http://127.0.0.1:1")
    assert (status, "leave --url out" in text) == (2, True)


async def test_run_tasks_unreachable_server_is_an_error() -> None:
    async with Server(["-m", "bench.baselines.bare_server"], {}) as server:
        port = server.port
    target = Target(port=port, secret=SECRET.decode(), tenants=TENANTS)
    with pytest.raises(BenchError, match="0 of 2 devices connected: Connection refused"):
        await run_tasks("nobody", target, "closed", 2, 0.1)


async def test_simplest_pipeline_keeps_acknowledged_syncs(empty_dsn: str) -> None:
    async with Server(["-m", "bench.baselines.simplest_pipeline", empty_dsn], {}) as server:
        target = Target(port=server.port, secret=SECRET.decode(), tenants=TENANTS)
        run = await run_tasks("c", target, "closed", 7, 0.5)
    stored = [sync for sync in syncs_of(run).values() if sync.fate == "stored"]
    assert row_of(run).lost == 0
    (records,) = rows(empty_dsn, "SELECT count(*), sum(version) FROM records")
    assert records == (len({(sync.device, sync.record) for sync in stored}), len(stored))
    assert rows(empty_dsn, "SELECT count(*) FROM keys") == [(len(stored),)]
    assert len({*run.outcome.seqs}) == len(stored) > 0


async def test_bare_server_answers_every_sync() -> None:
    async with Server(["-m", "bench.baselines.bare_server"], {}) as server:
        target = Target(port=server.port, secret=SECRET.decode(), tenants=TENANTS)
        run = await run_tasks("a", target, "closed", 3, 0.2)
    assert len(run.outcome.seqs) == len(run.outcome.due_us) > 0
    assert row_of(run).lost == 0


def test_fill_keeps_counters_that_the_audit_needs(dsn: str) -> None:
    add_tenants(dsn, TENANTS)
    fill(dsn, TENANTS, 300)
    counted = rows(
        dsn,
        "SELECT count(*), sum(version)::int, min(c.seq), count(DISTINCT id), max(data ->> 'note')"
        " FROM records JOIN tenant_counters AS c USING (tenant_id) GROUP BY tenant_id",
    )
    assert counted == [(100, 100, 100, 100, "round 99")] * 3


def options(**changes: Any) -> Options:
    usual: dict[str, Any] = {
        "settings": read_settings(None, None),
        "config": None,
        "connections": 3,
        "rate_per_s": 100.0,
        "duration_s": 0.5,
        "tenants": 2,
        "rounds": None,
        "saturate": False,
        "fill_records": 0,
        "url": None,
    }
    return Options(**(usual | changes))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fill", "5", "--saturate"], "--fill compares latencies"),
        (["--fill", "5", "--url", "http://127.0.0.1:1"], "--fill compares latencies"),
        (["--scenario", "limits", "--url", "http://127.0.0.1:1"], "leave --url out"),
        (["--url", "https://example.org"], "http://HOST:PORT is required"),
        (["--scenario", "overload", "--url", "https://example.org"], "http://HOST:PORT is required"),
        (["--scenario", "overload", "--tenants", "1"], "give --tenants 2 at least"),
        (["--scenario", "downloads"], "is not one of 'concurrent'"),
        (["--config", "/no/such/file.toml"], "/no/such/file.toml: No such file or directory"),
        (["--connections", "0"], "--connections"),
        (["--workers", "0"], "a number from 1, or auto"),
        (["--workers", "2", "--url", "http://127.0.0.1:1"], "leave --workers out"),
        (["--scenario", "scaling", "--workers", "2"], "leave --workers out"),
    ],
)
def test_bench_mistake_is_a_sentence(arguments: list[str], sentence: str) -> None:
    status, text = run_bench(*arguments)
    assert status != 0
    assert sentence in text
    assert "Traceback" not in text


def test_bench_help_shows_an_example() -> None:
    status, text = run_bench("--help")
    assert status == 0
    assert "Examples:\n    run.py bench --quick\n" in text


def test_secret_of_finds_the_servers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = read_settings(None, str(tmp_path))
    with pytest.raises(BenchError, match="TIDEMARK__AUTH__SECRET"):
        secret_of(chosen)
    (tmp_path / "auth.secret").write_text("generated\n")
    assert secret_of(chosen) == "generated"
    file = tmp_path / "mine"
    file.write_text("mine\n")
    monkeypatch.setenv("TIDEMARK__AUTH__SECRET_FILE", str(file))
    assert secret_of(read_settings(None, str(tmp_path))) == "mine"
    monkeypatch.setenv("TIDEMARK__AUTH__SECRET", "set")
    assert secret_of(read_settings(None, str(tmp_path))) == "set"


def test_read_settings_names_a_file_that_is_no_toml(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[server")
    with pytest.raises(SettingsError, match=r"x\.toml"):
        read_settings(file, None)


async def test_server_that_cannot_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BenchError, match="ended before it listened"):
        async with Server(["-c", "raise SystemExit('its last words')"], {}):
            pass
    assert "its last words" in capfd.readouterr().err
