"""Code of one worker never gives its event loop back."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import psutil

from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site

_LOOPING = Path(__file__).parents[1] / "looping"
#: Connections are dealt out by chance: of so many devices each worker has some.
_DEVICES = 10
_PATIENCE_S = 30


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


async def _begin(site: Site) -> None:
    """Worker 1 runs an endless loop."""
    looping = psutil.Process(site.server.pid_of(1))
    site.stack.callback(_kill, looping)  # it would not notice that its supervisor has ended
    looping.send_signal(signal.SIGUSR2)


async def _symptom(site: Site) -> str:
    await site.fleet.held()
    before = site.fleet.acknowledged
    await site.fleet.until(lambda: site.fleet.acknowledged > before, _PATIENCE_S)
    went_on = site.fleet.acknowledged - before
    return f"{site.fleet.waiting} edits wait on devices of worker 1; {went_on} of others were acknowledged"


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("worker 1: no answer", r"\d+ +R\S* +[\d.]+ +[\d:]+ .*run\.py worker"),
    # A page of metrics waits a second for the worker that does not answer.
    layout=Layout(workers=2, devices=_DEVICES, settings={"PYTHONPATH": str(_LOOPING)}, scrape="2s"),
)
