"""``run.py doctor --deployment``: each point of the checklist is told, and told apart when it is wrong."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import resource
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from aiohttp import web

from compose.doctor.backup import NAME, backup_finding
from compose.doctor.edge import certificate_finding, validity_finding, websocket_finding
from engine.operate.checklist import CHECKLIST, DeviceAddress, gone_through
from engine.operate.rows import CheckLevel, CheckResult
from storage.bus import checkup as bus_checkup
from storage.embedded.account import account_for
from storage.embedded.servers import Services
from storage.postgres.checkup.deployment import Archive, archive_finding
from storage.postgres.partitions.maintenance import maintain
from tests.harness.alert_receiver import Receiver, receiver
from tests.harness.commands import Ended, Run, command
from tests.harness.in_process_server import Serve
from tests.harness.servers.certificates import certificates
from tests.harness.services import execute
from tests.harness.ws_device import SECRET

__all__ = ["command", "receiver"]

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
#: Points that are as the machine of the test is.
_MACHINE = {12, 13}


def points(ended: Ended) -> dict[int, dict[str, Any]]:
    """The points by their number, behind what the test's own server logs there. The status is held, too."""
    found = {one["point"]: one for one in json.loads(ended.out[ended.out.index("[\n") :])}
    assert list(found) == list(range(1, 16))
    assert ended.status == any(one["state"] == "fault" for one in found.values())
    assert all(bool(one["remedy"]) is (one["state"] != "ok") for one in found.values() if one["point"] != 9)
    return found


@pytest.fixture
async def sound(
    command: Run, dsn: str, services: Services, receiver: Receiver, serve: Serve, tmp_path: Path
) -> Callable[..., Awaitable[Ended]]:
    """Go through the checklist of an installation with all that belongs to one, some of it replaced."""
    server = await serve()
    maintain(dsn, 24)
    execute(dsn, "INSERT INTO sealed_domains VALUES ('voice')")
    (tmp_path / NAME).touch()
    usual = {
        "TIDEMARK__REDIS__URL": services.redis_url,
        "TIDEMARK__SERVER__PORT": server.url.rsplit(":", 1)[1],
        "TIDEMARK__AUTH__SECRET": SECRET.decode(),
        "TIDEMARK__DATA__DIR": str(tmp_path),
        "TIDEMARK__ALERTS__WEBHOOK_URL": receiver.url,
        "TIDEMARK__ALERTS__WEBHOOK_SECRET": "whsec_" + "A" * 32,
        "TIDEMARK__ALERTS__PRIVATE_ADDRESSES": "true",
    }

    async def run(*more: str, url: str = server.url, **variables: str) -> Ended:
        options = ("--url", url, "--tenant", "acme") if url else ()
        return await command("doctor", "--deployment", "--json", *options, *more, **{**usual, **variables})

    return run


async def test_checklist_sound_installation_has_no_fault_and_a_test_is_sent(
    sound: Callable[..., Awaitable[Ended]], receiver: Receiver
) -> None:
    found = points(await sound())
    assert {one["name"] for one in found.values()} == {point.name for point in CHECKLIST}
    wrong = {number: one for number, one in found.items() if one["state"] != "ok" and number not in _MACHINE}
    assert {number: one["state"] for number, one in wrong.items()} == {
        3: "warning",
        9: "not checked",
        14: "warning",
    }
    assert found[3]["found"].startswith("archive_mode = off")  # of the tests' PostgreSQL
    assert "http:// sends alerts readable" in found[14]["found"]  # of this test's receiver
    assert "welcomed it" in found[10]["found"]
    assert found[2]["found"].startswith("Valkey ")
    assert receiver.alerts()[0]["message"] == "this is a test of alerts: nothing is wrong"
    with_no_tenant = points(await sound("--url", found[9]["found"].split()[0], url=""))
    assert with_no_tenant[10]["state"] == "not checked"
    assert "give --tenant" in with_no_tenant[10]["remedy"]


async def test_checklist_each_point_is_a_fault_when_broken(
    sound: Callable[..., Awaitable[Ended]],
    receiver: Receiver,
    dsn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = dsn.partition("dbname=")[2].split()[0]
    execute(
        dsn,
        f"ALTER DATABASE {name} SET synchronous_commit = off",
        "ALTER POLICY tenants ON records USING (true)",
        "DROP INDEX records_by_seq",
        "UPDATE cluster_state SET system_identifier = 1",
    )
    long_ago = (datetime.now(UTC) - timedelta(days=9)).timestamp()
    os.utime(tmp_path / NAME, (long_ago, long_ago))

    async def refuses() -> web.StreamResponse:
        return web.Response(status=500)

    receiver.answer = refuses
    full = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(bus_checkup, "_OLDEST", 99)
    monkeypatch.setattr(bus_checkup, "WARN_APART_S", -1.0)
    found = points(
        await sound(
            TIDEMARK__AUTH__SECRET="short", TIDEMARK__SERVER__WORKERS="200", TIDEMARK__SERVER__PORT="0"
        )
    )
    assert {number for number, one in found.items() if one["state"] == "fault"} == {
        *(2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 15)
    }
    assert found[11]["state"] == "warning"
    assert found[10]["state"] == "not checked"  # no token can be signed
    assert "synchronous_commit = off" in found[3]["found"]
    assert "records_by_seq" in found[6]["found"]
    assert "status 500" in found[14]["found"]
    assert "hours ago" in found[15]["found"]


async def test_checklist_database_away_and_no_address_are_said_not_checked(
    sound: Callable[..., Awaitable[Ended]], tmp_path: Path
) -> None:
    (tmp_path / NAME).unlink()
    away = {"TIDEMARK__POSTGRES__DSN": "host=127.0.0.1 port=1 dbname=no"}
    found = points(await sound(url="", TIDEMARK__ALERTS__WEBHOOK_URL="", **away))
    unchecked = {number for number, one in found.items() if one["state"] == "not checked"}
    assert unchecked == {3, 4, 5, 6, 7, 9, 10, 14, 15}
    assert found[1]["state"] == "fault"
    assert found[9]["remedy"] == "give it: --url wss://sync.example.org"
    alive = points(await sound(url=""))
    assert (alive[15]["state"], alive[3]["state"]) == ("warning", "ok")
    assert f"touch {tmp_path / NAME}" in alive[15]["remedy"]


async def test_checklist_options_without_deployment_refused(command: Run) -> None:
    for options, said in (
        (("--url", "wss://a.example.org"), "are for --deployment"),
        (("--deployment", "--tenant", "acme"), "--ca and --tenant need --url"),
        (("--deployment", "--url", "a.example.org"), "wss://sync.example.org is wanted"),
        (("--deployment", "--url", "wss://[::1"), "wss://sync.example.org is wanted"),
    ):
        ended = await command("doctor", *options)
        assert ended.status == 2
        assert said in ended.err


def test_checklist_every_subject_of_a_check_is_of_one_point() -> None:
    subjects = [subject for point in CHECKLIST for subject in point.subjects]
    assert len(subjects) == len(set(subjects))
    assert len(CHECKLIST) == 15
    written = {
        node.args[1].value
        for room in ("compose", "storage")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "CheckResult"
        if len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
    }
    assert len(written) > 20
    assert written <= set(subjects)


def test_gone_through_takes_the_worst_of_a_point() -> None:
    def state(*levels: CheckLevel) -> tuple[CheckLevel, str, str]:
        checks = [CheckResult(level, "disk", level, f"mend {level}") for level in levels]
        (one,) = [one for one in gone_through(checks) if one.name == "Disk"]
        return one.state, one.found, one.remedy

    assert state("ok", "warning", "fault", "not checked") == ("fault", "fault", "mend fault")
    assert state("warning", "ok", "warning") == ("warning", "warning; warning", "mend warning")
    assert state("ok", "not checked")[0] == "not checked"
    assert state()[0] == "not checked"
    assert set(get_args(CheckLevel)) == {"ok", "warning", "fault", "not checked"}


# -- the address of devices -------------------------------------------------------------------


@asynccontextmanager
async def served(
    answer: Callable[[], web.StreamResponse],
    seen: Callable[[web.Request], object] = lambda _: None,
    **options: Any,
) -> AsyncIterator[DeviceAddress]:
    """A server on loopback that answers everything so."""

    async def handle(request: web.Request) -> web.StreamResponse:
        seen(request)
        return answer()

    app = web.Application()
    app.router.add_get("/{any:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, **options).start()
    try:
        yield DeviceAddress("ssl_context" in options, "127.0.0.1", runner.addresses[0][1], "")
    finally:
        await runner.cleanup()


async def test_certificate_of_the_host_is_right_and_each_other_is_refused(
    tmp_path: Path,
) -> None:
    for name, host in (("own", "127.0.0.1"), ("other", "127.0.0.2")):
        (tmp_path / name).mkdir()
        made = certificates(tmp_path / name, account_for(tmp_path), host)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(made.server, made.key)
        async with served(web.Response, ssl_context=context) as at:
            unknown = await asyncio.to_thread(certificate_finding, at)
            assert unknown.level == "fault"
            assert "unable to get local issuer certificate" in unknown.found
            assert "give --ca FILE" in unknown.remedy
            trusting = at._replace(authority=str(made.authority))
            known = await asyncio.to_thread(certificate_finding, trusting)
            if name == "own":
                assert known.level == "warning"  # the tests' certificates are valid for a day
                assert "valid until" in known.found
            else:
                assert known.level == "fault"
                assert "IP address mismatch" in known.found
    assert certificate_finding(at).level == "fault"  # nobody listens now
    (tmp_path / "none.pem").write_text("none")
    unread = certificate_finding(at._replace(authority=str(tmp_path / "none.pem")))
    assert (unread.level, "none.pem cannot be read" in unread.found) == ("fault", True)
    plain = DeviceAddress(False, "sync.example.org", 80, "")
    assert "everybody on the way" in certificate_finding(plain).found
    assert certificate_finding(plain._replace(host="::1")).level == "not checked"


@pytest.mark.parametrize(("days", "level"), [(90, "ok"), (15, "ok"), (13, "warning"), (0, "warning")])
def test_certificate_that_ends_soon_is_a_warning(days: int, level: str) -> None:
    until = NOW + timedelta(days=days, minutes=1)
    found = validity_finding("sync.example.org", until.timestamp(), NOW)
    assert (found.level, f"{days} days more" in found.found) == (level, True)


async def test_handshake_that_is_not_passed_on_is_a_fault() -> None:
    for answer in ({"status": 404}, {"status": 401}, {"text": '{"code":"unauthenticated"}'}):
        async with served(partial(web.Response, **answer)) as at:
            for sign in (None, lambda: "token"):
                found = await websocket_finding(at, sign)
                assert (found.level, found.subject) == ("fault", "websocket"), found
                assert found.remedy
    assert (await websocket_finding(at, None)).level == "fault"


async def test_handshake_token_goes_only_to_a_host_that_proves_its_name(tmp_path: Path) -> None:
    made = certificates(tmp_path, account_for(tmp_path))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.server, made.key)
    asked: list[web.Request] = []

    def signed() -> str:
        pytest.fail("a token was signed")

    async with served(partial(web.Response, status=404), asked.append, ssl_context=context) as at:
        (tmp_path / "none.pem").write_text("none")
        for authority in (None, str(tmp_path / "none.pem")):
            found = await websocket_finding(at._replace(authority=authority), lambda: "token")
            assert (found.level, "certificate is not trusted" in found.found) == ("not checked", True)
        assert not asked
        assert (await websocket_finding(at, None)).level == "fault"
        trusted = await websocket_finding(at._replace(authority=str(made.authority)), lambda: "token")
        assert "answered the handshake with 404" in trusted.found
        assert [one.headers.get("Authorization") for one in asked] == [None, "Bearer token"]
    plain = await websocket_finding(DeviceAddress(False, "sync.example.org", 80, ""), signed)
    assert (plain.level, "everybody on the way" in plain.found) == ("not checked", True)


# -- backups and the archive --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "archived", "level"),
    [
        (25, False, "ok"),
        (27, False, "fault"),
        (27, True, "ok"),
        (8 * 24 + 1, True, "fault"),
        (None, True, "warning"),
    ],
)
def test_backup_age_is_judged_by_the_archive(hours: int | None, archived: bool, level: str) -> None:
    ended_at = None if hours is None else NOW - timedelta(hours=hours)
    assert backup_finding(Path("/srv"), ended_at, NOW, archived=archived).level == level


@pytest.mark.parametrize(
    ("archive", "level", "said"),
    [
        (Archive("minimal", False, 0, 0, None, None, None, None), "fault", "wal_level = minimal"),
        (Archive("replica", False, 0, 0, None, None, None, None), "warning", "archive_mode = off"),
        (Archive("replica", False, 0, 1, None, None, None, None), "ok", "1 that follow"),
        (Archive("replica", True, 60, 0, None, None, None, None), "ok", "none yet"),
        (
            Archive("replica", True, 60, 0, NOW, "0A", NOW - timedelta(hours=1), "09"),
            "ok",
            "last 0A at 12:00",
        ),
        (Archive("replica", True, 60, 0, NOW, "0A", NOW + timedelta(hours=1), "0B"), "fault", "fails: 0B"),
        (Archive("replica", True, 60, 0, None, None, NOW, "0B"), "fault", "fails: 0B"),
        (Archive("replica", True, 0, 0, NOW, "0A", None, None), "warning", "archive_timeout = 0"),
    ],
)
def test_archive_is_judged_by_what_postgresql_says(archive: Archive, level: str, said: str) -> None:
    found = archive_finding(archive)
    assert (found.level, said in found.found) == (level, True)
    assert bool(found.remedy) is (level != "ok")


@pytest.mark.parametrize(
    ("version", "old"),
    [("Redis 5.0.7", True), ("Redis 6.0.0", False), ("Valkey 8.1.0", False), ("Redis", False)],
)
def test_redis_version_before_6_is_too_old(version: str, old: bool) -> None:
    assert bus_checkup.is_too_old(version) is old
