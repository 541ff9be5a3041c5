"""The units: what they start exists, they outlast a drain, and they give the server no more than it needs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench.harness.clusters import as_role
from compose import configuration
from compose.configuration import bus_url, database_services, layers
from engine.runtime.setting_layers import settings
from handlers.commands.serve import serve
from handlers.http.keys import key_set
from storage.embedded.servers import Services
from tests.compose.test_configuration import account, needs_root
from tests.harness.services import rows
from tests.meta.test_docs import fences

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
#: The settings file that is installed with the units.
SAMPLE = tomllib.loads((ROOT / "deploy" / "systemd" / "config.toml").read_text("utf-8"))
DEFAULTS = tomllib.loads((ROOT / "config.toml").read_text("utf-8"))
#: Where the units expect the checkout.
HOME = "/opt/tidemark"
#: What a drain takes beyond ``server.drain_s``: closing frames are waited for, on both sides.
CLOSING_S = 2 * 2.0

Unit = dict[str, dict[str, list[str]]]

each_unit = pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)


def read(path: Path) -> Unit:
    """Sections of keys, each with its values in order."""
    unit: Unit = defaultdict(lambda: defaultdict(list))
    section = ""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line or line.startswith(("#", ";")):
            continue
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = heading[1]
            continue
        key, equals, value = line.partition("=")
        assert section, f"{path.name}:{number}: outside of any section"
        assert equals, f"{path.name}:{number}: no setting"
        assert re.fullmatch(r"[A-Za-z]+", key), f"{path.name}:{number}: {key!r}"
        unit[section][key].append(value)
    return unit


def service(path: Path, key: str) -> str:
    """The one value of a key of the service."""
    [value] = read(path)["Service"][key]
    return value


def test_units_one_for_a_worker_and_one_for_all() -> None:
    assert [path.name for path in UNITS] == ["tidemark.service", "tidemark@.service"]


@each_unit
def test_unit_start_command_accepted_by_the_server(path: Path) -> None:
    python, program, command, *options = shlex.split(service(path, "ExecStart").replace("%i", "8081"))
    assert (python, program) == (f"{HOME}/.venv/bin/python", f"{HOME}/run.py")
    assert (ROOT / Path(program).relative_to(HOME)).exists()
    assert command == serve.name
    given = serve.make_context("serve", options).params
    # What is no option is a setting, which commands find as well.
    assert given["config"] == configuration.SYSTEM_FILE
    assert given["data_dir"] is None
    assert SAMPLE["data"]["dir"] == f"/var/lib/{service(path, 'StateDirectory')}"
    if "@" in path.name:
        assert (given["port"], given["workers"]) == (8081, 1)
    else:
        # What doctor and nginx count is what the unit starts.
        assert (given["port"], given["workers"]) == (None, None)
        assert SAMPLE["server"]["workers"] >= 1
    assert service(path, "ExecReload") == "/bin/kill -HUP $MAINPID"


@each_unit
def test_unit_stop_waits_for_the_drain_and_leaves_no_process(path: Path) -> None:
    assert float(service(path, "TimeoutStopSec")) > DEFAULTS["server"]["drain_s"] + CLOSING_S
    assert service(path, "KillMode") == "mixed"
    assert service(path, "Restart") == "on-failure"


def test_units_have_the_same_restrictions() -> None:
    one, other = (
        {key: values for key, values in read(path)["Service"].items() if key != "ExecStart"} for path in UNITS
    )
    assert one == other
    assert (one["User"], one["Group"]) == (["tidemark"], ["tidemark"])
    assert "EnvironmentFile" not in one  # which commands would not see
    assert one["CapabilityBoundingSet"] == [""]
    assert one["ProtectSystem"] == ["strict"]
    assert int(one["LimitNOFILE"][0]) >= 65_536


# -- the lines of the docs --------------------------------------------------------------------

_GID = 4321
#: What a test cannot do to the machine that it runs on.
_LEFT_OUT = ("make install-server", "useradd ", "systemctl ", "cp ")


def _installation(home: Path, dsn: str, redis_url: str) -> str:
    """The lines of the docs for a tree below ``home``, a group without a name, and services that run."""
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    section = page[page.index("\n## Under systemd\n") : page.index("\n## Tenants\n")]
    lines = "".join(text for _, text in fences(section)).splitlines()
    assert [line for line in lines if line.startswith(_LEFT_OUT[:2])] == [
        "make install-server",
        "useradd --system --user-group --home-dir /var/lib/tidemark tidemark",
    ]
    script = "\n".join(line for line in lines if not line.startswith(_LEFT_OUT))
    for written, here in (
        ("-o tidemark ", ""),
        ("-g tidemark", f"-g {_GID}"),
        ("postgresql://tidemark_serving:PASSWORD@db.example.org/tidemark", as_role(dsn, "serving")),
        ("postgresql://tidemark:PASSWORD@db.example.org/tidemark", dsn),
        ("postgresql://tidemark_jobs:PASSWORD@db.example.org/tidemark", as_role(dsn, "jobs")),
        ("redis://cache.example.org:6379/0", redis_url),
        ("sudo -u tidemark .venv/bin/python", sys.executable),
        ("deploy/systemd/config.toml", f"{home}/sample.toml"),
        ("/etc/", f"{home}/etc/"),
        ("/var/lib/", f"{home}/lib/"),
    ):
        assert written in script, written
        script = script.replace(written, here)
    return f"set -e\n{script}\n"


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Make a directory that other accounts may enter: each process of pytest closes pytest's own."""
    with TemporaryDirectory(prefix="tidemark-installed-") as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


@needs_root
def test_docs_lines_install_a_server_with_secrets_for_its_account_only(
    dsn: str, services: Services, open_path: Path
) -> None:
    sample = (ROOT / "deploy" / "systemd" / "config.toml").read_text("utf-8")
    sample = sample.replace('"/etc/', f'"{open_path}/etc/').replace('"/var/lib/', f'"{open_path}/lib/')
    (open_path / "sample.toml").write_text(sample)
    installed = open_path / "etc" / "tidemark" / "config.toml"
    for above in ("etc", "lib"):
        (open_path / above).mkdir(mode=0o755)
    bare = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMARK__")}
    ended = subprocess.run(
        ["/bin/sh", "-c", _installation(open_path, dsn, services.redis_url)],
        cwd=ROOT,
        env={**bare, configuration.VARIABLE: str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "fault" not in ended.stdout
    assert f", {os.cpu_count()} workers" in ended.stdout
    assert rows(dsn, "SELECT name FROM tenants") == [("acme",)]
    assert ended.stdout.splitlines()[-1].count(".") == 2  # the token
    with account(_GID):
        chosen = settings(layers(installed, {}))
        at = database_services(chosen)
        assert (at.dsn, at.owner_dsn, at.jobs_dsn) == (as_role(dsn, "serving"), dsn, as_role(dsn, "jobs"))
        assert bus_url(chosen) == services.redis_url
        assert key_set(chosen.auth, None).default is not None
    for path in installed.parent.iterdir():
        assert (path.stat().st_uid, path.stat().st_gid) == (0, _GID)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with account(), pytest.raises(PermissionError):
        installed.read_bytes()


def _analyze() -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return program


def _installed(path: Path, home: Path) -> Path:
    """Copy a unit as it would be installed for this checkout; the template gets an instance."""
    text = path.read_text("utf-8").replace(f"{HOME}/.venv/bin/python", sys.executable)
    copy = home / path.name.replace("@", "@8081")
    copy.write_text(text.replace(HOME, str(ROOT)), "utf-8")
    (home / path.name).write_text(copy.read_text("utf-8"), "utf-8")
    return copy


@each_unit
def test_unit_verified_by_systemd(path: Path, tmp_path: Path) -> None:
    command = [_analyze(), "verify", "--man=no", str(_installed(path, tmp_path))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@each_unit
def test_unit_exposure_rated_ok(path: Path, tmp_path: Path) -> None:
    unit = str(_installed(path, tmp_path))
    command = [_analyze(), "security", "--offline=true", "--threshold=20", "--no-pager", unit]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
