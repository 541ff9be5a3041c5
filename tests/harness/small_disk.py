"""A file system of a test's own that holds little, to be filled."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """It is at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, *options: str) -> None:
        """Have it so large. Raises CalledProcessError where that is not allowed."""
        _run("mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.path))

    def unmount(self) -> None:
        """Take it away, also while somebody has files of it open."""
        _run("umount", "--lazy", str(self.path))


def _run(name: str, *arguments: str) -> None:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(name)
    subprocess.run([found, *arguments], check=True)


@contextmanager
def small_disk(path: Path, *options: str) -> Iterator[Disk]:
    """Mount one at a directory that is made. Skips where that is not allowed."""
    disk = Disk(path)
    path.mkdir()
    try:
        disk.mount(*options)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system of its own takes root")
    try:
        yield disk
    finally:
        disk.unmount()
