"""What the client of ``uploads`` is told on stdin and what it says on stdout, as lines of JSON.

It says Ready when everybody is connected, is then told on one line to begin, says Sent when all is uploaded
and last what came of it, once every file is downloaded and compared. One that goes on is told on a further
line to end: then what is under way is finished.
"""

from __future__ import annotations

import msgspec


class UploadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Uploader n has token n and one upload under way at a time, on a connection of its own.

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


class Ready(msgspec.Struct, frozen=True):
    """Said once everybody is connected and their records are there."""


class Sent(msgspec.Struct, frozen=True):
    """Said when the last upload is done; downloads begin when this is answered by an empty line."""


class Transferred(msgspec.Struct, kw_only=True):
    """What came of a run.

    ``begun`` uploads were begun and ``whole`` of them were acknowledged to the last byte, downloaded and
    found to be what was sent (and in their record's feed entry, where there are records). ``chunks`` were
    acknowledged with the offset that they had to be. ``retries`` counts what was sent again after a
    connection was lost or an answer was no success. ``chunk_us`` is how long each chunk took,
    ``cpu_ms`` the client's own CPU time while it uploaded. ``faults`` are the first few
    sentences about what did not go as it had to.
    """

    begun: int = 0
    whole: int = 0
    chunks: int = 0
    sent_bytes: int = 0
    elapsed_s: float = 0.0
    retries: dict[str, int] = {}
    chunk_us: list[int] = []
    cpu_ms: float = 0.0
    download_s: float = 0.0
    fault_count: int = 0
    faults: list[str] = []
