"""``run.py job``: runs scheduled jobs of servers once, now."""

from __future__ import annotations

import click

from engine.operate.rows import CleanedUp
from handlers.commands.deployment import Deployment, as_json, table, with_deployment
from handlers.operate.printing import say


@click.group("job", short_help="Do now what servers do on schedule.")
def job() -> None:
    """Run a job once, now, that one of the servers runs on schedule."""


@job.command("cleanup", epilog="Example: run.py job cleanup --json")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment(changes=True)
async def cleanup(deployment: Deployment, *, json_: bool) -> None:
    """Clean up after uploads and past [retention], and print how many uploads were given up.

    It ends expired uploads, frees files of records that were deleted more than uploads.grace_h ago, drops the
    last data of records that were deleted more than records.tombstone_data_h ago, and removes files that
    belong to no upload and no record.
    """
    async with deployment.upload_jobs() as jobs:
        done = await jobs.clean_up()
    if json_:
        as_json(done)
        return
    for line in _said(done):
        say(line)
    if done.abandonment:
        say()
        table(
            [
                (one.tenant, str(one.finished), str(one.abandoned), f"{one.ratio:.1%}")
                for one in done.abandonment
            ],
            ("TENANT", "FINISHED", "ABANDONED", "RATE"),
        )


def _said(done: CleanedUp) -> list[str]:
    lines = [
        f"uploads expired: {done.expired}",
        f"files freed: {done.freed}",
        f"ended uploads forgotten: {done.forgotten}",
        f"last data of deleted records dropped: {done.emptied}",
        f"conflicts forgotten: {done.conflicts}",
        f"rejected items forgotten: {done.quarantined}",
        f"days of events dropped: {done.event_days}",
        f"orphans removed: {done.orphans} ({done.orphan_bytes} bytes)",
    ]
    if done.left:
        lines.append(f"left for the next run: {done.left}")
    if done.abandonment_ratio is not None:
        lines.append(f"given up of the last day's uploads: {done.abandonment_ratio:.1%}")
    return lines
