"""Plain counters of the uploads of a process."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine.runtime.metrics import Metric, counter


class UploadCounters(msgspec.Struct):
    """Uploads of this process since it started."""

    created: int = 0
    finished: int = 0
    cancelled: int = 0
    chunks: int = 0
    received_bytes: int = 0

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        yield from (
            counter("tidemark_uploads_created", "Uploads begun", self.created),
            counter("tidemark_uploads_finished", "Uploads that became files", self.finished),
            counter("tidemark_uploads_cancelled", "Uploads and files that devices took back", self.cancelled),
            counter("tidemark_upload_chunks", "Requests that brought bytes of uploads", self.chunks),
            counter("tidemark_upload_received_bytes", "Bytes of uploads that were kept", self.received_bytes),
        )
