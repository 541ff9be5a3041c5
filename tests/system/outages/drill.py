"""One outage from its cause to its end, as a person at the page goes through it."""

from __future__ import annotations

import asyncio
import importlib
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from tests.system.outages.page import first_minutes, sections
from tests.system.outages.site import Layout, Say, Site, running


class Cause(NamedTuple):
    """A cause of an outage, brought about on a site.

    Args:
        begin: Brings it about.
        symptom: Waits until it shows as the page says. Returns a sentence with what was seen.
        finds: What the page's commands of diagnosis print, each a regular expression.
        layout: The site that it needs.
        mended: Waits until nothing of it is left, after the page's commands of recovery.
    """

    begin: Callable[[Site], Awaitable[None]]
    symptom: Callable[[Site], Awaitable[str]]
    finds: tuple[str, ...]
    layout: Layout = Layout()
    mended: Callable[[Site], Awaitable[None]] = Site.ready


_CAUSES: Final = "tests.system.outages.causes"
_LOOKS: Final = 5
_LOOK_S: Final = 1


def cause_of(name: str) -> Cause:
    """The cause in the file of that name. Raises ModuleNotFoundError."""
    found: Cause = importlib.import_module(f"{_CAUSES}.{name}").CAUSE
    return found


async def _found(site: Site, diagnosis: str, finds: tuple[str, ...]) -> None:
    """Run a diagnosis until it says all, as a person looks again: syncs that gave up wait for nobody."""
    for _ in range(_LOOKS):
        said = await site.run(diagnosis, strict=False)
        missing = [pattern for pattern in finds if not re.search(pattern, said)]
        if not missing:
            return
        await asyncio.sleep(_LOOK_S)
    raise AssertionError(f"the diagnosis does not say {', '.join(missing)}:\n{said}")


async def drill(name: str, say: Say = print, dsn: str | None = None, *, whole: bool = True) -> None:
    """Bring a cause about, see its symptom and its alerts, and have the page's commands find and mend it.

    Args:
        name: The file of the cause, which is also its section of the page.
        say: Takes what is to be shown.
        dsn: A migrated database for causes that leave PostgreSQL alone; None makes one.
        whole: Whether the commands of the first five minutes are run, too, and Prometheus judges. Both take
            seconds.
    """
    cause, section = cause_of(name), sections()[name]
    layout = cause.layout._replace(watched=whole)
    async with running(layout, say, dsn) as site:
        say(f"\n== {section.title}: {cause.begin.__doc__}")
        began_s = time.monotonic()

        def head(title: str) -> None:
            say(f"\n== {title}, {time.monotonic() - began_s:.0f} s after the cause")

        await cause.begin(site)
        seen = await cause.symptom(site)
        head("Symptom")
        say(seen)
        head("Alert")
        for alert in section.alerts:
            await site.alert(alert)
        if whole:
            head("The first five minutes")
            said = await site.run(first_minutes(), strict=False)
            assert not re.search(r'"timestamp".*"level": *"info"', said), "the log has lines that say nothing"
        head("Diagnosis")
        await _found(site, section.diagnosis, cause.finds)
        head("Recovery")
        await site.run(section.recovery, strict=True)
        await cause.mended(site)
        await site.fleet.progress()
        head("Devices are back")
        say(await site.fleet.finish(site.dsn))
