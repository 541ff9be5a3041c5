"""The audit after a run: silent on a database as it should be, and not on any other."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from bench.harness.audit import Audit, Auditor
from bench.harness.load_run import Run, Target, run_tasks
from bench.load.plan import Outcome, Plan, Ready, Step
from bench.report.summary import row_of
from tests.harness.in_process_server import Serve
from tests.harness.services import execute
from tests.harness.ws_device import SECRET


def run_of(*syncs: tuple[int, int, int, int], code: str = "overloaded") -> Run:
    """Make a run of two devices of two tenants.

    Syncs are (device, record, version, seq); one of seq 0 has no answer, one of seq -1 has the ``code``.
    """
    plan = Plan(
        host="127.0.0.1",
        ports=[1, 1],
        prefix="run",
        devices=["run-0", "run-1"],
        tokens=["", ""],
        steps=[Step("a", 1.0, 1.0)],
    )
    count = len(syncs)
    outcome = Outcome(
        device=[sync[0] for sync in syncs],
        due_us=[0] * count,
        sent_us=[0] * count,
        done_us=[0] * count,
        code=[2 if sync[3] < 0 else int(sync[3] > 0) for sync in syncs],
        codes=["unanswered", "synced", code],
        record=[sync[1] for sync in syncs],
        base=[sync[2] - 1 for sync in syncs],
        seqs=[sync[3] for sync in syncs if sync[3] > 0],
    )
    return Run(plan, ["acme", "globex"], Ready(2, 0.0, {}), outcome)


def stored(tenant: int, device: str, number: int, record: int, version: int, seq: int) -> list[str]:
    """The statements that store one write, as the server does."""
    item = f"{device}-{record}"
    key_hash = hashlib.blake2b(f"{device}\0run{number:08}".encode(), digest_size=16).hexdigest()
    answer = f'[{{"domain":"task","id":"{item}","status":"applied","version":{version},"seq":{seq}}}]'
    record_row = (
        "INSERT INTO records (tenant_id, domain, id, version, seq, at_us, device_id, chain_from, data)"
        f" VALUES ({tenant}, 'task', '{item}', {version}, {seq}, 1, '{device}', 1,"
        f" json_build_object('note', 'round {number}')) ON CONFLICT (tenant_id, domain, id) DO UPDATE"
        " SET version = excluded.version, seq = excluded.seq, data = excluded.data"
    )
    key_row = (
        "INSERT INTO sync_idempotency_record (tenant_id, key_hash, request_sha256, results)"
        f" VALUES ({tenant}, '{key_hash}', '', '{answer}')"
    )
    return [record_row, key_row, f"UPDATE tenant_counters SET seq = {seq} WHERE tenant_id = {tenant}"]


def audit(run: Run, dsn: str) -> Audit:
    """Audit as one that was there before the run."""
    auditor = Auditor(dsn)
    auditor._since = "-infinity"
    return auditor.audit(run)


#: Syncs that were acknowledged: (device, record, version, seq).
WRITTEN = [(0, 0, 1, 1), (0, 0, 2, 2), (0, 1, 1, 3), (1, 0, 1, 1)]
#: Syncs that were sent and never answered: a new record of each device and an update of the second one's.
UNANSWERED = [(0, 2, 1, 0), (1, 0, 2, 0), (1, 1, 1, 0)]


AGAIN = (
    "SELECT tenant_id, key_hash, created_at + interval '1 s', request_sha256, results"
    " FROM sync_idempotency_record"
)


@pytest.fixture
def run(dsn: str) -> Run:
    """A run, and its writes in the database; of what was not answered, nothing was stored."""
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme'), ('globex')",
        "INSERT INTO tenant_counters (tenant_id) SELECT tenant_id FROM tenants",
    )
    for number, (device, record, version, seq) in enumerate(WRITTEN):
        execute(dsn, *stored(device + 1, f"run-{device}", number, record, version, seq))
    return run_of(*WRITTEN, *UNANSWERED)


def test_auditor_acknowledged_and_there_passes(dsn: str, run: Run) -> None:
    found = audit(run, dsn)
    assert (found.items, found.records, found.tenants) == (4, 3, 2)
    assert found.faults == []


def test_auditor_unanswered_and_there_passes(dsn: str, run: Run) -> None:
    execute(dsn, *stored(1, "run-0", 4, 2, 1, 4))
    execute(dsn, *stored(2, "run-1", 5, 0, 2, 2))
    assert audit(run, dsn).faults == []


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DELETE FROM records WHERE id = 'run-0-1'", "acme/run-0-1: acknowledged at version 1 and not there"),
        (
            "UPDATE records SET version = 1 WHERE id = 'run-0-0'",
            "acme/run-0-0: acknowledged at version 2, there at 1",
        ),
        (
            "UPDATE records SET version = 3 WHERE id = 'run-0-0'",
            "acme/run-0-0: acknowledged at version 2, there at 3",
        ),
        ("UPDATE records SET seq = 9 WHERE id = 'run-0-0'", "acme/run-0-0: acknowledged as"),
        ("UPDATE records SET device_id = 'x' WHERE id = 'run-0-0'", "acme/run-0-0: acknowledged as"),
        (
            "UPDATE records SET data = '{\"note\":\"round 0\"}' WHERE id = 'run-0-0'",
            "acme/run-0-0: acknowledged as",
        ),
        (
            "UPDATE records SET tenant_id = 2 WHERE id = 'run-0-1'",
            "globex/run-0-1: there and never sent",
        ),
        ("UPDATE tenant_counters SET seq = 5 WHERE tenant_id = 1", "acme: the counter stands at 5"),
        (
            "UPDATE tenant_counters SET seq = 2 WHERE tenant_id = 1",
            "acme: a seq was acknowledged that the counter (2) has not reached",
        ),
        (
            "DELETE FROM sync_idempotency_record WHERE tenant_id = 2",
            "globex/run00000003: its key is kept 0 times",
        ),
        (
            f"INSERT INTO sync_idempotency_record {AGAIN} WHERE tenant_id = 2",
            "globex/run00000003: its key is kept 2 times",
        ),
        (
            "UPDATE sync_idempotency_record SET results = '[]' WHERE tenant_id = 2",
            "globex/run00000003: its key is kept with another answer",
        ),
    ],
)
def test_auditor_any_other_database_is_named(dsn: str, run: Run, statement: str, fault: str) -> None:
    execute(dsn, statement)
    found = audit(run, dsn)
    assert found.fault_count == len(found.faults) > 0
    assert any(fault in sentence for sentence in found.faults)


def test_auditor_unanswered_sync_kept_twice_is_named(dsn: str, run: Run) -> None:
    twice = stored(2, "run-1", 5, 0, 2, 2)
    execute(dsn, *twice, twice[1])
    assert audit(run, dsn).faults == ["globex/run00000005: its key is kept 2 times"]


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("code", ["overloaded", "unavailable", "internal", "item_conflict"])
def test_auditor_refused_sync_may_not_be_there_and_a_doubtful_one_may(dsn: str, code: str) -> None:
    execute(dsn, *stored(1, "run-0", 7, 3, 1, 4))
    found = audit(run_of(*WRITTEN, *UNANSWERED, (0, 3, 1, -1), code=code), dsn)
    expected = [
        "acme/run-0-3: acknowledged at version 0, there at 1",
        "acme/run00000007: refused and its key is kept",
    ]
    assert found.faults == (expected if code == "overloaded" else [])


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ((0, 1, 1, 2), "acme: a seq was acknowledged twice"),
        ((0, 0, 2, 3), "acme/run-0-0: acknowledged versions are [1, 2, 2]"),
        ((0, 0, 4, 3), "acme/run-0-0: acknowledged versions are [1, 2, 4]"),
        ((0, 0, 3, 1), "acme/run-0-0: a later version has no later seq"),
    ],
)
def test_auditor_contradicting_acknowledgements_are_named(
    dsn: str, run: Run, written: tuple[int, int, int, int], fault: str
) -> None:
    others = [one for place, one in enumerate(WRITTEN) if place != 2]
    assert run.outcome.seqs
    assert fault in audit(run_of(*others, written, *UNANSWERED), dsn).faults


@pytest.mark.parametrize("loop", ["open", "closed"])
async def test_auditor_run_on_a_server_passes(serve: Serve, loop: Any) -> None:
    server = await serve(limits={"messages_per_minute": 1_000_000})
    port = int(server.url.rsplit(":", 1)[1])
    target = Target(port=port, secret=SECRET.decode(), tenants=["acme", "globex"])
    auditor = Auditor(server.dsn)
    run = await run_tasks("a run", target, loop, 5, 0.5, per_s=100.0, warmup_s=0.1)
    found = auditor.audit(run)
    row = row_of(run, found)
    assert (row.connected, row.lost) == (5, 0)
    assert found.items == row.sent > 0
    taken = zip(run.codes, run.outcome.base, strict=True)
    assert found.records == sum(code == "synced" and base == 0 for code, base in taken) > 0
    assert found.faults == []
