"""One process cleans up for all, at its time; what one that dies at it leaves, the next one does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from bench.harness.clusters import role_variables
from storage.stores.jobs.runs import PostgresJobs
from tests.harness.commands import Ended, Run, command
from tests.harness.in_process_server import Running, Serve
from tests.harness.postgres_stalls import until
from tests.harness.services import execute, rows, without_cells
from tests.harness.uploads.upload_stack import UploadStack, job_run, now_us, stack, text
from tests.storage.stores.test_jobs import store

__all__ = ["command", "stack", "store"]

PASSED = "UPDATE upload_session SET expires_at = now() - interval '1 s'"

_FILES_OF_NO_CELL = without_cells("its files lie where a database alone has them")


async def cleaned(command: Run, *options: str, **variables: str) -> Ended:
    """Run the command; what it logs is not shown, as it is not to a person."""
    with capture_logs():
        return await command("job", "cleanup", *options, **variables)


# -- the bodies ------------------------------------------------------------------------------


async def test_cleanup_job_counts_what_it_did_and_the_ratio(stack: UploadStack) -> None:
    for _ in range(3):
        await stack.stored("never")
    await stack.begun()
    execute(stack.dsn, f"{PASSED} WHERE state = 'open'")
    run = job_run(now_us())
    await stack.cleanup_job.expire_and_free(run)
    assert run.counts == {"expired": 1, "freed": 0, "forgotten": 0, "left": 0, "abandonment_ratio": 0.25}
    orphans = job_run(now_us())
    await stack.cleanup_job.remove_orphans(orphans)
    assert orphans.counts == {"orphans": 0, "orphan_bytes": 0, "left": 0}
    assert stack.cleanup_job.counters.expired == 1


async def test_cleanup_job_abandonment_logged_once_until_lower(stack: UploadStack) -> None:
    def given_up(uploads: int) -> None:
        state = f"CASE WHEN n <= {uploads} THEN 'expired' ELSE 'attached' END"
        execute(
            stack.dsn,
            "DELETE FROM upload_session",
            "INSERT INTO upload_session (tenant_id, upload_id, device_id, kind, metadata, reserved_bytes,"
            f" state, expires_at, ended_at) SELECT 1, gen_random_uuid(), 'd', 'whole', '', 0, {state}, now(),"
            " now() FROM generate_series(1, 10) AS n",
        )

    said = []
    with capture_logs() as logs:
        for uploads in (2, 3, 4, 2, 3):
            given_up(uploads)
            await stack.cleanup_job.expire_and_free(job_run(now_us()))
            said.append(sum(line["event"] == "uploads_abandoned" for line in logs))
    assert said == [0, 1, 1, 1, 2]
    assert [line["abandonment_ratio"] for line in logs] == [0.3] * 2


async def test_cleanup_job_nothing_ended_has_no_ratio(stack: UploadStack) -> None:
    run = job_run(now_us())
    await stack.cleanup_job.expire_and_free(run)
    assert run.counts["abandonment_ratio"] is None


# -- the command ------------------------------------------------------------------------------


def settled_conflict(at_us: int) -> str:
    """Write a conflict that its policy settled at once."""
    return (
        "INSERT INTO conflict_resolution_log (tenant_id, conflict_id, domain, record_id, device_id, policy,"
        " outcome, server_version, client_op, client_at_us, opened_at_us)"
        f" VALUES (1, gen_random_uuid(), 'task', 'a', 'phone', 'server_wins', 'server', 1, 'put', 0, {at_us})"
    )


@_FILES_OF_NO_CELL
async def test_cleanup_command_prints_what_it_did(stack: UploadStack, command: Run) -> None:
    await stack.sent(await stack.begun(), text(50))
    execute(stack.dsn, PASSED)
    await stack.stored("never")
    long_ago = "UPDATE upload_session SET updated_at = now() - interval '31 days' WHERE state = 'stored'"
    execute(stack.dsn, long_ago)
    kept = await stack.stored("never", tenant=2)
    await stack.push("put", None, record="gone")
    await stack.push("delete", 1, record="gone")
    execute(stack.dsn, "UPDATE records SET last_data_at = now() - interval '31 days' WHERE data IS NULL")
    execute(stack.dsn, settled_conflict(now_us(-91 * 24)), settled_conflict(now_us(-89 * 24)))
    data = {"TIDEMARK__DATA__DIR": str(stack.directory)}
    ended = await cleaned(command, "--json", **data)
    assert msgspec.json.decode(ended.out) == {
        "expired": 1,
        "freed": 1,
        "forgotten": 0,
        "emptied": 1,
        "conflicts": 1,
        "quarantined": 0,
        "event_days": 0,
        "answer_days": 0,
        "orphans": 0,
        "orphan_bytes": 0,
        "left": 0,
        "abandonment_ratio": 1 / 3,
        "abandonment": [
            {"tenant": "tenant1", "finished": 1, "abandoned": 1, "ratio": 0.5},
            {"tenant": "tenant2", "finished": 1, "abandoned": 0, "ratio": 0.0},
        ],
    }
    assert stack.stored_blobs() == {("files", kept.ref.upload_id)}
    assert stack.reserved() == 0
    ended = await cleaned(command, **data)
    assert ended.out.splitlines() == [
        "uploads expired: 0",
        "files freed: 0",
        "ended uploads forgotten: 0",
        "last data of deleted records dropped: 0",
        "conflicts forgotten: 0",
        "rejected items forgotten: 0",
        "days of events dropped: 0",
        "days of kept answers dropped: 0",
        "orphans removed: 0 (0 bytes)",
        "given up of the last day's uploads: 33.3%",
        "",
        "TENANT   FINISHED  ABANDONED  RATE",
        "tenant1  1         1          50.0%",
        "tenant2  1         0          0.0%",
    ]


@pytest.mark.parametrize("job", ["uploads", "cleanup"])
async def test_cleanup_command_refused_while_running_elsewhere_and_after_a_restore(
    command: Run, store: PostgresJobs, dsn: str, tmp_path: Path, job: str
) -> None:
    data = {"TIDEMARK__DATA__DIR": str(tmp_path)}
    begun = await store.begin(job, None)
    assert begun is not None
    assert "another process is at it" in (await cleaned(command, **data)).refusal()
    await store.end(begun, "succeeded", None, {})
    execute(dsn, "UPDATE cluster_state SET system_identifier = 1")
    assert "run.py epoch renew" in (await cleaned(command, **data)).refusal()


@_FILES_OF_NO_CELL
@pytest.mark.parametrize("what", ["draft", "file"])
async def test_cleanup_killed_before_deleting_bytes_leaves_orphans_for_the_next_run(
    stack: UploadStack, command: Run, what: str
) -> None:
    if what == "draft":
        await stack.sent(await stack.begun(), text(50))
        execute(stack.dsn, PASSED)
    else:
        await stack.push("put", None)
        await stack.stored()
        await stack.push("delete", 1)
        execute(
            stack.dsn,
            "UPDATE upload_session SET gone_at = 'epoch'",
            "UPDATE records SET at_us = 0",
        )
    data = {"TIDEMARK__DATA__DIR": str(stack.directory)}
    killed = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.engine.uploads.cleanup_killed",
        cwd=Path(__file__).parents[3],
        env={**os.environ, **role_variables(stack.dsn), **data},
    )
    assert await killed.wait() == -signal.SIGKILL
    state = "expired" if what == "draft" else "freed"
    assert rows(stack.dsn, "SELECT DISTINCT state FROM upload_session") == [(state,)]
    assert stack.reserved() == 0
    assert {place for place, _ in stack.stored_blobs()} == {f"{what}s"}
    assert "another process is at it" in (await cleaned(command, **data)).refusal()
    execute(stack.dsn, "UPDATE job_runs SET held_until = now() - interval '1 s'")
    stack.aged(25)
    ended = await cleaned(command, "--json", **data)
    done = msgspec.json.decode(ended.out)
    assert (done["expired"], done["freed"], done["orphans"]) == (0, 0, 1)
    assert stack.stored_blobs() == set()
    assert stack.reserved() == 0


async def test_metrics_have_the_counters_of_uploads(server: Running) -> None:
    page = (await server.get("/metrics")).body.decode()
    told = {family.name for family in text_string_to_metric_families(page)}
    for name in (
        *("uploads_created", "uploads_finished", "uploads_cancelled", "uploads_expired"),
        *("upload_chunks", "upload_received_bytes", "upload_files_freed", "upload_orphans_removed"),
    ):
        assert f"tidemark_{name}" in told
    assert "tidemark_upload_abandonment_ratio" not in told, "without data nothing is said"


async def test_server_cleans_up_on_schedule_and_every_process_has_the_ratio(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cluster.job_scheduler.LOOK_S", 0.05)
    servers = [await serve(), await serve()]
    dsn = servers[0].dsn

    async def began_and_ended() -> bool:
        return bool(rows(dsn, "SELECT FROM job_runs WHERE job = 'uploads' AND outcome IS NOT NULL"))

    await until(began_and_ended)  # a run under way would end the due time that is made anew below
    execute(
        dsn,
        "INSERT INTO upload_session (tenant_id, upload_id, device_id, kind, metadata, reserved_bytes, state,"
        " expires_at, ended_at) SELECT 1, gen_random_uuid(), 'd', 'whole', '', 0, state, now(),"
        " CASE WHEN state <> 'open' THEN now() END"
        " FROM unnest(ARRAY['attached', 'attached', 'attached', 'open']) AS state",
        "DELETE FROM job_runs WHERE job = 'uploads' AND outcome IS NOT NULL",
    )

    async def told() -> bool:
        pages = [(await server.get("/metrics")).body.decode() for server in servers]
        return all("tidemark_upload_abandonment_ratio 0.25" in page for page in pages)

    await until(told)
    pages = [(await server.get("/metrics")).body.decode() for server in servers]
    assert sorted("tidemark_uploads_expired_total 1.0" in page for page in pages) == [False, True]


async def test_cleanup_command_beside_a_server_keeps_its_files(
    server: Running, command: Run, tmp_path: Path
) -> None:
    headers = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
    about = {"Upload-Metadata": "filename YS50eHQ=,filetype dGV4dC9wbGFpbg==,domain dGFzaw==,record_id YQ=="}
    for length in (4, 8):
        sized = {**headers, **about, "Upload-Length": str(length)}
        assert (await server.post("/v1/uploads", b"text", headers=sized)).status == 201
    execute(server.dsn, f"{PASSED} WHERE state = 'open'")
    ended = await cleaned(command, "--json", TIDEMARK__DATA__DIR=str(tmp_path))
    done = msgspec.json.decode(ended.out)
    assert (done["expired"], done["freed"], done["abandonment_ratio"]) == (1, 0, 0.5)
    assert rows(server.dsn, "SELECT state FROM upload_session ORDER BY state") == [("expired",), ("stored",)]
    page = (await server.get("/metrics")).body.decode()
    assert "tidemark_uploads_created_total 2.0" in page
    assert "tidemark_upload_received_bytes_total 8.0" in page
    assert (await server.get("/readyz")).status == 200
