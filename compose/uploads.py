"""The parts of uploads and files in one process: storage of bytes, locks, service, clean-up and routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from compose.pools import Pools
from engine.cache.minutes import Minutes
from engine.cluster.bus import Bus
from engine.commit.committer import Committer
from engine.filetypes.types import FileTypes
from engine.model.domains import Domains
from engine.runtime.ports import Clock
from engine.runtime.read_limiter import ReadLimiter
from engine.runtime.services import Service
from engine.runtime.settings import Settings
from engine.uploads.blobs import Blobs
from engine.uploads.cleanup import UploadCleanup
from engine.uploads.cleanup_job import CleanupJob
from engine.uploads.finish import UploadFinisher
from engine.uploads.locks import UploadLocks
from engine.uploads.pending_attachments import PendingAttachments
from engine.uploads.ports import Quota
from engine.uploads.service import UploadLimits, UploadService
from engine.uploads.verify import FileVerifier
from engine.uploads.write_limiter import WriteLimiter
from handlers.http.authenticate import RequestGate
from handlers.http.client_address import networks
from handlers.http.counters import Traffic
from handlers.uploads.common import UploadContext
from handlers.uploads.downloads import Downloads
from handlers.uploads.routes import UploadRoutes
from storage.blobs.directory import DirectoryBlobs
from storage.blobs.s3 import S3Blobs
from storage.postgres.pool import Database
from storage.stores.jobs.upload_cleanup import PostgresCleanup
from storage.stores.sealed.sealing import Sealing
from storage.stores.upload_reads import PostgresFileList, PostgresFiles, PostgresPending
from storage.stores.uploads import PostgresUploads


class UploadComponents:
    """The parts of uploads. Connections for reads are shared: they are for short statements only."""

    def __init__(
        self,
        settings: Settings,
        databases: Pools,
        sealing: Sealing,
        committer: Committer,
        bus: Bus,
        clock: Clock,
        minutes: Minutes,
        full: Callable[[], str | None],
    ) -> None:
        self._settings = settings
        self._reads = databases.reads
        self._sealing = sealing
        chosen = settings.uploads
        expire_s = chosen.expire_h * 3600
        self._types = FileTypes(chosen)
        self._blobs = open_blobs(settings)
        store = PostgresUploads(databases.uploads, sealing)
        finisher = UploadFinisher(store, self._blobs, self._types, committer, clock)
        self.locks = UploadLocks(store, self._blobs, bus, clock, expire_s)
        self.service = UploadService(
            store,
            self._blobs,
            self.locks,
            finisher,
            self._types,
            clock,
            WriteLimiter(lambda: committer.counters.messages, clock),
            UploadLimits(
                Quota(
                    chosen.tenant_bytes,
                    chosen.files_per_record,
                    chosen.open_per_device,
                    chosen.begun_per_device,
                ),
                chosen.tenant_quotas,
                expire_s,
                full,
            ),
            minutes,
        )
        self.pending_attachments = PendingAttachments(
            PostgresPending(databases.reads, sealing), clock, committer
        )
        self.cleanup_job = cleanup_job(settings, databases.jobs, self._blobs, committer, minutes)

    def routes(
        self, gate: RequestGate, traffic: Traffic, read_limiter: ReadLimiter, domains: Domains
    ) -> Iterable[web.RouteDef]:
        """List the routes of uploads and files."""
        context = UploadContext(
            gate,
            traffic,
            self.service,
            self._types,
            domains,
            networks(self._settings.server.trusted_proxies),
            self._settings.uploads.idle_s,
        )
        files = Downloads(gate, read_limiter, PostgresFiles(self._reads, self._sealing), self._blobs)
        return [*UploadRoutes(context).routes(), *files.routes()]

    def services(self) -> list[Service]:
        """List the services. Uploads end before the committer, which attaches their files."""
        return [
            Service("uploads", self.service.run, self.service.drain),
            Service("pending_attachments", self.pending_attachments.run),
        ]

    def close(self) -> None:
        """End the threads."""
        self._blobs.close()


def open_blobs(settings: Settings) -> DirectoryBlobs | S3Blobs:
    """Open the storage of bytes: a bucket if one is set, else a directory."""
    if settings.s3.bucket:
        return S3Blobs(settings.s3, settings.uploads.write_threads, _cell(settings))
    return DirectoryBlobs(files_dir(settings), settings.uploads.write_threads)


def files_dir(settings: Settings) -> Path:
    """Return the directory of files, of each cell its own: the clean-up deletes what no row names."""
    return Path(settings.data.dir) / _cell(settings) / "uploads"


def _cell(settings: Settings) -> str:
    schema = settings.postgres.schema
    return f"cells/{schema}" if schema else ""


@asynccontextmanager
async def file_verifier(settings: Settings, database: Database) -> AsyncIterator[FileVerifier]:
    """Open what compares files with their rows."""
    blobs = open_blobs(settings)
    try:
        yield FileVerifier(PostgresFileList(database), PostgresCleanup(database), blobs)
    finally:
        blobs.close()


def cleanup_job(
    settings: Settings, database: Database, blobs: Blobs, committer: Committer, minutes: Minutes
) -> CleanupJob:
    """Return the clean-up."""
    grace_s = settings.uploads.grace_h * 3600
    return CleanupJob(UploadCleanup(PostgresCleanup(database), blobs, committer, grace_s, minutes))
