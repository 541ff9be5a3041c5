"""Searches one target until its time is over: ``python -m tests.fuzz.child TARGET FLAGS… CORPUS…``."""

from __future__ import annotations

import os
import sys

# aiohttp's parser in Python, of which its compiled one is made: only this has coverage that leads the search.
os.environ["AIOHTTP_NO_EXTENSIONS"] = "1"

import atheris  # in the installation of make fuzz alone

with atheris.instrument_imports(include=["engine", "handlers", "aiohttp._websocket", "jwt"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name = sys.argv[1]
    # The command with which it starts itself again, to merge.
    again = f"{sys.executable} -m tests.fuzz.child {name}"
    atheris.Setup([again, *sys.argv[2:]], TARGETS[name].search)
    atheris.Fuzz()
