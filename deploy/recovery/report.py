"""What a drill measured, for programs and for people."""

from __future__ import annotations

import msgspec


class Loss(msgspec.Struct, frozen=True):
    """What was lost of what devices were told is safe.

    Attributes:
        kept: Where the WAL came from.
        acknowledged: Edits that devices were told of as stored, up to the disaster.
        lost: Those of them that the restored database does not have.
        window_s: From the acknowledgement of the first lost edit to the disaster; 0 if none was lost.
        restore_s: How long the restore of the database took.
    """

    kept: str
    acknowledged: int
    lost: int
    window_s: float
    restore_s: float


class Step(msgspec.Struct, frozen=True):
    """One step of the recovery."""

    name: str
    took_s: float


class Drill(msgspec.Struct, kw_only=True):
    """One drill.

    Attributes:
        archive_timeout_s: The setting of PostgreSQL.
        receiver: Whether commits waited for the receiver of the WAL.
        base_backup_s: How long the base backup took, while devices worked.
        base_backup_bytes: Its size.
        archive_bytes: The size of the archive in the end.
        disk_lost: The disk of the database is lost: what each way of keeping the WAL loses.
        point_in_time: A tenant was erased: what a restore to just before loses of the other tenants.
        erased_acknowledged: Edits of the erased tenant that were acknowledged before the target time.
        erased_back: Those of them that are back.
        queued: Edits that devices held at the disaster, not acknowledged.
        queued_applied: Those of them that the restored database has in the end.
        files_found: Files that are there after the restore.
        files_missing: Files that ``run.py tenant files`` named: their copy was older than the database.
        steps: The steps of the recovery in their order.
        ready_s: RTO: from the begin of the recovery until ``/readyz`` is 200.
        agree_s: Until every device had sent what it held and had what the server has.
        faults: What was not as it has to be.
    """

    archive_timeout_s: float
    receiver: str
    base_backup_s: float = 0.0
    base_backup_bytes: int = 0
    archive_bytes: int = 0
    disk_lost: list[Loss] = []
    point_in_time: Loss | None = None
    erased_back: int = 0
    erased_acknowledged: int = 0
    queued: int = 0
    queued_applied: int = 0
    files_found: int = 0
    files_missing: int = 0
    steps: list[Step] = []
    ready_s: float = 0.0
    agree_s: float = 0.0
    faults: list[str] = []


def text(drill: Drill) -> str:
    """Return the page for people."""
    how = f"archive_timeout {drill.archive_timeout_s:.0f} s, {drill.receiver} receiver"
    sizes = f"{drill.base_backup_bytes / 1e6:.1f} MB, archive {drill.archive_bytes / 1e6:.1f} MB"
    lines = [
        f"base backup: {drill.base_backup_s:.1f} s, {sizes} ({how})",
        "",
        "RPO: of the edits that devices were told are stored",
    ]
    lines += [f"  disk lost, {_loss(one)}" for one in drill.disk_lost]
    if drill.point_in_time is not None:
        lines.append(f"  tenant erased, {_loss(drill.point_in_time)}")
    lines += [
        f"  the erased tenant: {drill.erased_back} of {drill.erased_acknowledged} edits are back",
        f"  held by devices, not acknowledged: {drill.queued}, of which {drill.queued_applied} were applied",
        f"  files: {drill.files_found} there, {drill.files_missing} missing, uploaded after the last copy",
        "",
        f"RTO: ready after {drill.ready_s:.1f} s, all devices agree after {drill.agree_s:.1f} s",
    ]
    lines += [f"  {one.took_s:6.1f} s  {one.name}" for one in drill.steps]
    lines += ["", *(f"FAULT: {one}" for one in drill.faults)] if drill.faults else ["", "no faults"]
    return "\n".join(lines)


def _loss(one: Loss) -> str:
    lost = f"{one.lost} of {one.acknowledged} lost"
    return f"{one.kept}: {lost}, {one.window_s:.1f} s; the database was back after {one.restore_s:.1f} s"
