"""``bench --scenario peers``: pins, the generator for Parse Server, the count and the criteria.

The servers of others are not installed here: the scenario itself is run by hand.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import msgspec
import pytest
from aiohttp import web

from bench.harness.load_run import Run
from bench.load.plan import Outcome, Plan, Ready, Step
from bench.peers import scenario
from bench.peers.parse_generator import ParseGenerator
from bench.peers.stages import PEERS, judge_counts
from bench.report.results import Report, Row
from bench.report.statistics import Latency
from deploy.audit import verdict
from handlers.server import listening
from tests.harness.in_process_server import unbounded

FOLDER = Path(scenario.__file__).parent
LOCKS = sorted(FOLDER.glob("*/package-lock.json"))
REQUIREMENTS = sorted(FOLDER.glob("*/requirements.txt"))
PREFIX = "0a1b2c3d"


def test_peers_each_package_is_pinned_with_its_hash() -> None:
    texts = {path.parent.name: path.read_text("utf-8") for path in REQUIREMENTS}
    found = [verdict.of_hashes(texts, path.read_text("utf-8")).findings for path in LOCKS]
    assert found == [()] * len(LOCKS)
    folders = {path.parent.name for path in (*LOCKS, *REQUIREMENTS)}
    assert folders == {"tus", *(folder for _, folder in PEERS.values())}
    assert {"channels", "daphne", "django"} <= verdict.pinned(texts["channels"]).keys()


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.parent.name)
def test_peers_package_json_names_exact_versions_that_the_lock_has(path: Path) -> None:
    named = msgspec.json.decode(path.with_name("package.json").read_bytes())["dependencies"]
    packages = msgspec.json.decode(path.read_bytes())["packages"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in named} == named
    assert not any("resolved" in one for one in packages.values()), "leave the host of packages out"
    assert all(re.fullmatch(r"[\d.]+", version) for version in named.values())


# -- the load generator for Parse Server --------------------------------------------------------


async def pushed(status: int = 200, wrong: str = "") -> tuple[Outcome, list[Any]]:
    """Send saves to a stand-in that answers as Parse Server does, and return what it was sent, too."""
    asked: list[Any] = []
    versions: dict[str, int] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked.append((request.headers["X-Parse-Session-Token"], body))
        task, key = body["requests"]
        if task["method"] == "POST":
            name = task["body"]["objectId"]
            versions[name] = 1
            saved: dict[str, Any] = {"objectId": "another" if wrong == "id" else name}
        else:
            name = task["path"].rpartition("/")[2]
            versions[name] += 1
            saved = {
                "version": versions[name] + (wrong == "version"),
                "updatedAt": "2026-03-01T08:00:00.000Z",
            }
        answer = [{"success": saved}, {"success": {"objectId": key["body"]["objectId"]}}]
        return web.json_response(answer if status == 200 else {"code": 1}, status=status)

    app = web.Application()
    app.router.add_post("/parse/batch", handler)
    async with listening(app, "127.0.0.1", 0, unauthenticated=unbounded()) as (port, _):
        devices = [f"{PREFIX}-0", f"{PREFIX}-1"]
        plan = Plan(
            host="127.0.0.1",
            ports=[port] * 2,
            prefix=PREFIX,
            devices=devices,
            tokens=["u0:r:s0", "u1:r:s1"],
            steps=[Step("a", 150.0, 0.2)],
        )
        load = ParseGenerator(plan)
        assert (await load.connect()).connected == 2
        return await load.run(perf_counter()), asked


async def test_parse_generator_saves_task_and_key_in_one_transaction() -> None:
    outcome, asked = await pushed()
    assert {outcome.codes[code] for code in outcome.code} == {"synced"}
    assert (outcome.ended, len(asked)) == ({}, len(outcome.due_us))
    assert {session for session, _ in asked} == {"r:s0", "r:s1"}
    assert all(body["transaction"] and len(body["requests"]) == 2 for _, body in asked)
    keys = {body["requests"][1]["body"]["objectId"] for _, body in asked}
    assert keys == {f"{PREFIX}{number:08}" for number in range(len(asked))}
    methods = [body["requests"][0]["method"] for _, body in asked]
    assert methods.count("POST") == outcome.base.count(0)
    assert "PUT" in methods


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        ((500, ""), {"http_500"}),
        ((200, "id"), {"wrong_result"}),
        ((200, "version"), {"synced", "wrong_result"}),  # a new task's answer has no version
    ],
)
async def test_parse_generator_other_answer_is_no_success(answer: tuple[int, str], codes: set[str]) -> None:
    outcome, _ = await pushed(*answer)
    assert {outcome.codes[code] for code in outcome.code} == codes


# -- the count and the criteria -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "faults"),
    [
        ((2, 3, 3), []),
        ((3, 4, 4), []),  # the one without an answer may be there
        ((1, 3, 3), ["2 records were acknowledged, 1 are there"]),
        ((2, 2, 3), ["3 writes were acknowledged, 2 are there"]),
        ((2, 3, 5), ["3 keys were acknowledged, 5 are there"]),
    ],
)
def test_count_of_what_is_stored_finds_each_difference(
    counts: tuple[int, int, int], faults: list[str]
) -> None:
    plan = Plan(host="", ports=[1], prefix=PREFIX, devices=["d"], tokens=["t"], steps=[])
    outcome = Outcome(sent_us=[1, 2, 3, 4, -1], code=[1, 1, 1, 0, 0], base=[0, 0, 1, 0, 0])
    audit = judge_counts(Run(plan, ["t"], Ready(1, 0.0, {}), outcome), *counts)
    assert (audit.items, audit.records, audit.faults) == (3, counts[0], faults)


def row(loop: Literal["closed", "open"], per_s: float, p95_ms: float, cpu_ms: float) -> Row:
    return Row(
        name="a",
        loop=loop,
        asked=1,
        connected=1,
        connect_s=0.0,
        refusals={},
        stored_per_s=per_s,
        latency=Latency(p95_ms=p95_ms, max_ms=p95_ms),
        cpu_ms={"generator": 9.0, "server": cpu_ms / 2, "postgres": cpu_ms / 2},
        rss_peak_mib=100.0,
    )


@pytest.mark.parametrize(
    ("ours", "missed"),
    [
        ((12_000.0, 3.0, 0.10), []),
        ((11_000.0, 3.0, 0.10), ["throughput"]),
        ((12_000.0, 11.0, 0.10), ["p95 at equal load"]),
        ((12_000.0, 3.0, 0.20), ["CPU of a sync"]),
    ],
)
def test_criteria_are_about_the_deployment_that_is_replaced(
    ours: tuple[float, float, float], missed: list[str]
) -> None:
    report = Report(scenario="peers", work="")
    pairs: scenario.Pairs = defaultdict(list)
    others = {
        "channels": (200.0, 200.0, 6.0),
        "channels-threads": (300.0, 100.0, 3.0),  # the better of the two
        "parse": (9_000.0, 4.0, 0.2),
    }
    for name, theirs in others.items():
        for loop in ("closed", "open"):
            pairs[name, loop] = [(row(loop, *ours), row(loop, *theirs))] * 3
    report.rows = [one for pair in pairs["channels", "closed"] for one in pair]
    scenario.judge(report, pairs)
    assert [bar.name.split(",")[0] for bar in report.bars if not bar.met] == missed
    figures = {figure.name: figure.value for figure in report.figures}
    assert figures["throughput, product over parse"] == pytest.approx(ours[0] / 9_000)
    assert figures["CPU of a sync, product over channels"] == pytest.approx(ours[2] / 6)
