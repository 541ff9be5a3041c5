"""The command line as a script meets it: stdout, stderr, exit status, and what it leaves behind."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from click import Group
from click.testing import CliRunner

from bench.harness.clusters import role_variables
from handlers.http.tokens import KeySet, Verifier, secret_key
from run import cli
from storage.postgres.migrate import newest_migration, status
from tests.harness.admin import add_tenants
from tests.harness.forks import Forks
from tests.harness.services import execute, place_of, rows, without_cells

_ROOT = Path(__file__).parents[3]
_SECRET = "a secret that the tests' tokens are signed with"


@cache
def _forks() -> Forks:
    """A process for all commands of this run."""
    forks = Forks("run")
    atexit.register(forks.stop)
    return forks


class Ended:
    """A command that has run."""

    def __init__(self, *arguments: str, given: str = "", **variables: str) -> None:
        environment = {**os.environ, "TIDEMARK__AUTH__SECRET": _SECRET, **variables}
        ended = _forks().run([str(_ROOT / "run.py"), *arguments], _ROOT, environment, given)
        assert "Traceback" not in ended.err
        self.status, self.out, self.err = ended

    def refusal(self) -> str:
        """The one sentence on stderr, nothing being on stdout."""
        assert self.status != 0
        assert self.out == ""
        lines = self.err.strip().splitlines()
        assert lines[-1].startswith("Error: ")
        return lines[-1]


Run = Callable[..., Ended]


@pytest.fixture
def run(dsn: str) -> Run:
    """Run commands on the test's database."""

    def ended(*arguments: str, **options: str) -> Ended:
        of_roles = {} if "TIDEMARK__POSTGRES__DSN" in options else role_variables(dsn)
        return Ended(*arguments, **{**of_roles, **options})

    return ended


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "migrate",
        "tenant add",
        "tenant list",
        "tenant remove",
        "tenant usage",
        "tenant files",
        "token",
        "epoch renew",
        "audit",
        "conflicts list",
        "conflicts show",
        "conflicts resolve",
        "quarantine list",
        "quarantine show",
        "quarantine retry",
        "quarantine drop",
        "doctor",
        "verify",
        "export",
        "nginx",
        "policy list",
        "policy set",
        "policy unset",
        "settings",
        "device list",
        "device show",
        "device revoke",
        "device restore",
        "job list",
        "job uploads",
        "job cleanup",
        "job aggregate",
        "job warm",
        "job monitor",
        "monitor",
    ],
)
def test_command_each_has_help_with_an_example_and_the_common_options(command: str) -> None:
    shown = CliRunner().invoke(cli, [*command.split(), "--help"])
    assert shown.exit_code == 0
    assert f"run.py {command}" in " ".join(shown.output.split()).split("Example")[1]
    assert "--config" in shown.output
    assert "--data-dir" in shown.output


@pytest.mark.parametrize(
    "group", sorted(name for name, one in cli.commands.items() if isinstance(one, Group))
)
def test_command_each_is_listed_with_a_whole_sentence(group: str) -> None:
    shown = CliRunner().invoke(cli, [group, "--help"], terminal_width=80).output
    assert [line for line in shown.splitlines()[1:] if line.endswith("...")] == []


@pytest.mark.parametrize(("command", "status"), [("doctor", 1), ("monitor", 3)])
def test_command_with_a_python_without_packages_is_one_sentence(command: str, status: int) -> None:
    """The monitor's status 1 would say that health is degraded."""
    ended = subprocess.run(
        [sys.executable, "-S", "run.py", command], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (status, "")
    assert ended.stderr.startswith("Error: this Python has no click: run `make install`")


def test_command_tenant_add_and_remove_move_the_generation(run: Run, dsn: str) -> None:
    generation = "SELECT generation FROM cluster_state"
    before = rows(dsn, generation)
    assert run("tenant", "add", "acme").out == "added acme\n"
    added = rows(dsn, generation)
    assert added != before
    assert rows(dsn, "SELECT name, seq FROM tenants JOIN tenant_counters USING (tenant_id)") == [("acme", 0)]
    assert "there is a tenant acme already" in run("tenant", "add", "acme").refusal()
    assert rows(dsn, generation) == added
    assert [one["name"] for one in json.loads(run("tenant", "list", "--json").out)] == ["acme"]
    assert run("tenant", "remove", "acme").out == "removed acme\n"
    assert rows(dsn, generation) != added
    assert rows(dsn, "SELECT FROM tenants UNION ALL SELECT FROM tenant_counters") == []
    assert "there is no tenant acme" in run("tenant", "remove", "acme").refusal()


def test_command_tenant_usage_shows_usage_and_limit(run: Run, dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme'), ('globex')",
        "INSERT INTO tenant_counters (tenant_id, record_rows) SELECT tenant_id, 25 FROM tenants",
        "INSERT INTO tenant_storage SELECT tenant_id, 7 FROM tenants",
    )
    quotas = '{"acme": 70}'
    settings = {"TIDEMARK__TENANT_LIMITS__RECORD_ROWS": "100", "TIDEMARK__UPLOADS__TENANT_QUOTAS": quotas}
    shown = {tuple(line.split()) for line in run("tenant", "usage", "acme", **settings).out.splitlines()}
    assert {
        ("acme", "record_rows", "25", "100", "25.0%"),
        ("acme", "file_bytes", "7", "70", "10.0%"),
    } <= shown
    listed = json.loads(run("tenant", "usage", "--json", **settings).out)
    assert {(one["tenant"], one["bound"]) for one in listed if one["kind"] == "record_rows"} == {
        ("acme", 100),
        ("globex", 100),
    }
    assert "there is no tenant acne" in run("tenant", "usage", "acne").refusal()


def test_command_tenant_remove_with_data_needs_erase(run: Run, dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme'), ('globex')",
        "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
        "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy)"
        " SELECT tenant_id, 'task', 'manual' FROM tenants",
        "INSERT INTO events SELECT tenant_id, 'metrics', n::text, n, 0, 'phone', '{}'"
        " FROM tenants, generate_series(1, 10001) AS n",
        "INSERT INTO devices (tenant_id, device_id) SELECT tenant_id, 'phone' FROM tenants",
    )
    counts = (
        "SELECT name, (SELECT count(*)::int FROM events AS e WHERE e.tenant_id = t.tenant_id)"
        " FROM tenants AS t ORDER BY 1"
    )
    whole = rows(dsn, counts)
    assert "tenant acme has data in devices, events: add --erase" in run("tenant", "remove", "acme").refusal()
    assert run("tenant", "remove", "acme", "--erase", given="n\n").status == 1
    assert rows(dsn, counts) == whole
    assert run("tenant", "remove", "acme", "--erase", given="y\n").status == 0
    assert rows(dsn, counts) == [("globex", 10001)]
    assert rows(dsn, "SELECT count(*)::int FROM events") == [(10001,)]
    assert run("tenant", "remove", "globex", "--erase", "--yes").out == "removed globex\n"
    for table in ("events", "devices", "tenant_conflict_policy", "tenant_counters", "tenants"):
        assert rows(dsn, f"SELECT FROM {table}") == []


def test_command_restored_database_is_served_only_with_a_new_epoch(
    run: Run, dsn: str, tmp_path: Path
) -> None:
    old = rows(dsn, "SELECT epoch FROM cluster_state")
    execute(dsn, "UPDATE cluster_state SET system_identifier = 1")
    served = run("serve", "--data-dir", str(tmp_path), TIDEMARK__REDIS__URL="redis://127.0.0.1:1")
    assert "run `run.py epoch renew`" in served.refusal()
    renewed = run("epoch", "renew")
    assert rows(dsn, "SELECT epoch FROM cluster_state") == [(renewed.out.strip(),)]
    assert rows(dsn, "SELECT epoch FROM cluster_state") != old
    same = "SELECT s.system_identifier = c.system_identifier FROM cluster_state s, pg_control_system() c"
    assert rows(dsn, same) == [(True,)]


def test_command_tenant_add_refuses_names_unfit_for_a_url(run: Run) -> None:
    for name in ("", "a/b", "ä", "-a", "a" * 64):
        assert "NAME" in run("tenant", "add", "--", name).refusal()


@pytest.mark.parametrize(
    ("dsn", "audience"),
    [
        pytest.param("template", "tidemark", marks=without_cells("this is a database alone")),
        ("cells_template", "tidemark/cell_a"),
    ],
    indirect=["dsn"],
)
def test_command_token_prints_a_valid_token_alone_on_stdout(run: Run, dsn: str, audience: str) -> None:
    add_tenants(dsn, "acme")
    verifier = Verifier(KeySet(secret_key(_SECRET.encode()), {}), audience, frozenset(), 0)

    def claims(*arguments: str) -> tuple[object, ...]:
        signed = run("token", *arguments)
        assert (signed.status, signed.err) == (0, "")
        found = verifier.verify(signed.out.strip())
        return found.role, found.tenant, found.device_id, found.user

    assert claims("--tenant", "acme", "--device", "phone") == ("device", "acme", "phone", None)
    assert claims("--tenant", "acme", "--device", "desk", "--user", "ann", "--role", "supervisor") == (
        "supervisor",
        "acme",
        "desk",
        "ann",
    )
    assert claims("--operator", "--user", "ann") == ("operator", None, None, "ann")
    assert claims("--viewer", "--tenant", "acme", "--user", "ann") == ("viewer", "acme", None, "ann")


def test_command_token_signed_with_the_secret_that_serve_made_and_none_made_for_it(tmp_path: Path) -> None:
    command = ("token", "--operator", "--user", "ann", "--data-dir", str(tmp_path / "data"))
    signed = Ended(*command)
    assert signed.status == 0
    assert signed.err.startswith("signed without an event in the audit log: ")
    refused = Ended(*command, TIDEMARK__AUTH__SECRET="").refusal()
    assert f"no key of tokens is set, and there is none at {tmp_path}/data/auth.secret" in refused
    assert "--config FILE or TIDEMARK_CONFIG" in refused
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "auth.secret").write_text(f"{_SECRET}\n")
    signed = Ended(*command, TIDEMARK__AUTH__SECRET="")
    verifier = Verifier(KeySet(secret_key(_SECRET.encode()), {}), "tidemark", frozenset(), 0)
    assert verifier.verify(signed.out.strip()).role == "operator"
    assert _SECRET not in signed.out + signed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["token"], "--tenant and --device"),
        (["token", "--tenant", "acme"], "--tenant and --device"),
        (["token", "--operator", "--device", "phone"], "leave --device and --role out"),
        (["token", "--tenant", "acme", "--device", "a/b"], "'--device': a device's id is 1 to 255 of"),
        (["token", "--operator"], "--operator and --viewer need --user"),
        (["token", "--viewer", "--user", ""], "--operator and --viewer need --user"),
        (["token", "--operator", "--ttl-s", "0"], "--ttl-s"),
        (["migrate", "--status", "--down"], "--status changes nothing"),
        (["serve", "--workers", "many"], "auto for one per core"),
        (["serve", "--port", "65536"], "--port"),
        (["tenant", "list", "--config", "nowhere.toml"], "nowhere.toml: No such file"),
    ],
)
def test_command_mistake_of_a_user_is_one_sentence(arguments: list[str], said: str) -> None:
    assert said in Ended(*arguments).refusal()


def test_command_settings_come_from_the_file_the_environment_and_the_option(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[server]\nport = 'x'\n")

    def refusal(*arguments: str, **variables: str) -> str:
        return Ended("token", "--operator", "--user", "ann", *arguments, **variables).refusal()

    assert f"{file}: server.port: expected int" in refusal("--config", str(file))
    file.write_text("[server\n")
    assert f"{file}: " in refusal("--config", str(file))
    assert "TIDEMARK__SERVER__PROT: there is no such key" in refusal(TIDEMARK__SERVER__PROT="1")
    assert "the command line: data.dir: expected str" in refusal("--data-dir", "")
    assert "32 are needed" in refusal(TIDEMARK__AUTH__SECRET="short")


def test_command_migrate_reports_and_lists(run: Run, dsn: str) -> None:
    newest = newest_migration()
    count = len(status(dsn))
    assert run("migrate").out == f"the schema stands at {count} of {count}\n"
    unanswered = run("migrate", "--down")
    assert unanswered.refusal() == "Error: not done: it takes a yes, on a terminal or by --yes"
    assert f"Take back {newest}, with all data that is kept there, in " in unanswered.err
    assert run("migrate", "--down", "--yes").out.splitlines() == [
        f"took back {newest}",
        f"the schema stands at {count - 1} of {count}",
    ]
    last = run("migrate", "--status").out.splitlines()[-1]
    assert last.split() == [str(count), newest, "no"]
    states = json.loads(run("migrate", "--status", "--json").out)
    assert [one["number"] for one in states if one["applied_at"] is None] == [count]
    applied = json.loads(run("migrate", "--json").out)
    assert applied == {"applied": [newest], "standing": count}
    assert f"there is no migration {count + 1}" in run("migrate", "--to", str(count + 1)).refusal()
    before = status(dsn)[-2].name
    for to in (before, before[:4]):
        assert run("migrate", "--to", to, "--down", "--yes").out.startswith(f"took back {newest}\n")
        assert run("migrate", "--to", newest).out.startswith(f"applied {newest}\n")
    for to in ("0000", "0041.row", "", "-1", "x"):
        assert f"there is no migration {to}: " in run("migrate", "--to", to).refusal()


def test_command_migrate_past_row_level_security_names_the_database_without_its_dsn(
    run: Run, dsn: str
) -> None:
    execute(
        dsn, "DO $$ BEGIN EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()); END $$"
    )
    name = f"database: {place_of(dsn)}\n"
    assert run("migrate", "--to", "0040", "--down", "--yes").err == name
    assert run("migrate", "--status").err == name
    assert "a schema that `migrate --down` took back" in run("keys", "status").refusal()


def test_command_migrate_down_that_is_refused_does_not_ask(run: Run, dsn: str) -> None:
    execute(dsn, "INSERT INTO sealed_domains VALUES ('voice')")
    refused = run("migrate", "--to", "0041", "--down")
    assert refused.refusal().startswith("Error: data of voice are sealed")
    assert "Take back" not in refused.err
    execute(
        dsn,
        "DELETE FROM sealed_domains",
        "INSERT INTO server_processes (process, place, slot) VALUES (gen_random_uuid(), 'db9', 'x')",
    )
    assert "server processes use this database, such as db9" in run("migrate", "--down").refusal()


def test_command_serve_does_not_migrate_a_database_of_ones_own(empty_dsn: str) -> None:
    refused = Ended("serve", "--port", "0", TIDEMARK__POSTGRES__DSN=empty_dsn).refusal()
    assert "run `run.py migrate`" in refused
    assert rows(empty_dsn, "SELECT FROM pg_tables WHERE schemaname = 'public'") == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("WEBHOOK_URL", "example.org/hook", "alerts.webhook_url: the URL has to begin with"),
        ("SLACK_WEBHOOK_URL_FILE", "/nowhere", "alerts.slack_webhook_url_file: /nowhere: No such file"),
        ("WEBHOOK_SECRET", "whsec_!", "alerts.webhook_secret: after"),
    ],
)
def test_command_serve_with_a_wrong_receiver_is_one_sentence(
    run: Run, tmp_path: Path, key: str, value: str, said: str
) -> None:
    environment = {f"TIDEMARK__ALERTS__{key}": value}
    served = run("serve", "--port", "0", "--data-dir", str(tmp_path / "data"), **environment)
    assert said in served.refusal()
    assert not (tmp_path / "data").exists()


def test_command_serve_with_an_unusable_bus_is_one_sentence(run: Run, tmp_path: Path) -> None:
    served = run("serve", "--port", "0", "--data-dir", str(tmp_path), TIDEMARK__REDIS__URL="http://127.0.0.1")
    assert "redis.url: Redis URL must specify" in served.refusal()


def test_command_with_the_database_away_is_one_sentence(run: Run) -> None:
    away = "host=127.0.0.1 port=1 dbname=none password=hush"
    refused = run("tenant", "list", TIDEMARK__POSTGRES__DSN=away).refusal()
    assert "cannot connect to 127.0.0.1:1: " in refused
    assert "postgres.dsn" in refused
    assert "hush" not in refused
