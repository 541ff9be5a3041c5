"""Runs of jobs as rows with an expiry; session locks would not survive a connection pooler."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from engine.cluster.jobs import HELD_S, Begun, Counts, DueRun, JobsNow, LastRun, LastSuccess, Outcome
from engine.operate.rows import JobRunSummary
from storage.postgres.driver import Row, Values
from storage.postgres.pool import Database
from storage.postgres.transactions import LOCAL_SETTINGS
from storage.stores.audit import by_account

_US: Final = "(extract(epoch FROM {}) * 1000000)::bigint"
_HELD: Final = f"interval '{HELD_S} seconds'"
_DUE: Final = "to_timestamp(%(due)s::float8 / 1000000)"
_OUTCOME: Final = "coalesce({0}.outcome, CASE WHEN {0}.held_until < now() THEN 'killed' ELSE 'running' END)"
_LATEST: Final = (
    "LEFT JOIN LATERAL (SELECT * FROM job_runs WHERE job = j.job AND due_at <= now()"
    " ORDER BY due_at DESC, attempt DESC LIMIT 1) AS r ON true"
)
_LOOK: Final = (
    f"SELECT {_US.format('now()')}, j.job, {_US.format('r.due_at')}, r.attempt, {_OUTCOME.format('r')},"
    " (SELECT count(*)::int FROM job_runs AS k WHERE k.job = r.job AND k.due_at = r.due_at"
    f" AND {_OUTCOME.format('k')} = 'killed'), r.by_hand, {_US.format('s.ended_at')}, s.counts::text"
    f" FROM unnest(%(jobs)s::text[]) AS j(job) {_LATEST}"
    " LEFT JOIN LATERAL (SELECT ended_at, counts FROM job_runs WHERE job = j.job AND outcome = 'succeeded'"
    " ORDER BY due_at DESC, attempt DESC LIMIT 1) AS s ON true"
)
#: What is known of a run that was killed is the last time it said that it went on.
_CLOSE_KILLED: Final = (
    "WITH killed AS MATERIALIZED (SELECT job, due_at, attempt,"
    f" held_until - {_HELD} AS ended_at FROM job_runs"
    " WHERE job = %(job)s AND outcome IS NULL AND held_until < now())"
    " UPDATE job_runs AS r SET outcome = 'killed', ended_at = k.ended_at FROM killed AS k"
    " WHERE r.job = k.job AND r.due_at = k.due_at AND r.attempt = k.attempt"
    " AND r.outcome IS NULL AND r.held_until < now() RETURNING 1"
)
_BEGIN: Final = (
    "WITH begun AS (INSERT INTO job_runs (job, due_at, attempt, by_hand, place, held_until)"
    f" VALUES (%(job)s, coalesce({_DUE}, now()), %(attempt)s, %(by_hand)s, %(place)s, now() + {_HELD})"
    " ON CONFLICT DO NOTHING RETURNING due_at)"
    f" SELECT {_US.format('due_at')}, {_US.format('now()')} FROM begun"
)
_OPEN: Final = f"WHERE job = %(job)s AND due_at = {_DUE} AND attempt = %(attempt)s AND outcome IS NULL"
_HOLD: Final = (
    f"UPDATE job_runs SET held_until = now() + {_HELD}, counts = %(counts)s::json {_OPEN} RETURNING 1"
)
_END: Final = (
    "UPDATE job_runs SET outcome = %(outcome)s, reason = %(reason)s, ended_at = now(),"
    f" counts = %(counts)s::json {_OPEN}"
)
_FORGET: Final = (
    "DELETE FROM job_runs AS r WHERE r.began_at < now() - interval '30 days' AND EXISTS (SELECT FROM job_runs"
    " AS later WHERE later.job = r.job AND later.due_at > r.due_at AND later.due_at <= now()) RETURNING 1"
)
_LIST: Final = (
    "SELECT now(), j.job, r.due_at, r.began_at, extract(epoch FROM coalesce(r.ended_at,"
    f" CASE WHEN r.held_until < now() THEN r.held_until - {_HELD} ELSE now() END) - r.began_at)::float8,"
    f" {_OUTCOME.format('r')}, r.attempt, r.by_hand, r.place, r.reason, r.counts::text"
    f" FROM unnest(%(jobs)s::text[]) AS j(job) {_LATEST}"
)


class PostgresJobs:
    """``engine.cluster.jobs.JobStore``, and what commands ask."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._place = f"{socket.gethostname()}, process {os.getpid()}"

    async def look(self, jobs: Sequence[str]) -> JobsNow:
        """Read the state of jobs."""
        found = await self._database.query(_LOOK, {"jobs": list(jobs)})
        runs = {row[1]: LastRun(*row[2:4], *row[4:7]) for row in found if row[2] is not None}
        ends = {row[1]: LastSuccess(row[7], _counts(row[8])) for row in found if row[7] is not None}
        return JobsNow(found[0][0], runs, ends)

    async def begin(self, job: str, due: DueRun | None) -> Begun | None:
        """Begin a run."""
        attempt = 1 if due is None else due.attempt
        values = {
            "job": job,
            "due": None if due is None else due.due_us,
            "attempt": attempt,
            "by_hand": due is None,
            "place": self._place,
        }
        async with self._database.transaction(LOCAL_SETTINGS) as transaction:
            killed = await transaction.query(_CLOSE_KILLED, values)
            begun = await transaction.query(_BEGIN, values)
            if begun and due is None:
                await transaction.note(by_account("job_run", job))
        if not begun:
            return None
        return Begun(job, begun[0][0], attempt, begun[0][1], killed=bool(killed))

    async def hold(self, run: Begun, counts: Counts) -> bool:
        """Say that a run goes on."""
        return bool(await self._run(_HOLD, _values(run, counts)))

    async def end(self, run: Begun, outcome: Outcome, reason: str | None, counts: Counts) -> None:
        """Close a run."""
        await self._run(_END, _values(run, counts) | {"outcome": outcome, "reason": reason})

    async def forget(self) -> int:
        """Delete runs that are older than 30 days, except the last one of each job. Returns how many."""
        return len(await self._run(_FORGET, {}))

    async def last_runs(self, jobs: Sequence[str]) -> tuple[datetime, dict[str, JobRunSummary]]:
        """Return the database's time, and the last run of each job that has one. Raises StoreError."""
        found = await self._database.query(_LIST, {"jobs": list(jobs)})
        last = {row[1]: JobRunSummary(*(*row[2:10], _counts(row[10]))) for row in found if row[2] is not None}
        return found[0][0], last

    async def _run(self, statement: str, values: Values) -> list[Row]:
        # No wait for a standby: a run that is lost with its primary is begun again. Not prepared: behind a
        # pooler the first prepared statement may fail, and not every one of these is repeated.
        return await self._database.execute(statement, values, LOCAL_SETTINGS)


def _values(run: Begun, counts: Counts) -> dict[str, object]:
    return {
        "job": run.job,
        "due": run.due_us,
        "attempt": run.attempt,
        "counts": msgspec.json.encode(counts).decode(),
    }


def _counts(text: str) -> Counts:
    return msgspec.json.decode(text, type=Counts)
