"""The client of ``uploads``, its own process: ``python -m bench.uploads.generator`` with a plan on stdin.

A closed loop: each uploader sends its next chunk when the last one is acknowledged, as tus clients do. It
says ``connected``, is told to begin, says ``sent`` when all is uploaded, is told to compare, and says what
came of it once every file is downloaded and compared. One that goes on is told on a further line to end: then
what is under way is finished.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from time import perf_counter
from typing import Final

import msgspec

from bench.load.child_process import Lines, main, say, ticking
from bench.report.results import Transfer
from bench.report.statistics import histogram_of, latency_of
from bench.uploads.device import FailedError, Stored, Uploader
from bench.uploads.workload import RECORD_FILES, TYPE, Album, record_id

#: How many devices download at once, each what it uploaded.
_DOWNLOADS: Final = 8
#: How long a file may take to be in the feed, and how often it is looked for meanwhile.
_FEED_S: Final = 15.0
_LOOK_S: Final = 0.5
_FIELDS: Final = ("file_id", "filename", "filetype", "size_bytes", "sha256")
_NAMED: Final = 5


class UploadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Uploader n has token n and one upload under way at a time.

    ``files`` is the path that files are downloaded from, ``records`` whether they belong to records that a
    feed tells of. ``goes_on`` has each uploader begin another upload when one is done, until told to end.
    """

    host: str
    port: int
    files: str
    prefix: str
    tokens: list[str]
    file_bytes: int
    chunk_bytes: int
    records: bool
    goes_on: bool = False


class Uploads:
    """All uploaders from the first connection to the last comparison; ``faults`` has a sentence for each."""

    def __init__(self, plan: UploadPlan) -> None:
        self._plan = plan
        self._album = Album(plan.prefix, len(plan.tokens), plan.file_bytes, plan.chunk_bytes)
        self.uploaders = [
            Uploader((plan.host, plan.port), token, plan.chunk_bytes, number)
            for number, token in enumerate(plan.tokens)
        ]
        self._begun = 0
        self._stored: list[Stored] = []
        self._ending = not plan.goes_on
        self.faults: list[str] = []

    async def run(self, lines: Lines) -> Transfer:
        """Run the plan. Raises OSError if there is no server."""
        await asyncio.gather(*map(self._prepare, self.uploaders))
        say("connected")
        await lines.next()
        gc.collect()
        gc.freeze()
        gc.disable()
        began_s, cpu_s = perf_counter(), time.process_time()
        telling = asyncio.create_task(ticking(partial(self._live, began_s)))
        ending = asyncio.create_task(self._end(lines)) if self._plan.goes_on else None
        await asyncio.gather(*map(self._work, self.uploaders))
        elapsed_s, cpu_s = perf_counter() - began_s, time.process_time() - cpu_s
        telling.cancel()
        if ending is not None:
            ending.cancel()
        say("sent")
        await lines.next()
        began_s = perf_counter()
        whole = await self.check(self._stored)
        sent_mb = sum(one.sent_bytes for one in self.uploaders) / 1e6
        chunk_us = [took_us for one in self.uploaders for took_us in one.chunk_us]
        return Transfer(
            name="",
            begun=self._begun,
            whole=whole,
            chunks=len(chunk_us),
            elapsed_s=elapsed_s,
            mb_per_s=sent_mb / elapsed_s,
            download_mb_per_s=sent_mb / (perf_counter() - began_s),
            chunk=latency_of(chunk_us),
            histogram=histogram_of(chunk_us),
            retries=dict(sum((one.retries for one in self.uploaders), Counter[str]())),
            cpus={"client": cpu_s / elapsed_s},
            other_cpus=None,
            rss_peak_mib=0.0,
            fault_count=len(self.faults),
            faults=self.faults[:_NAMED],
        )

    def _live(self, began_s: float) -> str:
        sent_mb = sum(one.sent_bytes for one in self.uploaders) / 1e6
        again = sum(one.retries.total() for one in self.uploaders)
        rate = sent_mb / (perf_counter() - began_s)
        return f"uploads: {sent_mb:,.0f} MB, {rate:.0f} MB/s, {again} sent again, {len(self.faults)} errors"

    async def _prepare(self, uploader: Uploader) -> None:
        """Connect, and make the record that this uploader's first files are to belong to."""
        await uploader.connect()
        if self._plan.records:
            await uploader.make_record(record_id(self._plan.prefix, uploader.number, 0))

    async def _end(self, lines: Lines) -> None:
        await lines.next()
        self._ending = True

    async def _work(self, uploader: Uploader) -> None:
        number = 0
        while not number or not self._ending:
            picture = self._album.picture(uploader.number, number)
            self._begun += 1
            try:
                if self._plan.records and number and not number % RECORD_FILES:
                    await uploader.make_record(picture.record_id)
                self._stored.append(await uploader.upload(picture))
            except (FailedError, OSError) as error:
                self.faults.append(f"upload {number} of uploader {uploader.number}: {error}")
            number += 1

    async def check(self, stored: Sequence[Stored]) -> int:
        """Download and look up all of them, and give how many are as they were sent."""
        wrong: dict[str, str] = {}
        turns = asyncio.Semaphore(_DOWNLOADS)

        async def work(uploader: Uploader) -> None:
            async with turns:
                for one in stored:
                    if one.uploader == uploader.number and (fault := await self._downloaded(uploader, one)):
                        wrong[one.file_id] = fault

        await asyncio.gather(*map(work, self.uploaders))
        if self._plan.records:
            for file_id in await self._missing(stored):
                wrong.setdefault(file_id, "its record's feed entry does not name it as it is")
        self.faults += [f"file {file_id}: {fault}" for file_id, fault in wrong.items()]
        return len(stored) - len(wrong)

    async def _downloaded(self, uploader: Uploader, one: Stored) -> str:
        """Return what is wrong with a file or its upload, empty if nothing is.

        The upload is asked for last: its answer comes when the server is done with the download. Node's ends
        where a connection is closed before that.
        """
        try:
            answer = await uploader.ask("GET", f"{self._plan.files}/{one.file_id}")
            if answer.status != 200:
                return f"status {answer.status}"
            if hashlib.sha256(answer.body).hexdigest() != one.picture.sha256:
                return "its bytes are not those that were sent"
            answer = await uploader.ask("HEAD", f"/v1/uploads/{one.file_id}")
        except OSError as error:
            return str(error)
        told = answer.headers.get("upload-offset")
        if told != str(one.picture.size_bytes):
            return f"its upload is said to be at {told}, status {answer.status}"
        return ""

    async def _missing(self, stored: Sequence[Stored]) -> Iterable[str]:
        """Read the feed, and name the files that it does not tell of in time."""
        missing = {_entry(one): one.file_id for one in stored}
        cursor, more, give_up_s = "", True, perf_counter() + _FEED_S
        while missing and (more or perf_counter() < give_up_s):
            if not more:
                await asyncio.sleep(_LOOK_S)
            answer = await self.uploaders[0].ask("GET", f"/v1/changes?cursor={cursor}")
            page = msgspec.json.decode(answer.body)
            for change in page["changes"]:
                for entry in change.get("attachments", ()):
                    missing.pop((change["id"], *(entry[field] for field in _FIELDS)), None)
            cursor, more = page["cursor"], page["more"]
        return missing.values()


def _entry(one: Stored) -> tuple[object, ...]:
    picture = one.picture
    return (picture.record_id, one.file_id, picture.name, TYPE, picture.size_bytes, picture.sha256)


async def _run(plan: UploadPlan, lines: Lines) -> None:
    say(await Uploads(plan).run(lines))


if __name__ == "__main__":
    main(UploadPlan, _run)
