"""The client of ``uploads``, its own process: ``python -m bench.uploads.generator`` with a plan on stdin.

A closed loop: each uploader sends its next chunk when the last one is acknowledged, as tus clients do.
"""

from __future__ import annotations

import asyncio
import gc
import time
from array import array
from collections import Counter
from time import perf_counter
from typing import Final

from bench.load.child_process import Lines, main, say
from bench.uploads.check import Checker
from bench.uploads.device import FailedError, Stored, Uploader
from bench.uploads.plan import Ready, Sent, Transferred, UploadPlan
from bench.uploads.workload import RECORD_FILES, Album, record_id

_NAMED: Final = 5


class Run:
    """All uploaders from the first connection to the last comparison."""

    def __init__(self, plan: UploadPlan, lines: Lines) -> None:
        self._plan = plan
        self._lines = lines
        self._transferred = Transferred()
        self._chunk_us = array("Q")
        self._album = Album(plan.prefix, len(plan.tokens), plan.file_bytes)
        self._uploaders = [
            Uploader(plan, number, self._transferred, self._chunk_us) for number in range(len(plan.tokens))
        ]
        self._stored: list[Stored] = []
        self._faults: list[str] = []
        self._ending = not plan.goes_on

    async def run(self) -> Transferred:
        """Run the plan. Raises OSError if there is no server."""
        await asyncio.gather(*(self._prepare(uploader) for uploader in self._uploaders))
        say(Ready())
        await self._lines.next()
        gc.collect()
        gc.freeze()
        gc.disable()
        began_s, cpu_s = perf_counter(), time.process_time()
        ending = asyncio.create_task(self._end()) if self._plan.goes_on else None
        await asyncio.gather(*(self._work(uploader) for uploader in self._uploaders))
        self._transferred.elapsed_s = perf_counter() - began_s
        self._transferred.cpu_ms = 1000 * (time.process_time() - cpu_s)
        if ending is not None:
            ending.cancel()
        say(Sent())
        await self._lines.next()
        began_s = perf_counter()
        checker = Checker(self._plan, self._uploaders)
        self._transferred.whole = await checker.check(self._stored)
        self._transferred.download_s = perf_counter() - began_s
        self._sum_up(self._faults + checker.faults)
        for uploader in self._uploaders:
            uploader.close()
        return self._transferred

    async def _prepare(self, uploader: Uploader) -> None:
        """Connect, and make the record that this uploader's first files are to belong to."""
        await uploader.connect()
        if self._plan.records:
            await uploader.make_record(record_id(self._plan.prefix, uploader.number, 0))

    async def _end(self) -> None:
        await self._lines.next()
        self._ending = True

    async def _work(self, uploader: Uploader) -> None:
        number = 0
        while not number or not self._ending:
            picture = self._album.picture(uploader.number, number)
            self._transferred.begun += 1
            try:
                if self._plan.records and number and not number % RECORD_FILES:
                    await uploader.make_record(picture.record_id)
                self._stored.append(await uploader.upload(picture))
            except (FailedError, OSError) as error:
                self._faults.append(f"upload {number} of uploader {uploader.number}: {error}")
            number += 1

    def _sum_up(self, faults: list[str]) -> None:
        transferred = self._transferred
        transferred.retries = dict(sum((one.retries for one in self._uploaders), Counter[str]()))
        transferred.chunk_us = self._chunk_us.tolist()
        transferred.fault_count = len(faults)
        transferred.faults = faults[:_NAMED]


async def _run(plan: UploadPlan, lines: Lines) -> None:
    say(await Run(plan, lines).run())


if __name__ == "__main__":
    main(UploadPlan, _run)
