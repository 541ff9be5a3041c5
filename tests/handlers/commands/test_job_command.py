"""``run.py job``: the list with each outcome, and runs by hand that tell how far they are."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from engine.cluster.jobs import JobRun
from engine.operate.retention import Page, Position
from storage.stores.jobs.retention import PostgresRetention
from storage.stores.jobs.runs import PostgresJobs
from tests.harness.admin import add_tenants
from tests.harness.commands import Run, command
from tests.harness.services import Serving, execute, rows

__all__ = ["command"]


def _run(job: str, began: str, more: str = "") -> str:
    """Write a run that was due at 08:00 of the last day of 2025; ``more`` are columns and their values."""
    columns, _, values = more.partition(":")
    return (
        f"INSERT INTO job_runs (job, due_at, attempt, place, began_at, held_until{columns})"
        f" VALUES ('{job}', '2025-12-31 08:00Z', 2, 'host', '{began}', '{began}'{values})"
    )


async def test_job_list_shows_the_last_run_of_each_and_the_next_time(command: Run, dsn: str) -> None:
    began = "2025-12-31 08:00:01Z"
    execute(
        dsn,
        _run("uploads", began, ", by_hand, ended_at, outcome:, false, '2025-12-31 08:02:06Z', 'succeeded'"),
        _run(
            "cleanup",
            began,
            ", by_hand, ended_at, outcome, reason:, true, '2025-12-31 08:00:02.5Z', 'failed', 'E'",
        ),
        _run("warm", began, ", by_hand:, false"),
    )
    execute(dsn, "UPDATE job_runs SET held_until = began_at + interval '75 s' WHERE job = 'warm'")
    settings = {"TIDEMARK__JOBS__WARM": "0 2 1 1 *", "TIDEMARK__JOBS__TIMEZONE": "Asia/Kolkata"}
    ended = await command("job", "list", **settings)
    shown = [line.split("  ") for line in ended.out.splitlines()]
    table = [[cell.strip() for cell in line if cell.strip()] for line in shown]
    assert table[0] == ["JOB", "SCHEDULE", "LAST RUN", "DURATION", "OUTCOME", "NEXT"]
    assert [line[:-1] for line in table[1:]] == [
        ["uploads", "*/5 * * * *", "2025-12-31 08:00", "2 min 5 s", "succeeded, attempt 2"],
        ["cleanup", "0 * * * *", "2025-12-31 08:00", "1.5 s", "failed, E, attempt 2, by hand"],
        ["aggregate", "15 * * * *", "never ran"],
        ["warm", "0 2 1 1 *", "2025-12-31 08:00", "15.0 s", "killed, attempt 2"],
        ["monitor", "*/5 * * * *", "never ran"],
        ["reseal", "*/5 * * * *", "never ran"],
    ]
    assert table[4][-1].endswith("-12-31 20:30"), "two in the morning of a January in India"
    listed = {one["job"]: one for one in json.loads((await command("job", "list", "--json", **settings)).out)}
    assert listed["warm"]["timezone"] == "Asia/Kolkata"
    assert listed["monitor"]["last"] is None
    assert listed["uploads"]["last"]["duration_s"] == 125.0
    next_at = datetime.fromisoformat(listed["monitor"]["next_at"])
    assert timedelta() < next_at - datetime.now(UTC) <= timedelta(minutes=5)


async def test_job_warm_has_servers_read_again(command: Run, dsn: str) -> None:
    generation = "SELECT generation FROM cluster_state"
    ((before,),) = rows(dsn, generation)
    ended = await command("job", "warm", "--json")
    done = json.loads(ended.out)
    assert (done["job"], done["counts"]) == ("warm", {})
    assert ended.err.startswith("database: ")
    assert rows(dsn, generation) == [(int(str(before)) + 1,)]
    assert rows(dsn, "SELECT job, attempt, by_hand, outcome FROM job_runs") == [
        ("warm", 1, True, "succeeded")
    ]
    assert "succeeded, by hand" in (await command("job", "list")).out


async def test_job_aggregate_tells_what_it_summed_and_deleted(command: Run, dsn: str) -> None:
    add_tenants(dsn, "acme")
    counts = "1, 0, 0, 1, 0, 0, 0, 0, 100, 5000, '{200}', '{1}'"
    hours = ", ".join(
        f"(1, date_bin('1 hour', now(), 'epoch') - interval '{hours} hours', gen_random_uuid(), {counts})"
        for hours in (2, 3, 76)
    )
    columns = (
        "tenant_id, minute_start, process, syncs, failed, refused, items, conflicts, conflicts_open,"
        " uploads_finished, uploads_abandoned, bytes_in, duration_us, duration_buckets, duration_counts"
    )
    execute(dsn, f"INSERT INTO sync_minutes ({columns}) VALUES {hours}")
    done = json.loads((await command("job", "aggregate", "--json")).out)
    assert done["counts"] == {"snapshots": 2, "minutes_deleted": 1}
    assert rows(dsn, "SELECT sync_requests, succeeded FROM sync_analytics_snapshot") == [(1, 1)] * 2


async def test_job_refused_while_it_runs_elsewhere(command: Run, dsn: str) -> None:
    database = Serving(dsn, 1)
    assert await PostgresJobs(database).begin("warm", None)
    assert "another process is at it" in (await command("job", "warm")).refusal()
    await database.close()


async def test_job_cleanup_tells_on_stderr_how_far_it_is(
    command: Run, dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr("handlers.commands.job._PROGRESS_S", 0.01)
    add_tenants(dsn, "acme")
    rests = JobRun.rest
    told: list[int] = []

    async def delete(_: PostgresRetention, before_us: int, after: Position, limit: int) -> Page:
        assert before_us > 0
        told.append(limit)
        return Page(limit, limit, after) if len(told) < 4 else Page(0, 0, after)

    async def rest(run: JobRun) -> None:
        await asyncio.sleep(0.05)
        await rests(run)

    monkeypatch.setattr(PostgresRetention, "delete_conflicts", delete)
    monkeypatch.setattr(JobRun, "rest", rest)
    ended = await command("job", "cleanup", "--json", TIDEMARK__DATA__DIR=str(tmp_path))
    assert json.loads(ended.out)["conflicts"] == 600
    assert [line for line in ended.err.splitlines() if line.startswith("answer_days") or "conflicts" in line]


async def test_job_failed_is_listed_with_its_reason(
    command: Run, dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    async def fails(_: PostgresRetention, before_us: int, after: Position, limit: int) -> Page:
        raise ValueError(before_us, after, limit)

    monkeypatch.setattr(PostgresRetention, "delete_conflicts", fails)
    with pytest.raises(ValueError, match="200"):
        await command("job", "cleanup", TIDEMARK__DATA__DIR=str(tmp_path))
    assert "failed, ValueError, by hand" in (await command("job", "list")).out
    found = rows(dsn, "SELECT outcome, counts->>'orphans' FROM job_runs WHERE job = 'cleanup'")
    assert found == [("failed", "0")], "the rest was done"
