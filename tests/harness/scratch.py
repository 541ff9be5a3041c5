"""Directories that need not outlive a run: in memory where there is room, since no test cuts the power.

A database is copied there in a quarter of the time that a disk takes, and to flush a file costs nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # each directory gets a name of its own
#: Far more than a run fills: containers often give it a few megabytes.
_ROOM_BYTES: Final = 4 << 30


def _in_memory() -> bool:
    try:
        about = os.statvfs(_MEMORY)
    except OSError:
        return False
    # The servers' binaries may be copied there and have to run.
    return about.f_bavail * about.f_frsize >= _ROOM_BYTES and not about.f_flag & os.ST_NOEXEC


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Make a directory that other accounts can pass through, and remove it in the end."""
    place = Path(tempfile.mkdtemp(prefix=prefix, dir=_MEMORY if _in_memory() else None))
    place.chmod(0o711)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
