"""The files that uploads are measured with: pictures as far as their first bytes tell, random beyond.

All are cut from one pool of random bytes, so that a client holds one file's worth of memory. No chunk of an
uploader is like one of another; the files of one uploader differ by their last bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from bench.load.http_client import Part

TYPE: Final = "image/jpeg"
DOMAIN: Final = "task"

#: The segments that a picture begins with, up to where its scan does.
_HEAD: Final = bytes.fromhex("ffd8 ffe00010 4a46494600 0101 00 0001 0001 0000 ffda0008 01 0100 003f00")
#: Files that one record is given: fewer than a server lets it have.
RECORD_FILES: Final = 50
#: From one uploader's bytes in the pool to the next one's: odd, so that no chunk begins where another does.
_STEP_BYTES: Final = 4099
_TAIL_BYTES: Final = 16


class Picture(msgspec.Struct, frozen=True):
    """One file to upload. ``checksums`` are those of chunks by offset and length, hashed in advance."""

    name: str
    record_id: str
    parts: tuple[Part, ...]
    sha256: str
    checksums: Mapping[tuple[int, int], str] = {}

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return sum(map(len, self.parts))

    @property
    def metadata(self) -> str:
        """What ``Upload-Metadata`` says of it."""
        said = {
            "filename": self.name,
            "filetype": TYPE,
            "sha256": self.sha256,
            "domain": DOMAIN,
            "record_id": self.record_id,
        }
        return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in said.items())

    def chunk(self, offset: int, length: int) -> list[Part]:
        """Cut bytes out, without a copy."""
        cut: list[Part] = []
        for part in self.parts:
            cut.append(part[max(offset, 0) : max(offset + length, 0)])
            offset -= len(part)
        return [part for part in cut if part]

    def checksum(self, offset: int, chunk: Sequence[Part]) -> str:
        """Return what ``Upload-Checksum`` says of a chunk; it is hashed here if it is not a usual one."""
        known = self.checksums.get((offset, sum(map(len, chunk))))
        if known is not None:
            return known
        digest = hashlib.sha256()
        for part in chunk:
            digest.update(part)
        return f"sha256 {base64.b64encode(digest.digest()).decode()}"


class Album:
    """Makes the pictures of so many uploaders, and hashes their chunks in advance but for the last ones."""

    def __init__(self, prefix: str, uploaders: int, file_bytes: int, chunk_bytes: int) -> None:
        middle_bytes = file_bytes - len(_HEAD) - _TAIL_BYTES
        pool = memoryview(os.urandom(middle_bytes + uploaders * _STEP_BYTES))
        self._prefix = prefix
        self._middles = [pool[index * _STEP_BYTES :][:middle_bytes] for index in range(uploaders)]
        self._begun = [hashlib.sha256(_HEAD) for _ in range(uploaders)]
        for begun, middle in zip(self._begun, self._middles, strict=True):
            begun.update(middle)
        self._checksums = [
            {
                (offset, sum(map(len, chunk))): same.checksum(offset, chunk)
                for offset in range(0, same.size_bytes, chunk_bytes)
                for chunk in [same.chunk(offset, chunk_bytes)]
            }
            for same in (Picture("", "", (_HEAD, middle), "") for middle in self._middles)
        ]

    def picture(self, uploader: int, number: int) -> Picture:
        """Make one that differs from all others."""
        tail = os.urandom(_TAIL_BYTES)
        digest = self._begun[uploader].copy()
        digest.update(tail)
        parts = _HEAD, self._middles[uploader], tail
        record = record_id(self._prefix, uploader, number)
        checksums = self._checksums[uploader]
        return Picture(f"photo-{number}.jpg", record, parts, digest.hexdigest(), checksums)


def record_id(prefix: str, uploader: int, number: int) -> str:
    """Name the record that an uploader's file of that number belongs to."""
    return f"{prefix}-{uploader}-{number // RECORD_FILES}"
