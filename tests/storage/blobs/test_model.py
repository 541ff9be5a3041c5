"""Blobs against a dictionary, in whatever order uploads are appended to, taken over and published."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.model.uploads import Draft, UploadRef
from engine.runtime.settings import S3
from engine.uploads.blobs import BlobMissingError, Blobs, BlobsError, DraftWriter
from tests.harness.uploads.blob_writer import opened

#: More than a piece of a bucket, in blocks that are told apart.
_LARGE = 700_001


class Step(msgspec.Struct, frozen=True):
    """One thing that is done to one of few uploads, by one of two processes.

    ``answered`` says whether what is appended is acknowledged; ``stays`` leaves a request behind that goes
    on later, however long it has been given up.
    """

    what: Literal["append", "renew", "claim", "late", "publish", "join", "drop"]
    upload: int
    process: int
    blocks: tuple[bytes, ...]
    answered: bool
    stays: bool


_BLOCKS = st.lists(
    st.binary(max_size=40) | st.integers(0, 255).map(lambda byte: bytes([byte]) * _LARGE), max_size=4
).map(tuple)
_STEPS = st.lists(
    st.builds(
        Step,
        what=st.sampled_from(
            ["append", "append", "append", "renew", "claim", "late", "late", "publish", "join", "drop"]
        ),
        upload=st.integers(0, 2),
        process=st.integers(0, 1),
        blocks=_BLOCKS,
        answered=st.booleans(),
        stays=st.booleans(),
    ),
    max_size=14,
)


class World:
    """Two processes on one place, and what is to be found there."""

    def __init__(self, place: str) -> None:
        self._processes = [opened(place), opened(place)]
        # The last is another tenant's with the id of the first.
        first = uuid.uuid4().hex
        self._refs = [UploadRef(1, first), UploadRef(1, uuid.uuid4().hex), UploadRef(2, first)]
        self._drafts = {ref: Draft(ref, 0, 0) for ref in self._refs}
        self._expected = dict.fromkeys(self._refs, b"")
        self._files: dict[UploadRef, bytes] = {}
        self._left: list[tuple[Draft, DraftWriter]] = []

    async def play(self, steps: list[Step]) -> None:
        """Take the steps, and look at everything after each."""
        try:
            for step in steps:
                await self._take(step)
                await self._look(self._processes[1 - step.process])
        finally:
            for _, writer in self._left:
                await writer.close()
            for process in self._processes:
                process.close()

    async def _take(self, step: Step) -> None:
        blobs: Blobs = self._processes[step.process]
        ref = self._refs[step.upload]
        draft = self._drafts[ref]
        if step.what == "late":
            await self._late(step.blocks)
        elif step.what == "join":
            await self._join(blobs)
        elif ref in self._files:
            await blobs.publish([draft], ref)
        elif step.what == "append":
            await self._append(blobs, draft, step)
        elif step.what == "publish":
            await blobs.publish([draft], ref)
            self._files[ref] = self._expected[ref]
        elif step.what == "drop":
            await blobs.delete_draft(ref)
            self._claim(draft, draft.generation + 1, 0)
            self._expected[ref] = b""
        else:
            if step.what == "renew":
                await blobs.fork_draft(draft, draft.generation + 1)
            self._claim(draft, draft.generation + 1, draft.size_bytes)

    def _claim(self, draft: Draft, generation: int, size_bytes: int) -> None:
        pieces = draft.pieces if size_bytes else ()
        self._drafts[draft.ref] = Draft(draft.ref, generation, size_bytes, pieces)

    async def _append(self, blobs: Blobs, draft: Draft, step: Step) -> None:
        writer = blobs.open_draft(draft, "sha256")
        for block in step.blocks[:-1]:
            await writer.write([block, b""])
        if step.stays:
            # Its upload is taken from it, as from every request that does not end.
            self._left.append((draft, writer))
            self._claim(draft, draft.generation + 1, draft.size_bytes)
            return
        pieces = await writer.flush(step.blocks[-1:])
        await writer.close()
        came = b"".join(step.blocks)
        assert writer.digest() == hashlib.sha256(came).digest()
        if step.answered:
            size_bytes = draft.size_bytes + len(came)
            self._drafts[draft.ref] = Draft(draft.ref, draft.generation, size_bytes, draft.pieces + pieces)
            self._expected[draft.ref] += came

    async def _late(self, blocks: tuple[bytes, ...]) -> None:
        for _, writer in self._left:
            with suppress(BlobsError):
                await writer.write(blocks)
                await writer.flush(blocks)

    async def _join(self, blobs: Blobs) -> None:
        drafts = [self._drafts[ref] for ref in reversed(self._refs) if ref not in self._files]
        joined = UploadRef(1, uuid.uuid4().hex)
        if len(drafts) > 1:
            await blobs.publish(drafts, joined)
            self._files[joined] = b"".join([self._expected[draft.ref] for draft in drafts])

    async def _look(self, blobs: Blobs) -> None:
        for ref, draft in self._drafts.items():
            found = await blobs.inspect([draft], ref)
            assert found.sha256 == hashlib.sha256(self._expected[ref]).hexdigest()
            assert found.head == self._expected[ref][:8192]
            if ref not in self._files:
                try:
                    async for _ in blobs.read(ref, 0, 1):
                        raise AssertionError("a file that nobody published")
                except BlobMissingError:
                    pass
        for ref, expected in self._files.items():
            assert b"".join([block async for block in blobs.read(ref, 0, len(expected))]) == expected


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_directory_agrees_with_a_dictionary(tmp_path: Path, steps: list[Step]) -> None:
    asyncio.run(World(str(tmp_path)).play(steps))


@settings(deadline=None, max_examples=6, suppress_health_check=list(HealthCheck))
@given(steps=_STEPS)
def test_bucket_agrees_with_a_dictionary(bucket: S3, steps: list[Step]) -> None:
    asyncio.run(World(msgspec.json.encode(bucket).decode()).play(steps))
