"""The commands ``make audit`` and ``make sbom``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from deploy.audit import tools
from deploy.audit.sbom import of_server
from deploy.audit.verdict import exit_status, page

_USAGE: Final = "python -m deploy.audit audit|sbom TOOLS PYTHON, as make audit and make sbom do"


def main(arguments: list[str]) -> int:
    """Run one of the two. Returns the exit status: 1 for a finding, 3 if something could not be asked."""
    match arguments:
        case ["audit", programs, python]:
            verdicts = list(tools.audit(Path(programs).absolute(), Path(python).absolute()))
            sys.stdout.write(page(verdicts) + "\n" + tools.by_hand(Path(python).absolute()) + "\n")
            return exit_status(verdicts)
        case ["sbom", programs, python]:
            return _sbom(Path(programs).absolute(), Path(python).absolute())
        case _:
            sys.stderr.write(_USAGE + "\n")
            return 2


def _sbom(programs: Path, python: Path) -> int:
    made = subprocess.run(
        [
            *(programs / "cyclonedx-py", "environment", python, "--pyproject", tools.ROOT / "pyproject.toml"),
            *("--output-reproducible", "--sv", "1.6", "--of", "JSON", "-o", "-"),
        ],
        stdout=subprocess.PIPE,
        check=True,
    )
    requirements = (tools.ROOT / "deploy" / "requirements.txt").read_text("utf-8")
    try:
        listed = of_server(json.loads(made.stdout), requirements, tools.binaries(python), tools.scripts())
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(listed, indent=2, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
