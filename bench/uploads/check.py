"""Checks uploads: downloads each file, compares it with what was sent, and looks for it in the feed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

import msgspec

from bench.uploads.device import Stored, Uploader
from bench.uploads.plan import UploadPlan
from bench.uploads.workload import TYPE

#: How many devices download at once, each what it uploaded.
_DOWNLOADS: Final = 8
#: How long a file may take to be in the feed, and how often it is looked for meanwhile.
_FEED_S: Final = 15.0
_LOOK_S: Final = 0.5
_FIELDS: Final = ("file_id", "filename", "filetype", "size_bytes", "sha256")


class Checker:
    """Counts what is whole, and says what is not."""

    def __init__(self, plan: UploadPlan, uploaders: Sequence[Uploader]) -> None:
        self._plan = plan
        self._uploaders = uploaders
        self.faults: list[str] = []

    async def check(self, stored: Sequence[Stored]) -> int:
        """Download and look up all of them, and give how many are as they were sent."""
        wrong: set[str] = set()
        turns = asyncio.Semaphore(_DOWNLOADS)

        async def work(uploader: Uploader) -> None:
            async with turns:
                for one in stored:
                    if one.uploader == uploader.number and (fault := await self._downloaded(uploader, one)):
                        wrong.add(one.file_id)
                        self.faults.append(f"file {one.file_id}: {fault}")

        await asyncio.gather(*map(work, self._uploaders))
        if self._plan.records:
            for file_id in await self._missing(stored):
                wrong.add(file_id)
                self.faults.append(f"file {file_id}: its record's feed entry does not name it as it is")
        return len(stored) - len(wrong)

    async def _downloaded(self, uploader: Uploader, one: Stored) -> str:
        """Return what is wrong with a file or its upload, empty if nothing is.

        The upload is asked for last: its answer comes when the server is done with the download. Node's ends
        where a connection is closed before that.
        """
        digest = hashlib.sha256()
        try:
            answer = await uploader.ask("GET", f"{self._plan.files}/{one.file_id}", sink=digest.update)
            if answer.status != 200:
                return f"status {answer.status}"
            if digest.hexdigest() != one.picture.sha256:
                return "its bytes are not those that were sent"
            answer = await uploader.ask("HEAD", f"/v1/uploads/{one.file_id}")
        except OSError as error:
            return str(error)
        told = answer.headers.get(b"upload-offset")
        if told != str(one.picture.size_bytes).encode():
            return f"its upload is said to be at {told!r}, status {answer.status}"
        return ""

    async def _missing(self, stored: Sequence[Stored]) -> list[str]:
        """Name the files that the feed does not tell of in time."""
        give_up_s = perf_counter() + _FEED_S
        while True:
            told = await self._told()
            missing = [one.file_id for one in stored if self._entry(one) not in told]
            if not missing or perf_counter() > give_up_s:
                return missing
            await asyncio.sleep(_LOOK_S)

    async def _told(self) -> set[tuple[Any, ...]]:
        """Read the whole feed, and give the attachments in it."""
        told: set[tuple[Any, ...]] = set()
        cursor, more = "", True
        while more:
            answer = await self._uploaders[0].ask("GET", f"/v1/changes?cursor={cursor}")
            page = msgspec.json.decode(answer.body)
            for change in page["changes"]:
                told.update(
                    (change["id"], *(entry[field] for field in _FIELDS))
                    for entry in change.get("attachments", ())
                )
            cursor, more = page["cursor"], page["more"]
        return told

    def _entry(self, one: Stored) -> tuple[Any, ...]:
        picture = one.picture
        return (picture.record_id, one.file_id, picture.name, TYPE, picture.size_bytes, picture.sha256)
