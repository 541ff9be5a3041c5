"""Chunks with other bytes than their checksum says: whether the server refuses each of them."""

from __future__ import annotations

from typing import Final

from bench.uploads.device import Uploader
from bench.uploads.workload import Album

DAMAGED: Final = 40
_FILE_BYTES: Final = 65_536
_MISMATCH: Final = 460


async def damaged_refused(address: tuple[str, int], token: str) -> float:
    """Send damaged chunks, each followed by the right one.

    Returns:
        The percentage that was refused, left no byte, and was stored when it came right.

    Raises:
        FailedError: An upload could not be begun.
        OSError: The connection was lost.
    """
    uploader = Uploader(address, token, _FILE_BYTES)
    album, refused = Album("damaged", 1, _FILE_BYTES, _FILE_BYTES), 0
    try:
        await uploader.make_record("damaged-0-0")
        for number in range(DAMAGED):
            picture = album.picture(0, number)
            location = await uploader.begin(picture)
            whole = b"".join(picture.parts)
            checksum = picture.checksum(0, [whole])
            place = number * len(whole) // DAMAGED
            broken = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
            first = await uploader.patch(location, 0, [broken], checksum)
            left = await uploader.ask("HEAD", location)
            again = await uploader.patch(location, 0, [whole], checksum)
            told = first.status, left.headers.get("upload-offset"), again.status
            refused += told == (_MISMATCH, "0", 204)
    finally:
        uploader.close()
    return 100 * refused / DAMAGED
