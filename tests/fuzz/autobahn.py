"""The Autobahn cases, run by kosoku, on our own edge: ``python -m tests.fuzz.autobahn CASES…``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import kosoku  # in the installation of make fuzz alone
import kosoku.cases

from tests.fuzz.echo import echoing


def _take_plain_messages(case: Any) -> None:
    """Let a case of compression take messages that come uncompressed, as the server sends those below 1 KiB.

    kosoku 0.1.0 gives them to a case as ``str``. Its cases want bytes, as they get of compressed messages.
    """
    check = case.onMessage

    def on_message(self: Any, message: bytes | str, binary: bool) -> None:
        if isinstance(message, str):
            message = message.encode("latin-1" if binary else "utf-8")
        check(self, message, binary)

    case.onMessage = on_message


async def run(cases: Sequence[str]) -> list[Any]:
    """Run the cases that patterns such as ``6.*`` name, or all."""
    for case_id, case in kosoku.cases.CASES.items():
        if case_id.startswith(("12.", "13.")):
            _take_plain_messages(case)
    async with echoing() as port:
        try:
            results: list[Any] = await kosoku.run_fuzzingclient(f"ws://127.0.0.1:{port}", list(cases) or None)
        except kosoku.FailureError as failure:
            results = failure.results
    return results


def main() -> int:
    """Run cases and say what failed. Returns the exit status."""
    results = asyncio.run(run(sys.argv[1:]))
    verdicts = Counter(one.behavior.value for one in results)
    failed = [one for one in results if one.behavior.value in ("FAILED", "ERROR") or _unclean(one)]
    for one in failed:
        sys.stdout.write(f"Autobahn {one.case_id}: {one.behavior.value}, close {one.behavior_close.value}\n")
    sums = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    sys.stdout.write(f"Autobahn: {len(results)} cases: {sums or 'none'}; {len(failed)} failed\n")
    return int(bool(failed) or not results)


def _unclean(result: Any) -> bool:
    return result.behavior_close.value in ("FAILED", "WRONG CODE", "UNCLEAN")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # kosoku's threads may abort the interpreter while it ends
