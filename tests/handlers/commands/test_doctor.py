"""``run.py doctor``: each thing that can be wrong is found, named with its remedy, and hides no other."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import uuid
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from psycopg2.extensions import parse_dsn

from compose.processes.workers import check_bus
from engine.runtime.settings import S3
from engine.seal.master_keys import master_key_id
from handlers.commands.deployment import DeploymentError
from storage.bus.checkup import bus_findings
from storage.embedded.servers import Services
from storage.postgres.partitions.maintenance import maintain
from storage.postgres.readiness import undurable, unfit
from tests.handlers.commands.test_commands import Ended as EndedProcess
from tests.harness.admin import add_tenants
from tests.harness.commands import Ended, Run, command
from tests.harness.in_process_server import Serve
from tests.harness.servers.own_redis import OwnRedis, _own_redis, own_redis
from tests.harness.services import data_dir, execute, rows, without_cells

__all__ = ["_own_redis", "command", "own_redis"]

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


async def test_doctor_sound_deployment_has_no_findings(examined: Run, dsn: str) -> None:
    maintain(dsn, 24)
    execute(dsn, "INSERT INTO sealed_domains VALUES ('voice')")
    ended = await examined()
    findings = json.loads(ended.out)
    assert ended.status == 0
    assert {one["subject"] for one in findings if one["subject"] not in ("open files", "disk")} == {
        "settings",
        "secrets",
        "keys",
        "master key",
        "database",
        "durability",
        "rights",
        "clock",
        "connections",
        "schema",
        "epoch",
        "access",
        "row security",
        "sealing",
        "partitions",
        "redis",
        "uploads",
        "sharing",
        "port",
        "alerts",
    }
    machine = ("open files", "disk")  # is as it is
    assert [one for one in findings if one["level"] != "ok" and one["subject"] not in machine] == []
    assert all(bool(one["remedy"]) is (one["level"] != "ok") for one in findings)
    assert SECRET not in ended.out


@without_cells("its DSN names a cell")
async def test_doctor_one_role_for_all_warned(examined: Run, dsn: str) -> None:
    ended = await examined(TIDEMARK__POSTGRES__DSN=dsn)
    one = found(ended, "row security")
    assert (one["level"], ended.status) == ("warning", 0)
    assert one["found"].startswith("bypassed: the role tidemark is")


async def test_doctor_altered_policy_is_a_fault_without_an_all_clear(examined: Run, dsn: str) -> None:
    execute(dsn, "ALTER POLICY tenants ON records USING (true)")
    ended = await examined()
    assert (found(ended, "row security"), ended.status) == (
        {
            "level": "fault",
            "subject": "row security",
            "found": "a policy of the table records is not as migrations make it",
            "remedy": "run `run.py migrate`, which makes it anew",
        },
        1,
    )


async def test_doctor_variable_with_single_underscores_is_a_warning_that_names_the_right_one(
    examined: Run,
) -> None:
    ended = await examined(TIDEMARK_ALERTS_WEBHOOK_URL="https://example.org/hook")
    assert found(ended, "environment") == {
        "level": "warning",
        "subject": "environment",
        "found": "TIDEMARK_ALERTS_WEBHOOK_URL is no setting",
        "remedy": "write TIDEMARK__ALERTS__WEBHOOK_URL",
    }


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
        "a single process works without Redis",
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
async def test_doctor_one_fault_does_not_hide_others(
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


@without_cells("the directory of a database alone")
async def test_doctor_directory_of_files_is_checked(
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
    assert not re.search(rf"\b{bucket.secret_access_key}\b", ended.out)


async def test_doctor_schema_that_is_behind_and_a_restored_database(
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


async def test_doctor_nothing_made_yet_said_and_nothing_made(examined: Run, tmp_path: Path) -> None:
    unset = dict.fromkeys(("TIDEMARK__POSTGRES__DSN", "TIDEMARK__REDIS__URL", "TIDEMARK__AUTH__SECRET"), "")
    ended = await examined(TIDEMARK__DATA__DIR=str(tmp_path / "data"), **unset)
    assert ended.status == 0
    assert "no embedded database in" in found(ended, "database")["found"]
    assert found(ended, "keys")["level"] == "warning"
    assert found(ended, "redis")["found"] == "redis.url is not set: serve starts one of its own"
    assert not (tmp_path / "data").exists()


@without_cells("its file has a DSN that names a cell")
async def test_doctor_files_of_secrets_open_or_unreadable_found(
    examined: Run, dsn: str, services: Services, tmp_path: Path
) -> None:
    files = {"dsn": dsn, "url": services.redis_url, "secret": SECRET}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o640)
    own = tmp_path / "own.toml"
    own.write_text("[data]\ndir = '/srv'\n[s3]\nsecret_access_key = 'x'\n")
    own.chmod(0o600)
    named = {
        "TIDEMARK_CONFIG": str(own),
        "TIDEMARK__POSTGRES__DSN": "",
        "TIDEMARK__POSTGRES__DSN_FILE": str(tmp_path / "dsn"),
        "TIDEMARK__REDIS__URL": "",
        "TIDEMARK__REDIS__URL_FILE": str(tmp_path / "url"),
        "TIDEMARK__AUTH__SECRET": "",
        "TIDEMARK__AUTH__SECRET_FILE": str(tmp_path / "secret"),
    }
    ended = await examined(**named)
    assert found(ended, "secrets")["found"] == "4 files of secrets, closed to other accounts"
    assert (found(ended, "settings")["level"], found(ended, "database")["level"]) == ("ok", "ok")
    for name, mode in (("dsn", 0o644), ("url", 0o660), ("secret", 0o602), ("own.toml", 0o604)):
        before = (tmp_path / name).stat().st_mode
        (tmp_path / name).chmod(mode)
        findings = json.loads((await examined(**named)).out)
        one = next(one for one in findings if one["subject"] == "secrets")
        assert one["level"] == "warning"
        assert one["found"].startswith(f"{tmp_path / name} may be ")
        assert one["remedy"].startswith(f"chmod 0640 {tmp_path / name}")
        (tmp_path / name).chmod(before)
    for name, subject in (("dsn", "database"), ("url", "redis"), ("secret", "keys")):
        (tmp_path / name).rename(tmp_path / "away")
        ended = await examined(**named)
        assert ended.status == 1
        one = found(ended, subject)
        assert one["level"] == "fault"
        assert f"{tmp_path / name}: No such file or directory" in one["found"]
        (tmp_path / "away").rename(tmp_path / name)
    assert SECRET not in ended.out


async def test_doctor_data_directory_relative_in_a_file_warned(examined: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[server]\nworkers = 1\n")
    one = found(await examined(TIDEMARK_CONFIG=str(own)), "settings")
    assert (one["level"], one["remedy"]) == ("warning", "set data.dir to a path that begins with /")
    assert one["found"].startswith(f"{own}; ")


@pytest.fixture
def role(dsn: str) -> Iterator[str]:
    """A role that may log in, with the password of the other one, and no more."""
    name = f"role_{uuid.uuid4().hex}"
    execute(dsn, f"CREATE ROLE {name} LOGIN PASSWORD '{parse_dsn(dsn)['password']}'")
    yield name
    execute(dsn, f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


@without_cells("rights on the schema public")
async def test_doctor_role_without_rights_found_with_remedy(examined: Run, dsn: str, role: str) -> None:
    (database,) = rows(dsn, "SELECT current_database()")
    at = {"TIDEMARK__POSTGRES__DSN": dsn.replace("user=tidemark", f"user={role}")}
    ended = await examined(**at)
    one = found(ended, "rights")
    assert (one["level"], ended.status) == ("fault", 1)
    assert one["found"] == f"the role {role} may create no table in the schema public"
    assert one["remedy"] == f"as a superuser: ALTER DATABASE {database[0]} OWNER TO {role}"
    assert found(ended, "redis")["level"] == "ok"
    execute(dsn, f"GRANT CREATE ON SCHEMA public TO {role}")
    one = found(await examined(**at), "rights")
    assert one["level"] == "fault"
    said = f"the table \\w+ belongs to tidemark, and the role {role} may not change it"
    assert re.fullmatch(said, one["found"])
    execute(dsn, f"GRANT tidemark TO {role}")
    ended = await examined(**at)
    assert found(ended, "rights")["found"] == f"the role {role} owns its tables and may create more"
    assert found(ended, "schema")["level"] == "ok"


@pytest.mark.parametrize(
    ("setting", "value"), [("uploads.tenant_quotas", "1"), ("monitor.tenants", '{"min_syncs": 5}')]
)
async def test_doctor_settings_of_unknown_tenants_found(
    examined: Run, dsn: str, setting: str, value: str
) -> None:
    add_tenants(dsn, "acme")
    variable = "TIDEMARK__" + setting.replace(".", "__").upper()
    own = {variable: f'{{"acme": {value}, "acne": {value}}}'}
    one = found(await examined(**own), setting)
    assert (one["level"], one["found"]) == ("warning", f"{setting} names no tenant that there is: acne")
    add_tenants(dsn, "acne")
    assert found(await examined(**own), setting)["level"] == "ok"


async def test_doctor_lines_fit_the_terminal(command: Run) -> None:
    long = {"TIDEMARK__POSTGRES__DSN": f"host=127.0.0.1 port=1 dbname={'x' * 300}"}
    for columns in (60, 80, 200):
        ended = await command("doctor", **long, COLUMNS=str(columns))
        assert max(map(len, ended.out.splitlines())) <= columns
        assert "to do: see that it runs and that postgres.dsn leads to it" in " ".join(ended.out.split())


async def test_doctor_port_is_free_or_taken_or_of_this_server(
    examined: Run, serve: Serve, unused_tcp_port: int
) -> None:
    assert found(await examined(), "port")["found"].endswith("is free")
    squatter = await asyncio.start_server(lambda _, answer: answer.close(), "127.0.0.1", unused_tcp_port)
    async with squatter:
        ended = await examined()
    assert found(ended, "port")["level"] == "fault"
    assert "that one hangs" in found(ended, "port")["remedy"]
    assert ended.status == 1
    server = await serve()
    answers = await examined(TIDEMARK__SERVER__PORT=server.url.rsplit(":", 1)[1])
    assert "a server answers" in found(answers, "port")["found"]


def test_doctor_database_without_durability_is_unfit() -> None:
    right = {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "server_version_num": "140002",
        "server_encoding": "UTF8",
        "transaction_read_only": "off",
    }
    assert (unfit(right), undurable(right)) == ([], [])
    for name, value in (
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("synchronous_commit", "off"),
        ("server_version_num", "140001"),
        ("server_encoding", "LATIN1"),
        ("transaction_read_only", "on"),
    ):
        wrong = {**right, name: value}
        assert len(unfit(wrong) + undurable(wrong)) == 1, name


def test_doctor_starts_embedded_services_and_prints_a_table(embedded_services: Services) -> None:
    """In a process of its own, as a person starts it, beside others on the same directory."""
    ended = EndedProcess("doctor", "--data-dir", str(data_dir(embedded_services)), TIDEMARK__SERVER__PORT="0")
    assert (ended.status, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0] == ["LEVEL", "WHAT", "FOUND,", "AND", "WHAT", "TO", "DO"]
    assert max(map(len, ended.out.splitlines())) <= 80
    assert ["ok", "database"] in [line[:2] for line in lines]
    assert ["ok", "redis"] in [line[:2] for line in lines]


def test_doctor_redis_that_refuses_the_login_is_not_called_away(own_redis: OwnRedis) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("requirepass", "hidden")
        client.execute_command("AUTH", "hidden")
        try:
            for login in ("", "password=wrong"):
                url = own_redis.url + ("&" if "?" in own_redis.url else "?") + login
                (finding,) = bus_findings(url, alone=False)
                assert finding.found.startswith("Redis refuses the login (")
                assert "redis.url or in the file of redis.url_file" in finding.remedy
                with pytest.raises(DeploymentError, match=r"refuses the login.*redis\.url_file") as refused:
                    check_bus(url, several=True)
                assert "away" not in str(refused.value)
        finally:
            client.config_set("requirepass", "")


async def test_doctor_master_key_is_told_by_its_id_and_a_bad_one_is_a_fault(
    examined: Run, tmp_path: Path
) -> None:
    file = tmp_path / "master"
    file.write_text(b64encode(b"1" * 32).decode())
    file.chmod(0o600)
    at = {"TIDEMARK__SEALING__MASTER_KEY_FILE": str(file)}
    whole = found(await examined(**at), "master key")
    assert whole["level"] == "ok"
    assert whole["found"] == f"{master_key_id(b'1' * 32)} wraps the keys of tenants"
    assert found(await examined(), "master key")["found"] == "none is set: nothing can be sealed"
    file.chmod(0o644)
    ended = await examined(**at)
    assert ended.status == 1
    assert "other accounts may read or write it (mode 0644)" in found(ended, "master key")["found"]
    assert f"{file} may be read by other accounts" in ended.out


async def test_doctor_personal_data_in_plain_lost_keys_and_unreadable_values_are_named(
    examined: Run, dsn: str
) -> None:
    add_tenants(dsn, "acme", "globex")
    execute(
        dsn,
        "INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data)"
        " VALUES (1, 'voice', 'e1', 1, 1, 'phone', '{}')",
    )
    plain = found(await examined(), "sealing")
    assert (plain["level"], plain["found"]) == ("warning", "personal data of voice are stored in plain")
    assert plain["remedy"] == "set sealing.master_key_file, then run `run.py keys seal-domain voice`"
    with_key = found(await examined(TIDEMARK__SEALING__MASTER_KEY=b64encode(b"1" * 32).decode()), "sealing")
    assert with_key["remedy"] == "run `run.py keys seal-domain voice`"
    execute(
        dsn,
        "INSERT INTO master_keys VALUES ('m1')",
        "INSERT INTO sealed_domains VALUES ('voice')",
        "UPDATE tenants SET newest_key = 1 WHERE name = 'acme'",
        "UPDATE tenants SET newest_key = 2 WHERE name = 'globex'",
        "INSERT INTO tenant_keys (tenant_id, key_number, wrapped, master_key_id)"
        " SELECT tenant_id, 2, '', 'm1' FROM tenants WHERE name = 'globex'",
        "INSERT INTO reseal_passes (tenant_id, unreadable_values, unreadable)"
        ' SELECT tenant_id, 2, \'[{"table":"events","domain":"voice","id":"e1"}]\' FROM tenants'
        " WHERE name = 'acme'",
    )
    ended = await examined()
    said = [one["found"] for one in json.loads(ended.out) if one["subject"] == "sealing"]
    assert ended.status == 1
    assert said[0].startswith("the master key m1 is needed to open sealed data, and given is none")
    assert said[1:] == [
        "sealed domains: voice",
        "the keys of tenant acme are lost: what is sealed of it cannot be read",
        "tenant acme: sealed values that cannot be opened: 2 (events voice e1 and 1 more)",
        "tenant globex: keys missing from tenant_keys, without which what they sealed cannot be read: 1",
    ]
