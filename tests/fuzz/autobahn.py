"""The Autobahn cases, run by kosoku, on our own edge: ``python -m tests.fuzz.autobahn CASES…``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import kosoku  # in the installation of make fuzz alone

from tests.fuzz.echo import echoing

#: With this error kosoku 0.1.0 itself fails on cases 12 and 13 of small messages, before it connects.
_OWN_FAULT = "Strings must be encoded before hashing"


async def run(cases: Sequence[str]) -> list[Any]:
    """Run the cases that patterns such as ``6.*`` name, or all."""
    async with echoing() as port:
        try:
            results: list[Any] = await kosoku.run_fuzzingclient(f"ws://127.0.0.1:{port}", list(cases) or None)
        except kosoku.FailureError as failure:
            results = failure.results
    return results


def main() -> int:
    """Run cases and say what failed. Returns the exit status."""
    every = asyncio.run(run(sys.argv[1:]))
    results = [one for one in every if _OWN_FAULT not in str(one.result)]
    verdicts = Counter(one.behavior.value for one in results)
    failed = [one for one in results if one.behavior.value in ("FAILED", "ERROR") or _unclean(one)]
    for one in failed:
        sys.stdout.write(f"Autobahn {one.case_id}: {one.behavior.value}, close {one.behavior_close.value}\n")
    sums = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    sys.stdout.write(
        f"Autobahn: {len(results)} cases: {sums or 'none'}; {len(failed)} failed,"
        f" {len(every) - len(results)} not run by a fault of kosoku\n"
    )
    return int(bool(failed) or not results)


def _unclean(result: Any) -> bool:
    return result.behavior_close.value in ("FAILED", "WRONG CODE", "UNCLEAN")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # kosoku's threads may abort the interpreter while it ends
