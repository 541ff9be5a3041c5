"""``run.py doctor``: each thing that can be wrong is found, named with its remedy, and hides no other."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.settings import S3
from storage.embedded import Services
from storage.health import unfit
from storage.partitions import maintain
from tests.commands import Ended, Run, command
from tests.services import execute
from tests.serving import Serve
from tests.test_commands import Ended as EndedProcess

__all__ = ["command"]

SECRET = "a secret that nobody needs to know"


@pytest.fixture
def examined(command: Run, services: Services, unused_tcp_port: int) -> Run:
    """Have everything examined; JSON comes back."""
    usual = {
        "TIDEMARK__REDIS__URL": services.redis_url,
        "TIDEMARK__SERVER__PORT": str(unused_tcp_port),
        "TIDEMARK__AUTH__SECRET": SECRET,
    }

    async def run(**variables: str) -> Ended:
        return await command("doctor", "--json", **{**usual, **variables})

    return run


def found(ended: Ended, subject: str) -> dict[str, Any]:
    """The one finding of a subject."""
    (one,) = [one for one in json.loads(ended.out) if one["subject"] == subject]
    return dict(one)


async def test_all_is_right(examined: Run, dsn: str) -> None:
    maintain(dsn, 24)
    ended = await examined()
    findings = json.loads(ended.out)
    assert ended.status == 0
    assert {one["subject"] for one in findings if one["subject"] not in ("open files", "disk")} == {
        "settings",
        "keys",
        "database",
        "clock",
        "connections",
        "schema",
        "epoch",
        "partitions",
        "redis",
        "uploads",
        "sharing",
        "port",
    }
    machine = ("open files", "disk")  # is as it is
    assert [one for one in findings if one["level"] != "ok" and one["subject"] not in machine] == []
    assert all(bool(one["remedy"]) is (one["level"] != "ok") for one in findings)
    assert SECRET not in ended.out


#: Settings, who is to blame, its level, what is found or to be done, and the exit status.
WRONG: dict[str, tuple[dict[str, str], str, str, str, int]] = {
    "no database": (
        {"TIDEMARK__POSTGRES__DSN": "host=127.0.0.1 port=1 dbname=no password=hush"},
        "database",
        "fault",
        "connection to server",
        1,
    ),
    "no Redis, one worker": (
        {"TIDEMARK__REDIS__URL": "redis://127.0.0.1:1"},
        "redis",
        "warning",
        "a single process serves without",
        0,
    ),
    "no Redis, two workers": (
        {"TIDEMARK__REDIS__URL": "redis://127.0.0.1:1", "TIDEMARK__SERVER__WORKERS": "2"},
        "redis",
        "fault",
        "redis.url",
        1,
    ),
    "not Redis at all": ({"TIDEMARK__REDIS__URL": "http://127.0.0.1"}, "redis", "warning", "scheme", 0),
    "too few connections": (
        {"TIDEMARK__SERVER__WORKERS": "200"},
        "connections",
        "fault",
        "raise max_connections",
        1,
    ),
    "a weak key": ({"TIDEMARK__AUTH__SECRET": "short"}, "keys", "fault", "32 are needed", 1),
    "a host of others": ({"TIDEMARK__SERVER__HOST": "192.0.2.1"}, "port", "fault", "of this machine", 1),
}


@pytest.mark.parametrize(("variables", "subject", "level", "said", "status"), WRONG.values(), ids=WRONG)
async def test_what_is_wrong_is_found_beside_the_rest(
    examined: Run, variables: dict[str, str], subject: str, level: str, said: str, status: int
) -> None:
    if "TIDEMARK__SERVER__WORKERS" in variables:
        variables = variables | {"TIDEMARK__SERVER__PORT": "0"}
    ended = await examined(**variables)
    one = found(ended, subject)
    assert (one["level"], ended.status) == (level, status)
    assert said in one["found"] + one["remedy"]
    assert one["remedy"]
    assert found(ended, "disk")
    assert "hush" not in ended.out


async def test_where_files_are_kept_is_looked_at(
    examined: Run, tmp_path: Path, bucket: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uploads").mkdir()
    at = {"TIDEMARK__DATA__DIR": str(tmp_path)}
    assert str(tmp_path / "uploads") in found(await examined(**at), "uploads")["found"]
    with monkeypatch.context() as machine:
        machine.setattr(os, "access", lambda *_: False)
        ended = await examined(**at)
        assert (found(ended, "uploads")["level"], ended.status) == ("fault", 1)
    full = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    with monkeypatch.context() as machine:
        machine.setattr(shutil, "disk_usage", lambda _: full)
        assert found(await examined(**at), "uploads")["level"] == "warning"
    in_bucket = {f"TIDEMARK__S3__{key.upper()}": value for key, value in msgspec.to_builtins(bucket).items()}
    one = found(await examined(**in_bucket), "uploads")
    assert (one["level"], one["found"]) == ("ok", f"bucket {bucket.bucket} answers")
    ended = await examined(**in_bucket | {"TIDEMARK__S3__BUCKET": "nowhere"})
    assert (found(ended, "uploads")["level"], ended.status) == ("fault", 1)
    assert bucket.secret_access_key not in ended.out


async def test_a_schema_that_is_behind_and_a_restored_database(
    examined: Run, dsn: str, empty_dsn: str
) -> None:
    ended = await examined()
    assert found(ended, "partitions")["level"] == "warning"  # no server was here yet
    assert ended.status == 0
    execute(dsn, "UPDATE cluster_state SET system_identifier = 1")
    ended = await examined()
    assert found(ended, "epoch")["remedy"] == "run `run.py epoch renew`"
    assert ended.status == 1
    ended = await examined(TIDEMARK__POSTGRES__DSN=empty_dsn)
    assert found(ended, "schema")["remedy"] == "run `run.py migrate`"
    assert ended.status == 1


async def test_a_port_is_free_or_taken_or_a_servers(
    examined: Run, serve: Serve, unused_tcp_port: int
) -> None:
    assert found(await examined(), "port")["found"].endswith("is free")
    squatter = await asyncio.start_server(lambda _, answer: answer.close(), "127.0.0.1", unused_tcp_port)
    async with squatter:
        ended = await examined()
    assert found(ended, "port")["level"] == "fault"
    assert ended.status == 1
    server = await serve()
    answers = await examined(TIDEMARK__SERVER__PORT=server.url.rsplit(":", 1)[1])
    assert "a server answers" in found(answers, "port")["found"]


def test_a_database_that_could_lose_something_is_unfit() -> None:
    right = {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "server_version_num": "140002",
        "server_encoding": "UTF8",
        "transaction_read_only": "off",
    }
    assert unfit(right) == []
    for name, value in (
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("synchronous_commit", "off"),
        ("server_version_num", "140001"),
        ("server_encoding", "LATIN1"),
        ("transaction_read_only", "on"),
    ):
        assert len(unfit({**right, name: value})) == 1, name


def test_it_starts_services_of_its_own_and_prints_a_table(services: Services) -> None:
    """In a process of its own, as a person starts it, beside others on the same directory."""
    data_dir = services.dsn.split("host=")[1].split("/sockets")[0]
    ended = EndedProcess("doctor", "--data-dir", data_dir, TIDEMARK__SERVER__PORT="0")
    assert (ended.status, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0] == ["LEVEL", "WHAT", "FOUND", "WHAT", "TO", "DO"]
    assert ["ok", "database"] in [line[:2] for line in lines]
    assert ["ok", "redis"] in [line[:2] for line in lines]
