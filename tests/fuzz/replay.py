"""Runs a target on inputs, for its coverage: ``python -m tests.fuzz.replay TARGET CORPUS…``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["AIOHTTP_NO_EXTENSIONS"] = "1"  # as in the search

from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    for folder in sys.argv[2:]:
        for path in sorted(Path(folder).iterdir()):
            TARGETS[sys.argv[1]].search(path.read_bytes())
