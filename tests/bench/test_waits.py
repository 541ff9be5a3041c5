"""How long others wait, measured once on real workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.faults.waits import measure
from storage.embedded.servers import Services
from tests.harness.services import data_dir


@pytest.mark.slow
async def test_waits_are_measured_and_end(services: Services, tmp_path: Path) -> None:
    # Where the account that runs PostgreSQL may go, and short enough for its socket's path.
    place = data_dir(services) / tmp_path.name
    try:
        found = await measure(None, str(place), 1, 1)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for wait in found.values():
        assert wait["times"] == 1
        assert 0 < wait["median"] == wait["longest"]
