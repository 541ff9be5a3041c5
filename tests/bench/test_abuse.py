"""The scenario ``abuse``: its attacks are what they say, it measures them, and its verdict follows."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.abuse.attacks import ATTACKS, Attacker
from bench.abuse.criteria import judge
from bench.abuse.scenario import abuse, measured_before
from bench.harness.environment import BenchError, read_settings
from bench.harness.product import Version
from bench.harness.stage import Options
from bench.report.html import html_of
from bench.report.results import Abuse, Felt, Report
from bench.report.statistics import Latency
from bench.report.text import text_of
from bench.report.written import as_json
from compose.configuration import VARIABLE
from engine.plan.context import MAX_FIELDS
from storage.embedded.servers import Services
from tests.harness.in_process_server import Serve
from tests.harness.services import data_dir
from tests.harness.ws_device import SECRET

KINDS = ("heartbeat", "sync", "pull")
PHASES = ["at rest", "one device", "ten devices", "sink of one", "sink of ten"]


def options(**changes: Any) -> Options:
    usual: dict[str, Any] = {
        "settings": read_settings(None, None),
        "config": None,
        "connections": 1,
        "rate_per_s": 1.0,
        "duration_s": 0.2,
        "tenants": 1,
        "rounds": None,
        "saturate": False,
        "fill_records": 0,
        "url": None,
    }
    return Options(**(usual | changes))


def phase(name: Any, ms: float, **changes: Any) -> Abuse:
    refused = changes.pop("refused", {})
    felt = Felt(**{kind: Latency(ms, ms, 10 * ms, 10 * ms) for kind in KINDS}, refused=refused)
    usual: dict[str, Any] = {"grown_mib": 1.0, "stretch_ms": 2.0, "share": 0.1, "loop": 0.1, "fullest": 0.5}
    return Abuse(attack="pongs", phase=name, others=felt, duration_s=1.0, window_s=1.0, **(usual | changes))


def judged(*phases: Abuse) -> Report:
    report = Report(scenario="abuse", work="w", abuses=list(phases))
    judge(report)
    return report


def missed(report: Report) -> list[str]:
    return [bar.name.partition(": ")[2] for bar in report.bars if not bar.met]


def test_judge_others_as_at_rest_passes() -> None:
    report = judged(phase("at rest", 2.0), phase("one device", 4.0), phase("ten devices", 3.0))
    assert len(report.bars) == 8
    assert report.passed


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (phase("one device", 4.1), ["others' p50 over that at rest"]),
        (phase("one device", 11.0), ["others' p50 over that at rest", "others' p99 above that at rest"]),
        (
            phase("one device", 2.0, refused={"overloaded": 1}),
            ["messages of others refused or not answered"],
        ),
        (phase("one device", 2.0, stretch_ms=61.0), ["the longest stretch of the loop"]),
        (phase("one device", 2.0, grown_mib=65.0), ["memory above calm"]),
        (phase("one device", 2.0, fullest=1.01), ["the fullest of the tenant's bounds"]),
    ],
)
def test_judge_one_phase_past_a_bar_misses_it(one: Abuse, expected: list[str]) -> None:
    calm = phase("at rest", 2.0)
    assert missed(judged(calm, one, phase("ten devices", 2.0))) == expected
    ten = msgspec.structs.replace(one, phase="ten devices")
    assert missed(judged(calm, phase("one device", 2.0), ten)) == expected
    sink = msgspec.structs.replace(one, phase="sink of one")
    assert missed(judged(calm, phase("one device", 2.0), sink)) == []


def test_judge_figures_that_could_not_be_read_have_no_bar() -> None:
    unread = {"grown_mib": None, "stretch_ms": None, "share": None, "loop": None, "fullest": None}
    report = judged(phase("at rest", 2.0), phase("one device", 2.0, **unread))
    assert len(report.bars) == 3
    assert "-" in text_of(report)


def test_report_of_attacks_stands_in_text_json_and_page() -> None:
    report = judged(
        phase("at rest", 2.0),
        phase("one device", 3.0, sent_bytes=1_500_000, ended={"closed": 7}, refused={"rate_limited": 2}),
    )
    text = text_of(report)
    assert "3.0/30.0" in text
    assert "pongs, one device: others refused: rate_limited 2; attackers' connections: closed 7" in text
    (told,) = msgspec.json.decode(as_json([report]))["reports"]
    assert [one["phase"] for one in told["abuses"]] == ["at rest", "one device"]
    assert "p99 of others&#x27; sync" in html_of([report]) or "p99 of others' sync" in html_of([report])


def test_attacks_deflated_messages_inflate_to_json_near_the_limit() -> None:
    for name in ("numbers", "inflating"):
        chunk = ATTACKS[name].chunk
        assert chunk is not None
        sent = chunk(Attacker("t", "h", "m"), 0)
        size = sent[1] & 0x7F
        start, size = (6, size) if size < 126 else (8, int.from_bytes(sent[2:4]))
        text = zlib.decompressobj(-15).decompress(sent[start : start + size] + b"\0\0\xff\xff")
        assert size < 2000
        assert 1_000_000 < len(text) < 1_048_576
        assert json.loads(text)["type"] in ("sync", "heartbeat")


@pytest.mark.parametrize("name", ["tokens", pytest.param("patches", marks=pytest.mark.slow)])
async def test_abuse_one_attack_is_measured_and_judged(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    server = await serve()
    monkeypatch.setenv("TIDEMARK__POSTGRES__DSN", server.dsn)
    monkeypatch.setenv("TIDEMARK__AUTH__SECRET", SECRET.decode())
    report = await abuse(options(url=server.url, attacks=(name,)))
    assert [(one.attack, one.phase) for one in report.abuses] == [(name, phase) for phase in PHASES]
    rest, one, ten, *sinks = report.abuses
    assert all(getattr(each.others, kind).p50_ms for each in report.abuses for kind in KINDS)
    assert rest.sent_bytes == 0
    assert min(each.sent_bytes for each in (one, ten, *sinks)) > 0
    assert [each.unprepared for each in (one, ten)] == [{}, {}]
    assert {bar.name.partition(":")[0] for bar in report.bars} == {name}
    assert len(report.bars) == 8
    assert one.loop is not None
    assert one.charged is not None


def test_judge_loop_time_beyond_the_burst_counts() -> None:
    calm = phase("at rest", 2.0)
    within = judged(calm, phase("one device", 2.0, loop=0.29), phase("ten devices", 2.0, loop=0.69))
    assert within.passed
    beyond = judged(calm, phase("one device", 2.0, loop=0.31), phase("ten devices", 2.0, loop=0.71))
    assert missed(beyond) == [
        "the loop's time that one device took",
        "the loop's time that ten devices took",
    ]
    # Of half of the time, in which it had a core, these 0.15 are 30 %, of which 10 may come at once.
    assert missed(judged(calm, phase("one device", 2.0, loop=0.25, queued=0.5))) == [
        "the loop's time that one device took"
    ]


def test_judge_a_photo_that_waits_longer_than_at_rest_misses() -> None:
    report = judged(phase("at rest", 2.0, photo_s=0.5), phase("one device", 2.0, photo_s=2.6))
    assert missed(report) == ["another's photo, above that at rest"]


def test_judge_what_was_measured_before_has_no_bar() -> None:
    slow = [phase(each, 900.0, before=True) for each in ("at rest", "one device")]
    report = judged(phase("at rest", 2.0), phase("one device", 2.0), *slow)
    assert report.passed
    assert len(report.bars) == 7


def test_report_of_two_versions_compares_them_in_text_and_page() -> None:
    now = [phase(each, 2.0) for each in PHASES]
    report = judged(*now, phase("one device", 900.0, before=True), phase("ten devices", 901.0, before=True))
    text = text_of(report)
    phases = [line.split("  ")[1].strip() for line in text.splitlines() if line.startswith("pongs  ")]
    assert phases == [
        *("at rest", "one device", "one device, before", "ten devices", "ten devices, before"),
        *("sink of one", "sink of ten"),
    ]
    assert "901.0/9010.0" in text
    assert "ten devices, before" in html_of([report])


def test_settings_of_a_version_that_does_not_know_them_are_left_out(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[server]\nport = 1\n[domains.task]\nkind = "record"\n')
    given = {"TIDEMARK__SERVER__PORT": "2", "TIDEMARK__SERVER__DRAIN_S": "1", "TIDEMARK__REDIS__URL": "x"}
    assert Version(tmp_path, "v1").known(given) == {"TIDEMARK__SERVER__PORT": "2", VARIABLE: str(config)}


def test_settings_of_a_version_with_one_role_name_the_owner(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[postgres]\ndsn = ""\n')
    given = {"TIDEMARK__POSTGRES__DSN": "serving", "TIDEMARK__POSTGRES__OWNER_DSN": "owner"}
    one_role = {"TIDEMARK__POSTGRES__DSN": "owner", VARIABLE: str(config)}
    assert Version(tmp_path, "v1").known(given) == one_role
    config.write_text('[postgres]\ndsn = ""\nowner_dsn = ""\n')
    assert Version(tmp_path, "v2").known(given) == given | {VARIABLE: str(config)}


def test_measured_before_takes_what_a_report_measured_itself(tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    file.write_bytes(
        as_json([judged(*(phase(each, 2.0) for each in PHASES[:2]), phase("one device", 8.0, before=True))])
    )
    found = [(one.phase, one.before) for one in measured_before(file, ["pongs"]) or ()]
    assert found == [("at rest", True), ("one device", True)]
    assert measured_before(file, ["pings"]) == []
    assert measured_before(tmp_path / "v1", ["pings"]) is None
    file.write_text("{}")
    with pytest.raises(BenchError, match="no report of bench"):
        measured_before(file, ["pongs"])


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "handshakes"])
def test_attacks_each_sends_something_at_once(name: str) -> None:
    attack = ATTACKS[name]
    attacker = Attacker("h.c.s", "h", "m", "unix:///nowhere", "tidemark:database:epoch", [(1, "other-0")])
    assert attack.first is None or next(attack.first(attacker))
    assert attack.chunk is None or (attack.chunk(attacker, 0) and attack.chunk(attacker, 1))
    assert attack.first or attack.chunk


def test_attacks_many_fields_stores_and_sends_what_the_bounds_let_in() -> None:
    attack, attacker = ATTACKS["many-fields"], Attacker("t", "h", "m")
    assert attack.stored is not None
    assert attack.chunk is not None
    put, patch, *_ = attack.stored.syncs(attacker)
    assert {len(item["data"]) for item in put} == {MAX_FIELDS}
    assert [item["op"] for item in patch] == ["patch"] * len(put)
    most = read_settings(None, None).limits
    assert len(attack.chunk(attacker, 0)) < len(attack.chunk(attacker, 900_000)) < most.frame_bytes
    assert attack.stored.records <= most.items


def test_attacks_are_twenty_six() -> None:
    assert len(ATTACKS) == 26


@pytest.mark.slow
async def test_abuse_attacks_of_each_kind_are_measured(services: Services, tmp_path: Path) -> None:
    names = "headers", "full", "future", "early-files", "forged"
    settings = read_settings(None, str(data_dir(services) / tmp_path.name))
    report = await abuse(options(settings=settings, duration_s=0.3, attacks=names))
    assert tuple(dict.fromkeys(one.attack for one in report.abuses)) == names
    under = [one for one in report.abuses if one.phase in ("one device", "ten devices")]
    assert all(one.connections for one in under)
    assert not any(one.unprepared for one in under)
    assert all(one.fullest is not None and one.fullest <= 1 for one in under)
    assert len(report.bars) == 8 * len(names) + 1  # another's photo


@pytest.mark.slow
async def test_abuse_through_nginx_beside_a_commit_is_measured(services: Services, tmp_path: Path) -> None:
    settings = read_settings(None, str(data_dir(services) / tmp_path.name))
    report = await abuse(
        options(settings=settings, duration_s=0.3, attacks=("pongs",), before="HEAD", through_nginx=True)
    )
    assert [(one.phase, one.before) for one in report.abuses] == [
        *((each, False) for each in PHASES),
        *((each, True) for each in PHASES[:3]),
    ]
    assert not any(one.unprepared or one.others.refused for one in report.abuses)
