"""Code of one worker never gives its event loop back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site

_LOOPING = Path(__file__).parents[1] / "looping"
#: Connections are dealt out by chance: of so many devices each worker has some.
_DEVICES = 10


async def _begin(site: Site) -> None:
    """Worker 1 runs an endless loop."""
    os.kill(site.server.pid_of(1), signal.SIGUSR2)


async def _symptom(site: Site) -> str:
    await site.fleet.held()
    before = site.fleet.acknowledged
    await site.fleet.held(site.fleet.waiting + 5)
    went_on = site.fleet.acknowledged - before
    assert went_on, "the devices of the other worker do not go on"
    return f"{site.fleet.waiting} edits wait on devices of worker 1; {went_on} of others were acknowledged"


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=(r'tidemark_worker_up\{.*worker="1".*\} 0', "worker 1: no answer", r"\n *PID.*\n.*python"),
    # A page of metrics waits a second for the worker that does not answer.
    layout=Layout(workers=2, devices=_DEVICES, settings={"PYTHONPATH": str(_LOOPING)}, scrape="2s"),
)
