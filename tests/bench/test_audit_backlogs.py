"""The audit of ``overload``: silent on a database as it should be, and not on any other."""

from __future__ import annotations

import msgspec
import pytest

from bench.harness import audit
from bench.harness.audit import Auditor, key_hash
from bench.harness.load_run import Run, Target, planned, run_load
from bench.load.plan import Step
from bench.load.workload import ONLINE, Backlog
from tests.harness.in_process_server import Serve
from tests.harness.services import execute
from tests.harness.ws_device import SECRET

TWO = Backlog(2, 1)


@pytest.fixture
async def stored(serve: Serve) -> tuple[Auditor, str, list[Run]]:
    """A run on a server that takes four messages of each device and refuses the others."""
    server = await serve(limits={"messages_per_minute": 5})
    target = Target(
        port=int(server.url.rsplit(":", 1)[1]), secret=SECRET.decode(), tenants=["acme", "globex"]
    )
    auditor = Auditor(server.dsn)
    run = planned(target, 4, [Step("a", 300.0, 0.2)], backlog=TWO)
    quiet = planned(target, 1, [Step("a", 20.0, 0.2)], ["acme"], backlog=ONLINE)
    return auditor, server.dsn, await run_load(target, run, quiet)


Stored = tuple[Auditor, str, list[Run]]


def numbers(run: Run, code: str) -> list[int]:
    return [number for number, own in enumerate(run.outcome.code) if run.outcome.codes[own] == code]


def test_auditor_backlogs_acknowledged_are_there_and_refused_are_not(stored: Stored) -> None:
    auditor, _, runs = stored
    taken = numbers(runs[0], "synced")
    assert 0 < len(taken) <= 16
    assert numbers(runs[0], "rate_limited")
    found = auditor.audit(*runs)
    assert found.faults == []
    assert found.items == 3 * len(taken) + len(numbers(runs[1], "synced"))
    assert found.records == 2 * len(taken) + len(numbers(runs[1], "synced"))


KEPT_AGAIN = (
    "INSERT INTO sync_idempotency_record (tenant_id, key_hash, created_at, request_sha256, results)"
    " SELECT tenant_id, key_hash, created_at + interval '1 s', request_sha256, results"
    " FROM sync_idempotency_record"
)
#: What is done to one acknowledged sync after another, and what the audit says of it.
TAMPERINGS = [
    ("DELETE FROM records WHERE id LIKE '{key}%'", "acknowledged and not there"),
    ("DELETE FROM records WHERE id = '{key}-01'", "there otherwise than it was sent"),
    ("UPDATE records SET version = 1 WHERE id = '{key}-00'", "there otherwise than it was sent"),
    ("UPDATE records SET data = '{{}}' WHERE id = '{key}-01'", "there otherwise than it was sent"),
    ("UPDATE records SET device_id = 'x' WHERE id LIKE '{key}%'", "sent by {device}, there as of x"),
    (
        "UPDATE records SET seq = seq + 1000 WHERE id = '{key}-00'",
        "there with other seqs than were acknowledged",
    ),
    ("DELETE FROM sync_idempotency_record WHERE key_hash = '{hash}'", "its key is kept 0 times"),
    (f"{KEPT_AGAIN} WHERE key_hash = '{{hash}}'", "its key is kept 2 times"),
    (
        "UPDATE sync_idempotency_record SET results = '[]' WHERE key_hash = '{hash}'",
        "its key is kept with another answer",
    ),
]


def test_auditor_backlog_that_is_otherwise_is_named(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_NAMED", 100)
    auditor, dsn, runs = stored
    run = runs[0]
    prefix = run.plan.prefix
    expected = set()
    for number, (statement, fault) in zip(numbers(run, "synced"), TAMPERINGS, strict=False):
        place = run.outcome.device[number]
        device, key = run.plan.devices[place], f"{prefix}{number:08}"
        execute(dsn, statement.format(key=key, hash=key_hash(device, key)))
        expected.add(f"{run.tenant_of(place)}/{key}: {fault.format(device=device)}")
    assert len(expected) == len(TAMPERINGS)
    columns = "tenant_id, domain, id, version, seq, at_us, device_id, chain_from, data, fields"
    execute(
        dsn,
        f"INSERT INTO records ({columns}) SELECT tenant_id, domain, '{prefix}99999999-00', 1, 9999, at_us,"
        " device_id, chain_from, data, fields FROM records WHERE tenant_id = 1 LIMIT 1",
        "UPDATE tenant_counters SET seq = 1 WHERE tenant_id = 2",
    )
    named = {*auditor.audit(*runs).faults}
    there = {fault for fault in named if "the records count" in fault}
    # What is taken away of acme may make up for what is put in: which syncs are whose is drawn.
    assert {"globex"} <= {fault.split(":")[0] for fault in there} <= {"acme", "globex"}
    assert named - there == expected | {
        f"acme/{prefix}99999999: there and never sent",
        "globex: a seq was acknowledged that the counter (1) has not reached",
    }


def test_auditor_stored_refusal_and_a_seq_given_twice_are_named(stored: Stored) -> None:
    auditor, _, runs = stored
    outcome = runs[0].outcome
    first, second = numbers(runs[0], "synced")[:2]
    lied = msgspec.structs.replace(outcome, code=list(outcome.code), seqs=outcome.seqs[3:])
    lied.code[first] = lied.codes.index("rate_limited")
    found = auditor.audit(msgspec.structs.replace(runs[0], outcome=lied), runs[1])
    key = f"{runs[0].plan.prefix}{first:08}"
    assert [fault.split("/")[1] for fault in found.faults] == [
        f"{key}: refused and there",
        f"{key}: refused and its key is kept",
    ]
    tenants = [runs[0].tenant_of(outcome.device[number]) for number in (first, second)]
    own = numbers(runs[0], "synced")
    other = next(n for n in own if n != first and runs[0].tenant_of(outcome.device[n]) == tenants[0])
    twice = list(outcome.seqs)
    place, source = 3 * own.index(other), 3 * own.index(first)
    twice[place : place + 3] = twice[source : source + 3]
    found = auditor.audit(
        msgspec.structs.replace(runs[0], outcome=msgspec.structs.replace(outcome, seqs=twice)), runs[1]
    )
    assert f"{tenants[0]}: a seq was acknowledged twice" in found.faults


def test_auditor_unanswered_backlog_may_be_there_or_not(stored: Stored) -> None:
    auditor, dsn, runs = stored
    outcome = runs[0].outcome
    first = numbers(runs[0], "synced")[0]
    silent = msgspec.structs.replace(outcome, code=list(outcome.code), seqs=outcome.seqs[3:])
    silent.code[first] = 0
    doubted = [msgspec.structs.replace(runs[0], outcome=silent), runs[1]]
    assert auditor.audit(*doubted).faults == []
    execute(dsn, f"DELETE FROM records WHERE id LIKE '{runs[0].plan.prefix}{first:08}-01'")
    assert any("there otherwise than it was sent" in fault for fault in auditor.audit(*doubted).faults)
