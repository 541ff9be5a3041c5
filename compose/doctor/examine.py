"""Checks everything that a server needs, one after the other; a failed check hides no other."""

from __future__ import annotations

import asyncio
import errno
import http.client
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from compose.alerts import alert_findings
from compose.configuration import bus_url
from compose.doctor.opened import with_database
from compose.doctor.secrets import secret_findings
from compose.pools import connections
from compose.sealing.start import master_key_finding, sealing_findings
from compose.uploads import files_dir, open_blobs
from engine.operate.rows import CheckResult
from engine.runtime.setting_layers import Layer
from engine.runtime.settings import Settings, SettingsError
from engine.uploads.blobs import BlobsError
from handlers.commands.deployment import DeploymentError
from handlers.http.tokens import KeySet, UnusableKeyError
from handlers.operate.own_address import own_host
from storage.bus.checkup import bus_findings
from storage.embedded.account import EmbeddedError
from storage.embedded.servers import NotMadeError, Services, embedded
from storage.postgres.checkup.database import database_findings

#: Connections of one worker: fewer than usual are a warning, fewer than the least a fault.
_USUAL_CONNECTIONS: Final = 10_000
_LEAST_CONNECTIONS: Final = 1000
#: Files of a worker besides its connections: the database's, Redis's, its own.
_OWN_FILES: Final = 100
_USUAL_FREE_BYTES: Final = 10 << 30
_LEAST_FREE_BYTES: Final = 1 << 30
_ANSWER_S: Final = 3.0
_BUCKET_S: Final = 15.0
_BUCKET_REMEDY: Final = "see that [s3] leads to it, with keys that may list, get, put and delete"
#: Connections beside those of workers: maintenance, and a command.
_FURTHER_CONNECTIONS: Final = 2


def examine(settings: Settings, keys: Callable[[], KeySet], file: Layer | None) -> list[CheckResult]:
    """Check settings, services and this machine, in the order in which faults are best repaired.

    Args:
        settings: The settings.
        keys: Reads the keys of tokens.
        file: The settings file.
    """
    return [
        _settings(settings, file),
        *_variables(settings),
        *secret_findings(settings, file),
        _keys(keys),
        master_key_finding(settings),
        *with_database(settings, partial(_database, settings)),
        *_bus(settings),
        _files(),
        _disk(Path(settings.data.dir)),
        _uploads(settings),
        *_ports(settings),
        *alert_findings(settings),
    ]


def _settings(settings: Settings, file: Layer | None) -> CheckResult:
    source = "no settings file" if file is None else file.source
    found = f"{source}; {len(settings.domains)} domains, {settings.server.workers} workers"
    if file is not None and not Path(settings.data.dir).is_absolute():
        found += f"; data.dir = {settings.data.dir}, which is another one in each working directory"
        return CheckResult("warning", "settings", found, "set data.dir to a path that begins with /")
    return CheckResult("ok", "settings", found)


def _variables(settings: Settings) -> Iterator[CheckResult]:
    """Find variables with one underscore where two belong: nothing else tells that they are left alone."""
    for section in (one for one in settings.__struct_fields__ if one != "domains"):
        for key in getattr(settings, section).__struct_fields__:
            written = f"TIDEMARK_{section}_{key}".upper()
            if written in os.environ:
                meant = f"TIDEMARK__{section}__{key}".upper()
                yield CheckResult("warning", "environment", f"{written} is no setting", f"write {meant}")


def _keys(keys: Callable[[], KeySet]) -> CheckResult:
    try:
        found = keys()
    except DeploymentError as error:  # the embedded default has none yet
        return CheckResult(
            "warning", "keys", str(error), "set the key of tokens in [auth], or start serve once"
        )
    except UnusableKeyError as error:
        return CheckResult("fault", "keys", str(error), "set the key of tokens in [auth], or let it be read")
    can_sign = found.default is not None and found.default.private is not None
    return CheckResult("ok", "keys", "verify and sign tokens" if can_sign else "verify tokens, and sign none")


def _database(settings: Settings, at: Services, *, migrates_itself: bool) -> Iterator[CheckResult]:
    each = sum(connections(settings).values())
    yield from database_findings(
        at.dsn,
        at.owner,
        at.jobs,
        settings.server.workers * each + _FURTHER_CONNECTIONS,
        {
            "uploads.tenant_quotas": settings.uploads.tenant_quotas,
            "monitor.tenants": settings.monitor.tenants,
        },
        migrates_itself=migrates_itself,
    )
    yield from asyncio.run(sealing_findings(settings, at.dsn, at.jobs))


def _bus(settings: Settings) -> Iterator[CheckResult]:
    alone = settings.server.workers == 1
    try:
        if url := bus_url(settings):
            yield from bus_findings(url, alone=alone)
        else:
            with embedded(Path(settings.data.dir), postgres=False, make=False) as made:
                yield from bus_findings(made.redis_url, alone=alone)
    except NotMadeError:
        yield CheckResult("ok", "redis", "redis.url is not set: serve starts one of its own")
    except SettingsError as error:
        yield CheckResult("fault", "redis", str(error), "let the account of the server read it")
    except EmbeddedError as error:
        yield CheckResult("fault", "redis", str(error), "put that right, or set redis.url")


def _files() -> CheckResult:
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # serve raises the soft one to it
    if limit == resource.RLIM_INFINITY:
        return CheckResult("ok", "open files", "as many as wanted")
    room = max(0, limit - _OWN_FILES)
    found = f"{limit} open files: {room} connections of devices in each worker"
    remedy = "raise the hard limit of open files (LimitNOFILE of systemd, ulimit -Hn, --ulimit nofile)"
    if room < _LEAST_CONNECTIONS:
        return CheckResult("fault", "open files", found, remedy)
    if room < _USUAL_CONNECTIONS:
        return CheckResult("warning", "open files", found, remedy)
    return CheckResult("ok", "open files", found)


def _uploads(settings: Settings) -> CheckResult:
    """Look at where files are kept, which may be a disk of its own."""
    if settings.s3.bucket:
        return asyncio.run(_bucket(settings))
    place = _there(files_dir(settings))
    if not os.access(place, os.W_OK | os.X_OK):
        remedy = "let the account of the server write there, or choose another --data-dir"
        return CheckResult("fault", "uploads", f"{place} cannot be written to", remedy)
    free_bytes = shutil.disk_usage(place).free
    found = f"{free_bytes / (1 << 30):.1f} GiB free for files at {place}"
    if free_bytes < _LEAST_FREE_BYTES:
        return CheckResult(
            "warning", "uploads", found, "free some: uploads are refused when there is no room"
        )
    return CheckResult("ok", "uploads", found)


async def _bucket(settings: Settings) -> CheckResult:
    name = settings.s3.bucket
    blobs = open_blobs(settings)
    try:
        async with asyncio.timeout(_BUCKET_S):
            async for _ in blobs.list_stored(time.time_ns() // 1000):
                break
    except TimeoutError:
        return CheckResult("fault", "uploads", f"bucket {name} does not answer", _BUCKET_REMEDY)
    except BlobsError as error:
        return CheckResult("fault", "uploads", f"bucket {name}: {str(error).splitlines()[0]}", _BUCKET_REMEDY)
    finally:
        blobs.close()
    return CheckResult("ok", "uploads", f"bucket {name} answers")


def _there(place: Path) -> Path:
    """Find what is there by now of a place."""
    place = place.resolve()
    while not place.exists():
        place = place.parent
    return place


def _disk(data_dir: Path) -> CheckResult:
    place = _there(data_dir)
    usage = shutil.disk_usage(place)
    found = f"{usage.free / (1 << 30):.1f} GiB of {usage.total / (1 << 30):.1f} GiB free at {place}"
    remedy = "free some, or choose another --data-dir"
    if usage.free < _LEAST_FREE_BYTES:
        return CheckResult("fault", "disk", found, remedy)
    if usage.free < _USUAL_FREE_BYTES:
        return CheckResult("warning", "disk", found, remedy)
    return CheckResult("ok", "disk", found)


def _ports(settings: Settings) -> Iterator[CheckResult]:
    host, port, workers = settings.server.host, settings.server.port, settings.server.workers
    probe_port = settings.server.probe_port
    if hasattr(socket, "SO_REUSEPORT"):
        yield CheckResult("ok", "sharing", "workers can share a port")
    else:
        yield CheckResult(
            "fault",
            "sharing",
            "this system cannot share a port between processes (SO_REUSEPORT)",
            "serve on Linux",
        )
    if probe_port:
        yield _port(host, probe_port)
    if port == 0:
        yield CheckResult("ok", "port", "any free one")
        return
    yield _port(host, port)
    if workers > 1:
        for own in range(port + 1, port + workers + 1):
            yield _port(host, own)


def _port(host: str, port: int) -> CheckResult:
    where = f"{host} port {port}"
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _serves(host, port):
            return CheckResult("ok", "port", f"a server answers at {where}")
        if error.errno == errno.EADDRINUSE:
            found = f"{where} is held, and no server answers there"
            remedy = (
                "if a worker of this server holds it, that one hangs: kill it (docs/outages.md, One worker"
                " looping); else end the program that holds it, or choose another server.port"
            )
        else:
            found = f"{where}: {error.strerror}"
            remedy = "choose a server.host of this machine and a server.port that may be used"
        return CheckResult("fault", "port", found, remedy)
    return CheckResult("ok", "port", f"{where} is free")


def _serves(host: str, port: int) -> bool:
    """Whether what listens there is a server of this kind."""
    asked = http.client.HTTPConnection(f"{own_host(host)}:{port}", timeout=_ANSWER_S)
    try:
        asked.request("GET", "/healthz")
        return asked.getresponse().getheader("Server") == "Tidemark"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()
