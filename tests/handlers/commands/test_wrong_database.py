"""Commands act on the server's own database: they make none, say what to do, and name what they changed."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from run import cli
from storage.embedded.servers import Services
from tests.harness.admin import add_tenants
from tests.harness.commands import Ended, command
from tests.harness.commands import Run as RunHere
from tests.harness.services import data_dir, execute, place_of, rows, without_cells

__all__ = ["command"]

NONE = {"TIDEMARK__POSTGRES__DSN": ""}
SECRET = {"TIDEMARK__AUTH__SECRET": "s" * 40}
SOME_ID = "4f0c6d2e8b1a4c7f9e3d5a6b7c8d9e0f"

#: What changes a database, with arguments that do so on one with the tenant acme, or are refused there.
CHANGING: dict[str, list[str]] = {
    "migrate": [],
    "tenant add": ["globex"],
    "tenant remove": ["acme"],
    "policy set": ["--tenant", "acme", "--domain", "task", "--policy", "manual"],
    "policy unset": ["--tenant", "acme", "--domain", "task"],
    "device revoke": ["--tenant", "acme", "phone", "--yes"],
    "device restore": ["--tenant", "acme", "phone"],
    "token revoke": ["5f0e6c1d2b3a4f58"],
    "epoch renew": [],
    "keys rotate-master": [],
    "keys rotate-tenant": ["--tenant", "acme"],
    "keys seal-domain": ["voice"],
    "keys verify": ["--tenant", "acme"],
    "conflicts resolve": [SOME_ID, "--choice", "server"],
    "quarantine retry": [SOME_ID],
    "quarantine drop": [SOME_ID, "--yes"],
    "job uploads": [],
    "job cleanup": [],
    "job aggregate": [],
    "job warm": [],
    "job monitor": [],
    "job reseal": [],
}
#: What only looks.
READING: dict[str, list[str]] = {
    "tenant files": [],
    "tenant list": [],
    "tenant usage": [],
    "export": ["--tenant", "acme", "--domain", "task"],
    "policy list": [],
    "analytics": ["--tenant", "acme"],
    "audit": [],
    "verify": [],
    "keys status": [],
    "job list": [],
    "monitor": [],
    "device list": [],
    "device show": ["--tenant", "acme", "phone"],
    "conflicts list": [],
    "conflicts show": [SOME_ID],
    "quarantine list": [],
    "quarantine show": [SOME_ID],
}
#: How a command is refused that asks for what is not there.
REFUSED = ("Error: there is no ", "Error: tenant acme has no ")
#: What opens no database, or one of its own, or has a test below.
OTHERS = {
    "serve",
    "worker",
    "token",
    "nginx",
    "doctor",
    "settings",
    "bench",
    "device simulate",
    "smoke",
    "completion",
}


def leaves(group: click.Group, *above: str) -> Iterator[str]:
    """Each command by its name."""
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            yield from leaves(one, *above, name)
        if not isinstance(one, click.Group) or one.invoke_without_command:
            yield " ".join((*above, name))


def named(dsn: str) -> str:
    """The line that names a test's database."""
    return f"database: {place_of(dsn)}\n"


def test_commands_every_one_is_known_to_change_or_to_look() -> None:
    known = CHANGING.keys() | READING.keys() | OTHERS
    assert set(leaves(cli)) == known


@pytest.mark.parametrize("name", CHANGING)
async def test_command_that_changes_database_named_on_stderr_alone(
    command: RunHere, dsn: str, tmp_path: Path, name: str
) -> None:
    add_tenants(dsn, "acme")
    at = {"TIDEMARK__DATA__DIR": str(tmp_path)}
    ended = await command(*name.split(), *CHANGING[name], **at)
    assert ended.err.startswith(named(dsn))
    assert "database: " not in ended.out
    assert ended.err.removeprefix(named(dsn)) == "" or ended.refusal().startswith(REFUSED)


async def test_command_without_a_database_refused_and_none_made(command: RunHere, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    bucket = {"TIDEMARK__S3__BUCKET": "files"}  # or job cleanup misses the directory of files first
    for name, arguments in (CHANGING | READING).items():
        ended = await command(*name.split(), *arguments, "--data-dir", str(data_dir), **NONE, **bucket)
        assert ended.refusal() == (
            f"Error: postgres.dsn is not set, and there is no embedded database in {data_dir}: name the"
            " server's settings (--config FILE or TIDEMARK_CONFIG) or its --data-dir DIR, or start"
            " `run.py serve`, which makes one"
        )
        assert not data_dir.exists(), name
        assert len(ended.err.splitlines()) == 1, name


async def test_command_dsn_file_missing_refused_beside_an_embedded_database(
    command: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "postgres").mkdir()
    missing = {**NONE, "TIDEMARK__POSTGRES__DSN_FILE": str(tmp_path / "dsn")}
    for name, arguments in (CHANGING | READING).items():
        ended = await command(*name.split(), *arguments, "--data-dir", str(tmp_path), **missing)
        assert f"postgres.dsn_file: {tmp_path}/dsn: No such file or directory: write it" in ended.refusal()
    assert [path.name for path in tmp_path.iterdir()] == ["postgres"]


@without_cells("its file has a DSN that names a cell")
async def test_command_dsn_file_that_database_is_used(command: RunHere, dsn: str, tmp_path: Path) -> None:
    (tmp_path / "dsn").write_text(f"{dsn}\n")
    ended = await command("tenant", "add", "acme", **NONE, TIDEMARK__POSTGRES__DSN_FILE=str(tmp_path / "dsn"))
    assert (ended.out, ended.err) == ("added acme\n", named(dsn))
    assert rows(dsn, "SELECT name FROM tenants") == [("acme",)]


async def test_erase_asks_with_the_name_of_the_database(command: RunHere, dsn: str) -> None:
    add_tenants(dsn, "acme")
    ended = await command("tenant", "remove", "acme", "--erase")
    place = named(dsn).removeprefix("database: ").strip()
    assert f"Erase everything that acme ever stored in {place}?" in ended.err
    assert rows(dsn, "SELECT name FROM tenants") == [("acme",)]


async def test_cleanup_data_directory_missing_refused(command: RunHere, tmp_path: Path) -> None:
    ended = await command("job", "cleanup", "--data-dir", str(tmp_path / "no"))
    assert f"there is no data directory {tmp_path}/no, where files are kept" in ended.refusal()
    assert not (tmp_path / "no").exists()


async def test_embedded_database_that_is_there_used_and_named(
    command: RunHere, embedded_services: Services
) -> None:
    at = ("--data-dir", str(data_dir(embedded_services)))
    place = f"the embedded database of {data_dir(embedded_services)}"
    name = f"acme-{uuid.uuid4().hex}"
    added = await command("tenant", "add", name, *at, **NONE)
    assert (added.out, added.err) == (f"added {name}\n", f"database: {place}\n")
    assert rows(embedded_services.dsn, f"SELECT count(*) FROM tenants WHERE name = '{name}'") == [(1,)]
    assert (await command("tenant", "remove", name, *at, **NONE)).err == f"database: {place}\n"
    refused = await command("token", "--tenant", name, "--device", "d", *at, **NONE, **SECRET)
    said = f"Error: there is no tenant {name} in {place}: add it with `run.py tenant add {name}`"
    assert refused.refusal() == said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another account")
async def test_embedded_database_of_another_account_refused(command: RunHere, tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(0o755)
    (tmp_path / "data" / "postgres").mkdir(parents=True)
    (tmp_path / "data").chmod(0o700)
    os.seteuid(65_533)
    try:
        ended = await command("tenant", "list", "--data-dir", str(tmp_path / "data"), **NONE)
    finally:
        os.seteuid(0)
    assert "is closed to this user: start as its owner or choose another --data-dir" in ended.refusal()


# -- tokens -----------------------------------------------------------------------------------


def token(ended: Ended) -> str:
    """The token, alone on stdout."""
    assert ended.status == 0
    assert ended.out.count(".") == 2
    return ended.out.removesuffix("\n")


@pytest.mark.parametrize("arguments", [("--device", "phone"), ("--operator", "--user", "ann")])
async def test_token_tenant_unknown_refused(command: RunHere, dsn: str, arguments: tuple[str, ...]) -> None:
    place = named(dsn).removeprefix("database: ").strip()
    ended = await command("token", "--tenant", "acme", *arguments, **SECRET)
    assert ended.refusal() == (
        f"Error: there is no tenant acme in {place}: add it with `run.py tenant add acme`"
    )
    add_tenants(dsn, "acme")
    known = await command("token", "--tenant", "acme", *arguments, **SECRET)
    assert token(known)
    assert known.err == ""


@pytest.mark.parametrize("dsn_in_force", ["host=127.0.0.1 port=1 dbname=x password=hush", ""])
async def test_token_database_cannot_be_asked_signed_and_said(
    command: RunHere, tmp_path: Path, dsn_in_force: str
) -> None:
    away = {"TIDEMARK__POSTGRES__DSN": dsn_in_force, "TIDEMARK__DATA__DIR": str(tmp_path / "no")}
    ended = await command("token", "--tenant", "acme", "--device", "phone", **away, **SECRET)
    assert token(ended)
    assert ended.err.startswith(
        "signed without a look whether there is a tenant acme, and without an event in "
    )
    assert "hush" not in ended.err
    ended = await command("token", "--operator", "--user", "ann", **away, **SECRET)
    assert token(ended)
    assert ended.err.startswith("signed without an event in the audit log: ")


async def test_token_schema_missing_signed_and_said(command: RunHere, empty_dsn: str) -> None:
    empty = {"TIDEMARK__POSTGRES__DSN": empty_dsn}
    ended = await command("token", "--tenant", "acme", "--device", "phone", **empty, **SECRET)
    assert token(ended)
    assert "signed without a look" in ended.err


# -- settings in force ------------------------------------------------------------------------


async def test_settings_each_key_with_its_source_and_no_secret(command: RunHere, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[server]\nport = 9090\n[auth]\nsecret = 'hush-1'\n[domains.patrol]\npolicy = 'manual'\n")
    secrets = {
        "TIDEMARK__POSTGRES__DSN": "postgresql://u:hush-2@db1:1,db2:2/x?sslpassword=hush-3",
        "TIDEMARK__REDIS__URL": "redis://u:hush-4@cache/0?password=hush-5",
        "TIDEMARK__S3__SECRET_ACCESS_KEY": "hush-6",
        "TIDEMARK__SERVER__WORKERS": "3",
    }
    command_line = ("settings", "--config", str(own), "--data-dir", "/srv")
    ended = await command(*command_line, "--json", **secrets)
    assert "hush" not in ended.out + ended.err
    found = {one["key"]: (one["value"], one["source"]) for one in json.loads(ended.out)}
    assert found["server.port"] == (9090, str(own))
    assert found["server.host"] == ("127.0.0.1", "default")
    assert found["server.workers"] == (3, "environment")
    assert found["data.dir"] == ("/srv", "the command line")
    assert found["auth.secret"] == ("***", str(own))
    assert found["auth.secret_file"] == ("", "default")
    assert found["domains.patrol.policy"] == ("manual", str(own))
    assert "db1,db2" in found["postgres.dsn"][0]
    assert found["redis.url"] == ("redis://u:***@cache/0?password=***", "environment")
    text = await command(*command_line, **secrets, COLUMNS="80")
    assert text.out.startswith(f"settings file: {own}\n\nKEY ")
    assert "hush" not in text.out
    assert max(map(len, text.out.splitlines()[1:])) <= 80
    lines = [line.split() for line in text.out.splitlines()]
    assert ["server.port", "file", "9090"] in lines
    assert ["server.workers", "environment", "3"] in lines


async def test_settings_need_no_secret_that_can_be_read(command: RunHere) -> None:
    ended = await command("settings", **NONE, TIDEMARK__POSTGRES__DSN_FILE="/nowhere/dsn")
    assert ended.status == 0
    assert '"/nowhere/dsn"' in ended.out


async def test_version_as_in_the_project(command: RunHere) -> None:
    project = Path(__file__).parents[3] / "pyproject.toml"
    version = project.read_text().split('version = "')[1].split('"')[0]
    assert (await command("--version")).out == f"tidemark {version}\n"


async def test_database_of_another_schema_left_alone(command: RunHere, dsn: str) -> None:
    """A refusal names the database too: it may be the wrong one that was looked into."""
    execute(dsn, "DELETE FROM tenants")
    ended = await command("device", "revoke", "--tenant", "acme", "phone")
    said = "there is no tenant acme: `run.py tenant list` has the names of all"
    assert ended.err == f"{named(dsn)}Error: {said}\n"
