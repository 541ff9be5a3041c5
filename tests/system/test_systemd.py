"""The units: what they start exists, they outlast a drain, and they give the server no more than it needs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from compose import configuration
from handlers.commands.serve import serve

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "systemd"
#: Of the receiver of the WAL, which docs/recovery.md installs.
RECEIVER = FOLDER / "tidemark-receiver.service"
#: Those of the server.
UNITS = sorted({*FOLDER.glob("*.service")} - {RECEIVER})
#: The settings file that is installed with the units.
SAMPLE = tomllib.loads((ROOT / "deploy" / "systemd" / "config.toml").read_text("utf-8"))
DEFAULTS = tomllib.loads((ROOT / "config.toml").read_text("utf-8"))
#: Where the units expect the checkout.
HOME = "/opt/tidemark"
#: What a drain takes beyond ``server.drain_s``: closing frames are waited for, on both sides.
CLOSING_S = 2 * 2.0

Unit = dict[str, dict[str, list[str]]]

each_unit = pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
with_receiver = pytest.mark.parametrize("path", [*UNITS, RECEIVER], ids=lambda path: path.name)


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


def _analyze() -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return program


def _installed(path: Path, home: Path) -> Path:
    """Copy a unit as it would be installed for this checkout; the template gets an instance."""
    text = path.read_text("utf-8").replace(f"{HOME}/.venv/bin/python", sys.executable)
    text = text.replace("/usr/bin/pg_receivewal", sys.executable)
    copy = home / path.name.replace("@", "@8081")
    copy.write_text(text.replace(HOME, str(ROOT)), "utf-8")
    (home / path.name).write_text(copy.read_text("utf-8"), "utf-8")
    return copy


def test_receiver_starts_again_for_ever_and_writes_where_it_receives() -> None:
    command = service(RECEIVER, "ExecStart")
    [program, *_] = shlex.split(command)
    assert command.removeprefix(program) in (ROOT / "docs" / "recovery.md").read_text("utf-8").replace(
        "--create-slot --if-not-exists", "--synchronous --no-loop"
    )
    assert service(RECEIVER, "Restart") == "always"
    assert read(RECEIVER)["Unit"]["StartLimitIntervalSec"] == ["0"]
    place = service(RECEIVER, "ReadWritePaths")
    assert f" -D {place} " in command
    assert read(RECEIVER)["Unit"]["RequiresMountsFor"] == [place]


@with_receiver
def test_unit_verified_by_systemd(path: Path, tmp_path: Path) -> None:
    command = [_analyze(), "verify", "--man=no", str(_installed(path, tmp_path))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@with_receiver
def test_unit_exposure_rated_ok(path: Path, tmp_path: Path) -> None:
    unit = str(_installed(path, tmp_path))
    command = [_analyze(), "security", "--offline=true", "--threshold=20", "--no-pager", unit]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
