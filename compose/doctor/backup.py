"""When the last backup ended well, as the backup itself tells it.

PostgreSQL keeps no record of base backups, and knows nothing of copies of files and keys. So the last step of
a backup touches a file in the data directory. No server reads it, so that no setting is needed for it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from engine.operate.rows import CheckResult

NAME: Final = "last_backup"
#: With an archive of the WAL a backup a week is enough; without one, all since the last backup is lost.
_WITH_ARCHIVE: Final = timedelta(days=8)
_WITHOUT_ARCHIVE: Final = timedelta(hours=26)


def backup_ended_at(data_dir: Path) -> datetime | None:
    """Return when the last backup ended; None if none ever told."""
    try:
        return datetime.fromtimestamp((data_dir / NAME).stat().st_mtime, UTC)
    except OSError:
        return None


def backup_finding(place: Path, ended_at: datetime | None, now: datetime, *, archived: bool) -> CheckResult:
    """Judge the age of the last backup.

    Args:
        place: The data directory.
        ended_at: When the backup ended; None if none ever told.
        now: The time.
        archived: Whether the WAL is archived, or followed.
    """
    touch = f"have the last step of your backup run: touch {place / NAME}"
    if ended_at is None:
        found = f"no backup has told that it ended: there is no {place / NAME}"
        return CheckResult("warning", "backup", found, touch)
    age, most = now - ended_at, _WITH_ARCHIVE if archived else _WITHOUT_ARCHIVE
    found = f"the last backup ended {ended_at:%Y-%m-%d %H:%M} UTC, {age / timedelta(hours=1):.0f} hours ago"
    if age > most:
        remedy = "run it now, and see why it did not run or end (docs/operations.md, Backups and restores)"
        return CheckResult("fault", "backup", found, remedy)
    return CheckResult("ok", "backup", found)
