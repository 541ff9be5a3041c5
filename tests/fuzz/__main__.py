"""``make fuzz MINUTES=30``: searches every target, and says what was tried, reached and found."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from tests.fuzz.targets import TARGETS

ROOT: Final = Path(__file__).parents[2]
CORPUS: Final = ROOT / "tests" / "fuzz" / "corpus"
#: What a search found so far, for the next one.
WORK: Final = ROOT / ".fuzz"
#: An input that takes longer, or more memory, is a finding.
_SLOW_S: Final = 2
_MEMORY_MB: Final = 1_024
_INPUT_BYTES: Final = 4_096
_EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
#: The count of a line of progress, for a search that was killed before it told the sum.
_PROGRESS = re.compile(r"^#(\d+)\t", re.MULTILINE)
_FOUND = re.compile(r"Test unit written to (\S+)")


class Searched(NamedTuple):
    """What a search of a target came to. ``findings`` are files with the inputs."""

    name: str
    executions: int
    inputs: int
    findings: list[str]
    coverage: str
    failure: str


def search(name: str, budget_s: int) -> Searched:
    """Search a target for so long, in processes that end with each finding."""
    known, work, found = CORPUS / name, WORK / name, WORK / "found" / name
    for folder in (work, found):
        folder.mkdir(parents=True, exist_ok=True)
    ends_s = time.monotonic() + budget_s
    executions, findings, failure = 0, list[str](), ""
    while (left_s := round(ends_s - time.monotonic())) > 0:
        made = _python(
            *("-m", "tests.fuzz.child", name),
            *(f"-max_total_time={left_s}", f"-timeout={_SLOW_S}", f"-rss_limit_mb={_MEMORY_MB}"),
            *(f"-max_len={_INPUT_BYTES}", f"-artifact_prefix={found}/", "-print_final_stats=1"),
            *(str(work), str(known)),
        )
        log = made.stdout + made.stderr
        (WORK / f"{name}.log").write_text(log)
        executions += int((_EXECUTIONS.findall(log) or _PROGRESS.findall(log) or [0])[-1])
        findings += _FOUND.findall(log)
        if made.returncode == 0:
            break
        if not _FOUND.search(log):
            said = (log.strip().splitlines() or ["it said nothing"])[-1]
            failure = f"signal {-made.returncode}" if made.returncode < 0 else said
            break
        if len(findings) >= 5:  # the same fault, most likely
            break
    inputs = sum(1 for _ in work.iterdir())
    return Searched(name, executions, inputs, findings, _coverage(name, known, work), failure)


def _coverage(name: str, *folders: Path) -> str:
    """Return how many lines and branches of the decoder all inputs together reach."""
    modules = TARGETS[name].modules
    data = f"--data-file={WORK / name}.coverage"
    include = f"--include={','.join(modules)}"
    _python(
        "-m",
        "coverage",
        "run",
        "--branch",
        data,
        include,
        "-m",
        "tests.fuzz.replay",
        name,
        *map(str, folders),
    )
    said = _python("-m", "coverage", "json", "-q", data, include, "-o", "-").stdout
    try:
        files = json.loads(said)["files"]
    except ValueError:
        return "not measured"
    sums = ((Path(path).name, one["summary"]) for path, one in sorted(files.items()))
    return ", ".join(f"{path} {one['percent_covered']:.0f} %" for path, one in sums)


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, errors="replace"
    )


def main() -> int:
    """Search all targets. Returns the exit status: 1 for a finding or a search that failed."""
    parser = argparse.ArgumentParser(
        prog="make fuzz",
        description="Search the decoders for input that they fail on.",
        epilog="example: make fuzz MINUTES=30",
    )
    parser.add_argument("--minutes", type=float, required=True, help="how long, all targets together")
    minutes = parser.parse_args().minutes
    lanes = os.cpu_count() or 1
    budget_s = max(1, round(minutes * 60 * lanes / len(TARGETS)))
    with ThreadPoolExecutor(lanes) as pool:
        searched = list(pool.map(lambda name: search(name, budget_s), TARGETS))
    for one in searched:
        sys.stdout.write(
            f"{one.name:<9} {one.executions:>12,} executions  {one.inputs:>6,} inputs kept"
            f"  {len(one.findings)} found  {one.coverage}\n"
        )
        for path in one.findings:
            sys.stdout.write(f"    found: {path}: repair it, and move it to tests/fuzz/corpus/{one.name}/\n")
        if one.failure:
            sys.stdout.write(f"    the search failed: {one.failure}, see {WORK / one.name}.log\n")
    sys.stdout.write(f"{sum(one.executions for one in searched):,} executions\n")
    return int(any(one.findings or one.failure for one in searched))


if __name__ == "__main__":
    sys.exit(main())
