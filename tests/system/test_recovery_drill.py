"""The drill of docs/recovery.md: a restore has all that devices were told is safe, but for what is told."""

from __future__ import annotations

import pytest

from deploy.recovery.drill import Options, Recovery
from deploy.recovery.report import Drill, text
from tests.harness.scratch import scratch


async def _drilled(*, wait_for_receiver: bool) -> Drill:
    with scratch("tidemark-recovery-") as home:
        return await Recovery(home, Options(10.0, wait_for_receiver), lambda _: None).run()


@pytest.mark.slow
@pytest.mark.parametrize("waits", [False, True], ids=["asynchronous", "waited-for"])
async def test_recovery_drill_restores_to_just_before_the_mistake(*, waits: bool) -> None:
    drill = await _drilled(wait_for_receiver=waits)
    assert drill.faults == [], text(drill)
    archive, received = drill.disk_lost
    assert archive.acknowledged == received.acknowledged > 300
    assert received.lost <= archive.lost
    if waits:
        assert received.lost == 0
    assert drill.point_in_time is not None
    assert 0 < drill.point_in_time.lost < drill.point_in_time.acknowledged
    assert drill.erased_back == drill.erased_acknowledged > 0
    assert drill.queued_applied == drill.queued > 0
    assert (drill.files_found, drill.files_missing) == (1, 1)
