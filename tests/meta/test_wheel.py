"""The wheel of a release: installed beside its dependencies alone, it is the whole program."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.scratch import scratch

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
#: What the program reads at run time, and is no module.
READ = (
    "config.toml",
    "pyproject.toml",
    "deploy/nginx/site.conf",
    "storage/migrations/0001.tenants.sql",
    "storage/migrations/0059.uploads_begun.rollback.sql",
    "handlers/reference/static/openapi.json",
    "handlers/reference/static/rapidoc/rapidoc-min.js.gz",
    "bench/client/schema.sql",
)


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """An environment with the wheel, and with the packages of this one beside it."""
    with scratch("tidemark-wheel-") as home:
        _run("-m", "hatchling", "build", "-t", "wheel", "-d", str(home / "dist"), at=ROOT)
        [wheel] = (home / "dist").glob("*.whl")
        place = home / "venv"
        venv.create(place)
        packages = next(place.glob("lib/python3*/site-packages"))
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        command = ("-m", "pip", "--python", str(place), "install", "--no-deps", "--no-index", "--no-compile")
        _run(*command, "--quiet", "--disable-pip-version-check", str(wheel), at=home)
        yield place


def _run(*arguments: str, at: Path) -> None:
    subprocess.run([sys.executable, *arguments], check=True, cwd=at, stdout=subprocess.DEVNULL)


def test_wheel_installed_command_tells_its_version(installed: Path, tmp_path: Path) -> None:
    said = subprocess.check_output([installed / "bin" / "tidemark", "--version"], cwd=tmp_path, text=True)
    assert said == f"tidemark {VERSION}\n"
    [package] = installed.glob("lib/python3*/site-packages/tidemark")
    assert [name for name in READ if not (package / name).is_file()] == []
    beside = {path.name for path in package.parent.iterdir()}
    assert beside == {"tidemark", f"tidemark-{VERSION}.dist-info", "dependencies.pth"}


def test_changelog_begins_with_the_version() -> None:
    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert sections[0] == VERSION


@pytest.mark.slow
def test_wheel_serves_from_an_empty_directory(installed: Path) -> None:
    """On the embedded default, with the API documents, and with commands beside the server."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("TIDEMARK")}
    program = str(installed / "bin" / "tidemark")
    with scratch("tidemark-empty-") as place:
        with subprocess.Popen(
            [program, "serve", "--port", "0"], cwd=place, env=environment, stdout=subprocess.PIPE, text=True
        ) as serving:
            try:
                assert serving.stdout is not None
                events = (json.loads(line) for line in serving.stdout)
                port = next(event["port"] for event in events if event["event"] == "listening")
                command = [program, "token", "--tenant", "demo", "--device", "phone"]
                token = subprocess.check_output(command, cwd=place, env=environment, text=True).strip()
                item = {"domain": "journal", "id": "j1", "op": "put", "base": None, "data": {"text": "hello"}}
                body = json.dumps({"type": "sync", "key": "first", "items": [item]}).encode()
                answer = json.loads(_asked(f"http://127.0.0.1:{port}/v1/sync", token, body))
                assert [one["status"] for one in answer["results"]] == ["applied"]
                assert b"rapi-doc" in _asked(f"http://127.0.0.1:{port}/docs", token)
            finally:
                serving.send_signal(signal.SIGTERM)
        assert serving.returncode == 0
        assert sorted(path.name for path in place.iterdir()) == [".data"]


def _asked(url: str, token: str, body: bytes | None = None) -> bytes:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:  # noqa: S310  # a server of the test's own
        content: bytes = answer.read()
        return content
