"""``tidemark`` and ``python -m tidemark`` of an installed wheel: what ``run.py`` is in a checkout."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run ``run.py``, which stands beside this file in a wheel.

    The packages of the program (``engine``, ``storage``, …) are found in its folder alone: they have no place
    of their own among the packages of other projects.
    """
    folder = Path(__file__).parent
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / "run.py"), run_name="__main__")


if __name__ == "__main__":
    main()
