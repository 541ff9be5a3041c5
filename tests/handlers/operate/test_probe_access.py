"""Who is told how a server does: everybody whether it is ready, insiders why not and how much."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from compose.deployment import open_deployment
from handlers.commands.serve import announce_demo
from tests.harness.admin import revoke_token
from tests.harness.in_process_server import Running, Serve
from tests.harness.services import execute
from tests.harness.supervised import Supervise
from tests.harness.ws_device import Json, token

#: As every proxy that passes on says.
PASSED_ON = {"X-Forwarded-For": "203.0.113.7"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def asked(url: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Ask, and give the status and what was said."""
    async with ClientSession() as http, http.get(url, headers=headers) as answer:
        is_json = answer.content_type == "application/json"
        return answer.status, await (answer.json() if is_json else answer.text())


def bearer(signed: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {signed}"} | more


FAULTY = "UPDATE cluster_state SET system_identifier = 1"


async def test_readyz_tells_everybody_its_status_and_operators_the_reasons(server: Running) -> None:
    for name in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"):
        assert await asked(f"{server.url}/readyz", {name: "127.0.0.1"}) == (200, {"status": "ready"})
    execute(server.dsn, FAULTY)
    assert await asked(f"{server.url}/readyz", PASSED_ON) == (503, {"status": "not ready"})
    operator = bearer(token(None, None, role="operator"), **PASSED_ON)
    for headers in ({}, operator):
        status, body = await asked(f"{server.url}/readyz", headers)
        assert (status, len(body["faults"])) == (503, 1)
    assert (await asked(f"{server.url}/healthz", PASSED_ON))[0] == 200


async def test_metrics_are_for_this_machine_and_operators_of_all_tenants(server: Running) -> None:
    async def verdict(headers: dict[str, str]) -> tuple[int, str]:
        status, body = await asked(f"{server.url}/metrics", headers | PASSED_ON)
        return status, "" if status == 200 else body["code"]

    operator = bearer(token(None, None, role="operator", jti="o1"))
    assert (await asked(f"{server.url}/metrics"))[0] == 200
    assert await verdict({}) == (401, "unauthenticated")
    assert await verdict(bearer("nonsense")) == (401, "unauthenticated")
    for refused in (
        token("acme", "phone"),
        token("acme", None, role="operator"),
        token(None, None, role="viewer"),
    ):
        assert await verdict(bearer(refused)) == (403, "forbidden")
    assert await verdict({"X-Tidemark-Worker": ""}) == (401, "unauthenticated")
    assert await verdict(operator) == (200, "")
    revoke_token(server.dsn, "o1", None)
    while await verdict(operator) == (200, ""):
        pass
    assert await verdict(operator) == (401, "unauthenticated")


async def test_metrics_are_for_this_machine_by_each_of_its_names(server: Running) -> None:
    for host in ("127.0.0.1:80", "[::1]:80", "localhost", "LOCALHOST:80", "tidemark", socket.gethostname()):
        assert (await asked(f"{server.url}/metrics", {"Host": host}))[0] == 200, host
    assert (await asked(f"{server.url}/metrics", {"Host": "page.example.org"}))[0] == 401


async def test_probe_port_answers_everybody_and_no_other_port_does(serve: Serve) -> None:
    port = free_port()
    server = await serve(server={"probe_port": port})
    probes, operator = f"http://127.0.0.1:{port}", bearer(token(None, None, role="operator"))
    execute(server.dsn, FAULTY)
    for headers in (PASSED_ON, {}):
        status, body = await asked(f"{probes}/readyz", headers)
        assert (status, len(body["faults"])) == (503, 1)
        status, body = await asked(f"{probes}/metrics", headers)
        assert status == 200
        assert "tidemark_connections " in body
    assert await asked(f"{server.url}/readyz", operator) == (503, {"status": "not ready"})
    status, body = await asked(f"{server.url}/metrics", operator)
    assert (status, body["code"], "server.probe_port" in body["message"]) == (404, "not_found", True)
    assert (await asked(f"{probes}/v1/changes", server.headers()))[0] == 404


async def test_probe_port_of_workers_tells_of_all_of_them(supervise: Supervise) -> None:
    port = free_port()
    server = await supervise(2, TIDEMARK__SERVER__PROBE_PORT=str(port))
    status, page = await asked(f"http://127.0.0.1:{port}/metrics")
    assert status == 200
    for worker in (1, 2):
        assert f'tidemark_worker_up{{worker="{worker}"}} 1.0' in page
        assert f'tidemark_connections{{worker="{worker}"}}' in page
        assert (await asked(f"{server.url_of(worker)}/metrics"))[0] == 404


@pytest.mark.parametrize("terminal", [True, False])
def test_demo_token_is_printed_on_a_terminal_alone(
    terminal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    signed: list[Json] = []

    def sign() -> str:
        signed.append({})
        return "SECRET.TOKEN"

    announce_demo("http://127.0.0.1:1", sign, "run.py token --tenant demo")
    said = capsys.readouterr().err
    assert ("SECRET.TOKEN" in said, len(signed)) == (terminal, int(terminal))
    assert ("run.py token --tenant demo" in said) is not terminal


def test_demo_token_command_names_the_python_that_serves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["./run.py", "serve"])
    open_deployment(None, {"data": {"dir": str(tmp_path)}})._announce("", 1, 8080)
    assert f": {sys.executable} ./run.py token --tenant demo " in capsys.readouterr().err
