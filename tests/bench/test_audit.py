"""The audit after a run: silent on a database as it should be, and not on any other."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from bench.harness.audit import Audit, Auditor
from bench.harness.drive import Run, Target, drive
from bench.load.plan import Acks, Outcome, Plan, Unsure
from tests.harness.in_process_server import Serve
from tests.harness.services import execute
from tests.harness.ws_device import SECRET


def run_of(acks: Acks, unsure: list[Unsure]) -> Run:
    """A run of two devices of two tenants."""
    plan = Plan(
        host="127.0.0.1",
        port=1,
        devices=["run-0", "run-1"],
        tokens=["", ""],
        mode="closed",
        duration_s=1.0,
    )
    outcome = Outcome(asked=2, connected=2, connect_s=0.0, refusals={}, acks=acks, unsure=unsure)
    return Run("a run", plan, ["acme", "globex"], outcome, None)


def stored(tenant: int, device: str, number: int, record: int, version: int, seq: int) -> list[str]:
    """The statements that store one write, as the server does."""
    item = f"{device}-{record}"
    key_hash = hashlib.blake2b(f"{device}\0{device}-{number}".encode(), digest_size=16).hexdigest()
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


#: What was acknowledged: (device, number, record, version, seq).
WRITTEN = [(0, 0, 0, 1, 1), (0, 1, 0, 2, 2), (0, 2, 1, 1, 3), (1, 0, 0, 1, 1)]
#: What was sent and never answered: a new record of each device and an update of the second one's.
UNSURE = [Unsure(0, 3, 2), Unsure(1, 1, 0), Unsure(1, 2, 1)]


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
    for device, number, record, version, seq in WRITTEN:
        execute(dsn, *stored(device + 1, f"run-{device}", number, record, version, seq))
    columns = [list(column) for column in zip(*WRITTEN, strict=True)]
    return run_of(Acks(*columns), UNSURE)


def test_what_was_acknowledged_is_there(dsn: str, run: Run) -> None:
    found = audit(run, dsn)
    assert (found.items, found.records, found.tenants) == (4, 3, 2)
    assert found.faults == []


def test_what_was_not_answered_may_be_there(dsn: str, run: Run) -> None:
    execute(dsn, *stored(1, "run-0", 3, 2, 1, 4))
    execute(dsn, *stored(2, "run-1", 1, 0, 2, 2))
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
        ("DELETE FROM sync_idempotency_record WHERE tenant_id = 2", "globex: key run-1-0 is kept 0 times"),
        (
            f"INSERT INTO sync_idempotency_record {AGAIN} WHERE tenant_id = 2",
            "globex: key run-1-0 is kept 2 times",
        ),
        (
            "UPDATE sync_idempotency_record SET results = '[]' WHERE tenant_id = 2",
            "globex: key run-1-0 is kept with another answer",
        ),
    ],
)
def test_every_other_database_is_named(dsn: str, run: Run, statement: str, fault: str) -> None:
    execute(dsn, statement)
    found = audit(run, dsn)
    assert found.fault_count == len(found.faults) > 0
    assert any(fault in sentence for sentence in found.faults)


def test_an_unanswered_message_kept_twice_is_named(dsn: str, run: Run) -> None:
    twice = stored(2, "run-1", 1, 0, 2, 2)
    execute(dsn, *twice, twice[1])
    assert audit(run, dsn).faults == ["globex: key run-1-1, not acknowledged, is kept twice"]


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ((0, 2, 1, 1, 2), "acme: a seq was acknowledged twice"),
        ((0, 2, 0, 2, 3), "acme/run-0-0: acknowledged versions are [1, 2, 2]"),
        ((0, 2, 0, 4, 3), "acme/run-0-0: acknowledged versions are [1, 2, 4]"),
        ((0, 2, 0, 3, 1), "acme/run-0-0: a later version has no later seq"),
    ],
)
def test_acknowledgements_that_contradict_each_other_are_named(
    dsn: str, run: Run, written: tuple[int, ...], fault: str
) -> None:
    others = [one for one in WRITTEN if one[:2] != written[:2]]
    columns = [list(column) for column in zip(*others, written, strict=True)]
    assert fault in audit(run_of(Acks(*columns), run.outcome.unsure), dsn).faults


@pytest.mark.parametrize("mode", ["open", "closed"])
async def test_a_run_on_a_server_passes(serve: Serve, mode: Any) -> None:
    server = await serve(limits={"messages_per_minute": 1_000_000})
    port = int(server.url.rsplit(":", 1)[1])
    target = Target(port=port, secret=SECRET.decode(), tenants=["acme", "globex"])
    auditor = Auditor(server.dsn)
    run = await drive("a run", target, mode, 5, 0.5, rate_per_s=100.0, warmup_s=0.1)
    found = auditor.audit(run)
    assert (run.outcome.connected, run.outcome.errors, run.outcome.unanswered) == (5, {}, 0)
    assert found.items == run.outcome.sent > 0
    assert found.records == run.outcome.new_records > 0
    assert found.faults == []
