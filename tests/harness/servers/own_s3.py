"""An object storage that speaks S3: OpenStack's Swift, on the loopback, once a run."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import obstore
import pytest
from aiohttp import ClientSession
from obstore.store import S3Store
from yarl import URL

from engine.runtime.settings import S3
from storage.embedded.process import wait_until

_PATIENCE_S = 60.0
_KINDS = ("object", "container", "account", "proxy")
_SWIFT = """
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[storage-policy:0]
name = one
default = yes
"""
_SERVER = """
[DEFAULT]
swift_dir = {home}
devices = {home}/devices
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
[pipeline:main]
pipeline = {filters} {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
account_autocreate = true
"""
_FILTER = """
[filter:{name}]
use = egg:swift#{name}
location = us-east-1
user_tests_tests = secret .admin
"""
#: What a request to the proxy passes, each with the settings of all.
_FILTERS = ("catch_errors", "gatekeeper", "listing_formats", "bulk", "s3api", "tempauth", "slo")


@pytest.fixture(scope="session")
def _s3() -> Iterator[str]:
    """Run it, and give the URL of it."""
    home = Path(tempfile.mkdtemp(prefix="tidemark-s3-"))
    try:
        with _running(home) as port:
            yield f"http://127.0.0.1:{port}"
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
async def bucket(_s3: str) -> S3:
    """Where a bucket is that nobody else has."""
    settings = S3(
        bucket=uuid.uuid4().hex,
        endpoint=_s3,
        region="us-east-1",
        access_key_id="tests:tests",
        secret_access_key="secret",
    )
    store = S3Store(
        settings.bucket,
        config={
            "endpoint": settings.endpoint,
            "region": settings.region,
            "access_key_id": settings.access_key_id,
            "secret_access_key": settings.secret_access_key,
        },
        client_options={"allow_http": True},
    )
    # The library makes no buckets, but signs what does.
    async with ClientSession() as session:
        url = URL(obstore.sign(store, "PUT", "", timedelta(minutes=1)), encoded=True)
        async with session.put(url) as answer:
            assert answer.status == 200, await answer.text()
    return settings


@pytest.fixture(params=["directory", "bucket"])
def blob_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for files as ``blob_writer`` takes it."""
    if request.param == "directory":
        return str(tmp_path / "uploads")
    return msgspec.json.encode(request.getfixturevalue("bucket")).decode()


@contextmanager
def _running(home: Path) -> Iterator[int]:
    (home / "devices" / "disk").mkdir(parents=True)
    (home / "swift.conf").write_text(_SWIFT)
    with ExitStack() as held:
        ports = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in _KINDS]
    subprocess.run(
        [sys.executable, "-m", "tests.harness.servers.s3_rings", home, *map(str, ports[:-1])],
        cwd=Path(__file__).parents[3],
        check=True,
    )
    with ExitStack() as running:
        log = running.enter_context((home / "log").open("wb"))
        processes = []
        for kind, port in zip(_KINDS, ports, strict=True):
            filters = _FILTERS if kind == "proxy" else ()
            text = _SERVER.format(
                home=home, port=port, user=getpass.getuser(), filters=" ".join(filters), kind=kind
            )
            text += "".join([_FILTER.format(name=name) for name in filters])
            (home / f"{kind}.conf").write_text(text)
            program = Path(sys.executable).with_name(f"swift-{kind}-server")
            process = subprocess.Popen([program, str(home / f"{kind}.conf"), "-v"], stdout=log, stderr=log)
            running.callback(process.wait)
            running.callback(process.kill)
            processes.append(process)

        def ready() -> bool:
            assert all(process.poll() is None for process in processes), (home / "log").read_text()
            return all(map(_answers, ports))

        assert wait_until(ready, _PATIENCE_S), (home / "log").read_text()
        yield ports[-1]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
