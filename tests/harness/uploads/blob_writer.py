"""Appends to drafts without end, as a process of its own to be killed; says what is durable, line by line."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from engine.model.uploads import Draft, UploadRef
from engine.runtime.settings import S3
from engine.uploads.blobs import Blobs
from storage.blobs.directory import DirectoryBlobs
from storage.blobs.s3 import S3Blobs


def opened(where: str) -> DirectoryBlobs | S3Blobs:
    """Open a directory, or a bucket if ``where`` is the JSON of its settings."""
    if where.startswith("{"):
        return S3Blobs(msgspec.json.decode(where, type=S3), threads=4)
    return DirectoryBlobs(Path(where), threads=4)


def content(upload_id: str, first_byte: int, count_bytes: int) -> bytes:
    """Give part of what is written to an upload: its id over and over."""
    repeated = upload_id.encode() * (count_bytes // len(upload_id) + 2)
    return repeated[first_byte % len(upload_id) :][:count_bytes]


async def _write(blobs: Blobs, upload_id: str, block_bytes: int) -> None:
    draft = Draft(UploadRef(1, upload_id), 0, 0)
    while True:
        writer = blobs.open_draft(draft)
        await writer.write([content(upload_id, draft.size_bytes, block_bytes)])
        end_bytes = draft.size_bytes + block_bytes
        pieces = draft.pieces + await writer.flush([content(upload_id, end_bytes, block_bytes)])
        await writer.close()
        draft = Draft(draft.ref, 0, end_bytes + block_bytes, pieces)
        sys.stdout.write(msgspec.json.encode(draft).decode() + "\n")
        sys.stdout.flush()


async def main(where: str, uploads: int) -> None:
    """Write to so many uploads at once, to each at another pace."""
    async with asyncio.TaskGroup() as group:
        for number in range(uploads):
            group.create_task(_write(opened(where), f"{number:032x}", 1000 + 70_000 * number))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
