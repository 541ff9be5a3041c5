"""deploy/compose.yaml and deploy/Containerfile hold together: files, secrets, settings, ports, versions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from psycopg2.extensions import parse_dsn

from compose.configuration import bus_url, database_services
from compose.deployment import open_deployment
from compose.metrics import release
from compose.sealing.master_key import master_keys
from tests.book.blocks import block_with

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
#: Their images need a root that they may write, or more rights at their start.
NOT_CONFINED = {"postgres"}


def _of_server() -> Any:
    return open_deployment(DEPLOY / "compose" / "config.toml", {}).settings


def test_compose_mounted_files_exist() -> None:
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source, _, _ = mount.partition(":")
            if source.startswith("./compose/secrets/"):
                continue
            found = source in COMPOSE["volumes"] or (DEPLOY / source).is_file()
            assert found, f"{name} mounts {source}"
            assert source in COMPOSE["volumes"] or mount.endswith(":ro"), mount


def test_compose_secrets_are_files_which_the_page_makes() -> None:
    page = (DEPLOY.parent / "docs" / "containers.md").read_text("utf-8")
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./compose/secrets/{name}"}
        role, _, ending = name.partition(".")
        assert f":{role};" in page.replace(" ", ";") if ending == "dsn" else name in page, name
    given = [secret for service in SERVICES.values() for secret in service.get("secrets", ())]
    used = {secret if isinstance(secret, str) else secret["source"] for secret in given}
    assert used == set(COMPOSE["secrets"])
    named = re.findall(r"/run/secrets/([\w.]+)", (DEPLOY / "compose" / "config.toml").read_text("utf-8"))
    assert set(named) == set(SERVICES["server"]["secrets"])


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - NOT_CONFINED))
def test_compose_service_has_a_read_only_root_and_no_capability(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("cap_add", []) == [] or name == "nginx"


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"migrate"}))
def test_compose_service_has_a_health_check_and_limits(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}


def test_compose_settings_fit_the_services() -> None:
    settings = _of_server()
    front = COMPOSE["networks"]["front"]["ipam"]["config"][0]["subnet"]
    assert settings.server.trusted_proxies == (front,)
    probes = f":{settings.server.probe_port}"
    assert probes in " ".join(SERVICES["server"]["healthcheck"]["test"])
    scraped = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert scraped[0]["static_configs"] == [{"targets": [f"server{probes}"]}]
    page = (DEPLOY.parent / "docs" / "containers.md").read_text("utf-8")
    assert f"--workers {settings.server.workers} --port {settings.server.port}" in page


def test_compose_image_is_of_this_version_and_named_without_a_registry() -> None:
    name, version = release()
    assert SERVICES["server"]["image"] == SERVICES["migrate"]["image"] == f"{name}:{version}"
    images = [service["image"] for service in SERVICES.values()]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Containerfile").read_text("utf-8"), re.MULTILINE)
    for image in images:
        host, slash, _ = image.partition("/")
        assert not (slash and "." in host), image
        assert ":" in image, image


def test_containerfile_ends_as_a_user_by_number_that_compose_keeps() -> None:
    text = (DEPLOY / "Containerfile").read_text("utf-8")
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    assert "user" not in SERVICES["server"]
    exec_form = re.findall(r"^(?:ENTRYPOINT|CMD|    CMD) (.+)$", text, re.MULTILINE)
    assert len(exec_form) == 3
    assert all(isinstance(json.loads(one), list) for one in exec_form)
    pinned = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert pinned["requires-python"] == ">=3.11"


def test_dockerignore_leaves_only_what_is_copied() -> None:
    ignored = (DEPLOY.parent / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    text = (DEPLOY / "Containerfile").read_text("utf-8")
    sources = re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE)
    assert rules == ["*", *(f"!{source}" for source in sources)]


def test_page_makes_secrets_that_fit(tmp_path: Path) -> None:
    """The block runs in a copy; then the server's settings are read with these files."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    root = DEPLOY.parent
    for name in ("run.py", ".venv"):
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "deploy" / "compose").mkdir(parents=True)
    page = (root / "docs" / "containers.md").read_text("utf-8")
    block = block_with("docs/containers.md", "umask 077\n")
    assert block.language == "sh"
    environment = {**os.environ, "TIDEMARK_CONFIG": str(root / "config.toml")}
    command = ["/bin/sh", "-euc", block.text.replace(".venv/bin/python", sys.executable)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    secrets = tmp_path / "deploy" / "compose" / "secrets"
    first = {path: path.read_bytes() for path in secrets.iterdir()}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert {path: path.read_bytes() for path in secrets.iterdir()} == first
    made = {path.name: path for path in secrets.iterdir()}
    assert set(made) == {*COMPOSE["secrets"], "site.conf"}
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert [name for name, path in made.items() if path.stat().st_mode & 0o077] == []
    owned = re.findall(r"^chown \d+ (.+)$", page, re.MULTILINE)
    assert {name for names in owned for name in names.split()} == set(made) - {
        "tls.crt",
        "tls.key",
        "site.conf",
    }
    text = (DEPLOY / "compose" / "config.toml").read_text("utf-8").replace("/run/secrets", str(secrets))
    config = tmp_path / "config.toml"
    config.write_text(text)
    deployment = open_deployment(config, {})
    assert deployment.keys().default is not None
    assert len(master_keys(deployment.settings).ids) == 1
    at = database_services(deployment.settings)
    users = [parse_dsn(dsn)["user"] for dsn in (at.owner, at.dsn, at.jobs)]
    assert users == ["tidemark", "tidemark_serving", "tidemark_jobs"]
    roles = made["roles.sql"].read_text("utf-8")
    for dsn in (at.owner, at.dsn, at.jobs):
        named = parse_dsn(dsn)
        assert f"CREATE ROLE {named['user']} LOGIN PASSWORD '{named['password']}';" in roles
    assert bus_url(deployment.settings) == (
        f"redis://:{made['redis.conf'].read_text().removeprefix('requirepass ').strip()}@redis:6379/0"
    )
    site = made["site.conf"].read_text("utf-8")
    assert re.findall(r"server (server:\d+)", site) == ["server:8081", "server:8082"]
    assert "/run/secrets/tls.crt" in site
