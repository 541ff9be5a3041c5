"""What strangers, other accounts of the host and those who read errors learn: nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from structlog.testing import capture_logs

from handlers.operate.probe_access import _is_local
from tests.harness.in_process_server import ON_SHARED, Serve
from tests.harness.raw_http import wired
from tests.harness.supervised import Supervise
from tests.harness.uploads.tus_uploader import photo, uploader
from tests.harness.ws_device import SECRET as TOKEN_SECRET
from tests.security.arena import Arena
from tests.security.catalogue import against

#: Where other servers have settings, consoles, traces, sources and probes.
PATHS: Final = (
    "/.env",
    "/.git/config",
    "/config.toml",
    "/auth.secret",
    "/master.key",
    "/admin",
    "/console",
    "/debug",
    "/debug/pprof/",
    "/_debug_toolbar/",
    "/actuator/env",
    "/server-status",
    "/nginx_status",
    "/trace",
    "/swagger/index.html",
    "/graphql",
    "/.well-known/security.txt",
    "/favicon.ico",
    "/robots.txt",
    "/v1",
    "/v1/",
    "/v1/admin",
    "/v1/files",
    "/v1/uploads/",
    "/v2/sync",
    "/METRICS",
    "/metrics/",
    "//metrics",
    "/readyz/",
    "/healthz.json",
    "/;/metrics",
    "/metrics%00",
)


@ON_SHARED
@against("API9:2023", "V13.4")
@pytest.mark.parametrize("path", PATHS)
async def test_exposure_path_of_other_servers_is_not_there(path: str, arena: Arena) -> None:
    async with arena.holds(), wired(arena.url) as wire:
        answer = await wire.ask("GET", path, {"X-Forwarded-For": "203.0.113.9"})
    assert answer.verdict == (404, "not_found")
    assert answer.message["message"] == "Not Found", "an answer repeats nothing of the path"


#: Methods that other servers answer with the request, a tunnel or a list.
METHODS: Final = {
    "TRACE": (405, "method_not_allowed"),
    "PROPFIND": (405, "method_not_allowed"),
    "LINK": (405, "method_not_allowed"),
    "MKCOL": (405, "method_not_allowed"),
    "CONNECT": (404, "not_found"),
    "TRACK": (400, "malformed"),
    "DEBUG": (400, "malformed"),
}


@ON_SHARED
@against("API8:2023", "V13.4")
@pytest.mark.parametrize(("method", "verdict"), METHODS.items())
async def test_exposure_method_that_reflects_or_tunnels_is_refused(
    method: str, verdict: tuple[int, str], arena: Arena
) -> None:
    sent = {"Authorization": f"Bearer {arena.running.token()}", "X-Secret": "hidden"}
    async with arena.holds(), wired(arena.url) as wire:
        target = "hidden.example:443" if method == "CONNECT" else "/v1/sync"
        answer = await wire.ask(method, target, sent)
    assert answer.verdict == verdict
    assert b"hidden" not in answer.body


#: Peers that are not this machine, or that are no address.
STRANGERS: Final = (
    "10.0.0.5",
    "172.17.0.1",
    "192.168.1.4",
    "169.254.169.254",
    "203.0.113.9",
    "0.0.0.0",  # noqa: S104  # it is compared
    "255.255.255.255",
    "::",
    "fe80::1",
    "2001:db8::1",
    "::ffff:10.0.0.5",
    "64:ff9b::7f00:1",
    "::127.0.0.1",
    "",
    "localhost",
    "127.0.0.1.evil.example",
)
PASSED_ON: Final = (
    "Forwarded",
    "Via",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Real-IP",
)


def _request(peer: str, **headers: str) -> web.Request:
    named = CIMultiDict({"Host": "127.0.0.1", **headers})
    return make_mocked_request("GET", "/metrics", named).clone(remote=peer)


@against("API8:2023", "V13.4")
@pytest.mark.parametrize("peer", STRANGERS)
def test_exposure_peer_elsewhere_is_no_program_of_this_machine(peer: str) -> None:
    assert not _is_local(_request(peer))


@against("API8:2023", "V13.4")
@pytest.mark.parametrize("name", PASSED_ON)
@pytest.mark.parametrize("value", ["127.0.0.1", ""])
def test_exposure_request_through_a_proxy_is_no_program_of_this_machine(name: str, value: str) -> None:
    assert _is_local(_request("127.0.0.1"))
    assert not _is_local(_request("127.0.0.1", **{name: value}))


SECRET: Final = "password=hunter2 at /etc/tidemark"


@ON_SHARED
@against("A10:2025", "V16.5")
@pytest.mark.parametrize("socket", [False, True])
async def test_exposure_failure_of_the_server_tells_its_error_id_alone(
    socket: bool, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise RuntimeError(SECRET)

    phone = await arena.running.device("failing")
    monkeypatch.setattr("engine.feed.feed.Feed.pull", fails)
    async with arena.holds("devices"):
        with capture_logs() as lines:
            if socket:
                told = await phone.refused("pull")
            else:
                reply = await arena.ask("GET", "/v1/changes", arena.running.token("failing"))
                assert reply.status == 500
                told = reply.message
    assert [line["error_id"] for line in lines if line["event"] == "message_failed"] == [told["error_id"]]
    assert set(told) - {"id"} == {"type", "code", "message", "retryable", "error_id"}
    assert told["code"] == "internal"
    assert "hunter2" not in str(told)
    assert "RuntimeError" not in str(told)
    await phone.socket.close()


@against("A02:2025", "V13.3")
async def test_exposure_files_of_the_server_are_closed_to_other_accounts(
    serve: Serve, tmp_path: Path
) -> None:
    before = os.umask(0)  # as a careless service manager sets it
    try:
        server = await serve(data={"dir": str(tmp_path / "data")})
        phone = uploader(server)
        await phone.begun(1000, photo(500))
        await phone.uploaded(photo(2000))
    finally:
        os.umask(before)
    found = [path for path in (tmp_path / "data").rglob("*") if not path.is_symlink()]
    assert any(path.is_file() for path in found)
    open_to_others = [
        f"{path.relative_to(tmp_path)} {stat.filemode(path.stat().st_mode)}"
        for path in found
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]
    assert open_to_others == []


@pytest.mark.slow
@against("A02:2025", "V13.3")
async def test_exposure_list_of_processes_and_log_have_no_secret(supervise: Supervise, dsn: str) -> None:
    server = await supervise(2)
    await server.until("listening", 2)
    supervisor = psutil.Process(server.process.pid)
    processes = [supervisor, *supervisor.children(recursive=True)]
    assert len(processes) >= 3
    shown = " ".join(" ".join(one.cmdline()) for one in processes)
    for secret in (dsn, TOKEN_SECRET.decode(), "password="):
        assert secret not in shown
        assert secret not in str(server.lines)
    for one in processes:  # no core, and closed to other processes of its account
        assert one.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert stat.S_IMODE(Path(f"/proc/{one.pid}/environ").stat().st_mode) == stat.S_IRUSR
        assert Path(f"/proc/{one.pid}/environ").stat().st_uid == 0, "a process that leaves no dump is root's"
