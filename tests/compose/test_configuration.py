"""Where settings and secrets are found: one file for all commands, and never another one in its place."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.harness.environment import Environment, read_settings
from bench.harness.product import variables
from compose import configuration
from compose.configuration import DEFAULTS, VARIABLE, bus_url, database_dsn, database_services, layers
from compose.deployment import open_deployment
from engine.runtime.setting_layers import settings
from engine.runtime.settings import Settings, SettingsError

ROOT = Path(__file__).parents[2]
NOBODY = 65_534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands files to other accounts")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of this machine, which is not there yet; no other one is given."""
    monkeypatch.delenv(VARIABLE)
    file = tmp_path / "etc" / "config.toml"
    file.parent.mkdir()
    monkeypatch.setattr(configuration, "SYSTEM_FILE", file)
    return file


def put(file: Path, port: int, **more: str) -> Path:
    """Write a settings file."""
    lines = [f"[server]\nport = {port}", *(f"{key} = {value!r}" for key, value in more.items())]
    file.write_text("\n".join(lines))
    return file


def read(config: Path | None = None, *, of_system: bool = True) -> Settings:
    """Read settings as a command does."""
    return settings(layers(config, {}, of_system=of_system))


@contextmanager
def account(*groups: int) -> Iterator[None]:
    """Be an account that is not root, in these groups."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(NOBODY - 1)
    os.seteuid(NOBODY - 1)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


# -- the settings file ------------------------------------------------------------------------


def test_layers_several_files_first_found_counts_alone(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(system, 1001, host="system")
    assert (read().server.port, read().server.host) == (1001, "system")
    monkeypatch.setenv(VARIABLE, str(put(tmp_path / "variable.toml", 1002)))
    assert (read().server.port, read().server.host) == (1002, "127.0.0.1")
    given = put(tmp_path / "given.toml", 1003)
    assert (read(given).server.port, read(given).server.host) == (1003, "127.0.0.1")
    monkeypatch.setenv("TIDEMARK__SERVER__PORT", "1004")
    assert read(given).server.port == 1004


def test_layers_no_file_defaults(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not system.exists()
    assert read() == settings([layers(None, {})[0]])
    monkeypatch.setenv(VARIABLE, "")  # as a unit clears a variable
    assert read().server.port == 8080


def test_layers_defaults_given_count_as_no_file(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(system, 1001)
    monkeypatch.setenv(VARIABLE, str(DEFAULTS))
    assert read().server.port == 8080
    assert open_deployment(None, {}).settings_file == ""


def test_layers_given_file_missing_refused_beside_system_file(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(system, 1001)
    with pytest.raises(SettingsError, match=r"nowhere\.toml: No such file or directory: name a file"):
        read(tmp_path / "nowhere.toml")
    monkeypatch.setenv(VARIABLE, "nowhere.toml")
    with pytest.raises(SettingsError, match=rf"nowhere.toml \(of {VARIABLE}\): No such file"):
        read()


@needs_root
def test_layers_system_file_closed_refused_with_remedy(system: Path, tmp_path: Path) -> None:
    put(system, 1001)
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(0o755)
    for closed, mode in ((system, 0o640), (system.parent, 0o700)):
        closed.chmod(mode)
        with account(), pytest.raises(SettingsError) as refused:
            read()
        assert str(refused.value).startswith(f"{system}: Permission denied: let this account read it")
        closed.chmod(0o755)
    assert read().server.port == 1001


def test_layers_system_file_a_directory_refused(system: Path) -> None:
    system.mkdir()
    with pytest.raises(SettingsError, match="Is a directory"):
        read()


@pytest.mark.parametrize("content", [b"[server\n", b"\xff"])
def test_layers_file_no_toml_refused_by_name(system: Path, content: bytes) -> None:
    system.write_bytes(content)
    with pytest.raises(SettingsError, match=f"^{system}: "):
        read()


def test_read_settings_own_server_never_looks_into_etc(system: Path, tmp_path: Path) -> None:
    put(system, 1001)
    assert read_settings(None, None).server.port == 8080
    assert read_settings(None, None, of_system=True).server.port == 1001
    own = put(tmp_path / "own.toml", 1002)
    ground = Environment(tmp_path, "", "unix:///redis", 0)
    assert variables(ground, "host=own", "s" * 40, None)[VARIABLE] == str(DEFAULTS)
    assert variables(ground, "host=own", "s" * 40, own)[VARIABLE] == str(own)


def test_bench_variables_settings_that_name_files_are_of_its_own_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[postgres]\ndsn_file = '/no'\n[redis]\nurl_file = '/no'\n[auth]\nsecret_file = '/no'\n")
    ground = Environment(tmp_path, "", "unix:///redis", 0)
    for name, value in variables(ground, "host=own user=tidemark", "s" * 40, own).items():
        monkeypatch.setenv(name, value)
    deployment = open_deployment(None, {})
    at = database_services(deployment.settings)
    assert (at.dsn, at.jobs_dsn) == ("user=tidemark_serving host=own", "user=tidemark_jobs host=own")
    assert (at.owner_dsn, bus_url(deployment.settings)) == ("host=own user=tidemark", "unix:///redis")
    assert deployment.keys().default is not None


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["run", "test", "bench"])
def test_make_target_own_settings_never_those_of_etc(target: str, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "${VARIABLE} $*"\n')
    python.chmod(0o755)
    for stamp in ("installed", "installed-server"):
        (tmp_path / stamp).touch()
        os.utime(tmp_path / stamp, (1 << 32, 1 << 32))

    def made(**environment: str) -> str:
        command = ["make", "--silent", target, f"VENV={tmp_path}"]
        bare = {"PATH": os.environ["PATH"], **environment}
        return subprocess.run(
            command, cwd=ROOT, env=bare, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    assert made().startswith(f"{ROOT}/config.toml ")
    assert made(**{VARIABLE: "own.toml"}).startswith("own.toml ")


# -- files of secrets -------------------------------------------------------------------------

DSN = "postgresql://tidemark:hush@db.example.org/tidemark"
#: The section's key that names a file, and what reads it.
FILES = {"dsn_file": ("postgres", database_dsn), "url_file": ("redis", bus_url)}

each_file = pytest.mark.parametrize("key", FILES)


def named(key: str, file: Path) -> Settings:
    """Settings that name a file of a secret."""
    section, _ = FILES[key]
    return settings(layers(None, {section: {key: str(file)}}))


def secret(key: str, file: Path) -> str:
    """Read the secret as a command does."""
    return FILES[key][1](named(key, file))


@each_file
def test_secret_file_one_line_read_without_its_end(key: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"\n{DSN}\n")
    assert secret(key, file) == DSN
    assert FILES[key][1](settings(layers(None, {}))) == ""


@each_file
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory: write it there, or correct"),
        (b"", "one line that is not empty"),
        (b" \n", "one line that is not empty"),
        (b"a\nb\n", "one line that is not empty"),
        (b"a\0b", "one line that is not empty"),
        (b"\xff", "not a text in UTF-8"),
    ],
)
def test_secret_file_unfit_named_with_remedy(
    key: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        secret(key, file)
    section, _ = FILES[key]
    assert str(refused.value).startswith(f"{section}.{key}: {file}: {said}")


@needs_root
@each_file
def test_secret_file_of_group_open_to_its_account_and_no_other(key: str, tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(0o755)
    file = tmp_path / "secret"
    file.write_text(DSN)
    os.chown(file, 0, 4321)
    file.chmod(0o640)
    chosen = named(key, file)
    with account(4321):
        assert FILES[key][1](chosen) == DSN
    with account(), pytest.raises(SettingsError, match=r"Permission denied: let this account"):
        FILES[key][1](chosen)


@pytest.mark.parametrize(
    ("section", "key", "file_key"), [("postgres", "dsn", "dsn_file"), ("redis", "url", "url_file")]
)
def test_settings_value_and_its_file_both_set_refused(
    section: str, key: str, file_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.toml"
    own.write_text(f"[{section}]\n{file_key} = '/etc/x'\n")
    monkeypatch.setenv(f"TIDEMARK__{section}__{key}".upper(), "hush")
    with pytest.raises(SettingsError) as refused:
        settings(layers(own, {}))
    variable = f"TIDEMARK__{section.upper()}__{key.upper()}"
    said = f"{own}: {section}.{file_key}: {variable} of environment is set as well: keep one of them"
    assert str(refused.value) == said
