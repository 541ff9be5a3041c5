"""``python -m tests.system.outages database_down`` brings a cause about; without a name it lists them."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from tests.system.outages.drill import drill
from tests.system.outages.page import sections

if __name__ == "__main__":
    names = sys.argv[1:]
    if not names or not set(names) <= set(sections()):
        sys.exit(f"Usage: python -m tests.system.outages CAUSE…\nCauses: {', '.join(sections())}")
    for name in names:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(drill(name))
