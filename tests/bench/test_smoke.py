"""``run.py smoke`` against real servers: its steps, what it leaves, and what it says of a fault."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.smoke.steps import RECORDS, STEPS
from compose.smoke import open_deployed
from run import cli
from tests.harness.commands import Ended
from tests.harness.in_process_server import Running, Serve
from tests.harness.services import rows
from tests.harness.ws_device import SECRET, token

from bench.harness.clusters import role_variables  # isort: skip

ROOT = Path(__file__).parents[2]
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d ")
ALL = [*(step.name for step in STEPS), "clean up"]


async def deployed_smoke(server: Running, *arguments: str, **variables: str) -> Ended:
    """Run the command on the server's deployment."""
    site = role_variables(server.dsn) | {"TIDEMARK__AUTH__SECRET": SECRET.decode(), **variables}
    return await smoke(server.url, *arguments, **site)


async def smoke(url: str, *arguments: str, **site: str) -> Ended:
    """Run the command in an environment."""
    call = ["smoke", "--url", url, *arguments]
    ended = await asyncio.to_thread(
        CliRunner().invoke, cli, call, obj=open_deployed, env=site, catch_exceptions=False
    )
    # The server of this process logs to the same stdout.
    out = "".join(line for line in ended.stdout.splitlines(keepends=True) if not _LOGGED.match(line))
    return Ended(ended.exit_code, out, ended.stderr)


def steps(ended: Ended) -> dict[str, str]:
    """The steps of a run with ``--json`` and how each ended."""
    return {step["step"]: step["status"] for step in json.loads(ended.out)["steps"]}


async def test_smoke_own_tenant_goes_through_all_steps_and_leaves_nothing(server: Running) -> None:
    before = rows(server.dsn, "SELECT name FROM tenants ORDER BY name")
    ended = await deployed_smoke(server)
    assert ended.status == 0, ended.out + ended.err
    lines = ended.out.splitlines()
    assert [line[8:17].strip() for line in lines[:-1]] == ALL
    assert lines[-1] == f"all {len(ALL)} steps went well"
    assert "settled as policy field_merge says" in ended.out
    assert rows(server.dsn, "SELECT name FROM tenants ORDER BY name") == before
    assert rows(server.dsn, "SELECT count(*) FROM records") == [(0,)]
    assert rows(server.dsn, "SELECT count(*) FROM quarantine") == [(0,)]


async def test_smoke_kept_tenant_does_not_grow(server: Running) -> None:
    for _ in range(2):
        ended = await deployed_smoke(server, "--tenant", "acme", "--json")
        assert ended.status == 0, ended.out + ended.err
        assert steps(ended) == dict.fromkeys(ALL, "ok")
    stored = rows(server.dsn, "SELECT id, data IS NULL FROM records ORDER BY id")
    assert stored == [(name, True) for name in RECORDS]
    assert rows(server.dsn, "SELECT count(*) FROM quarantine") == [(0,)]


@pytest.mark.parametrize("policy", ["server_wins", "client_wins", "preserve_escalation", "manual"])
async def test_smoke_conflict_judged_by_the_policy_in_force(serve: Serve, policy: str) -> None:
    server = await serve(domains={"task": {"policy": policy}})
    ended = await deployed_smoke(server, "--tenant", "acme")
    assert ended.status == 0, ended.out + ended.err
    assert f"as policy {policy} says" in ended.out
    assert rows(server.dsn, "SELECT count(*) FROM conflict_resolution_log WHERE outcome = 'open'") == [(0,)]


async def smoke_tokens(url: str, home: Path, *devices: str) -> Ended:
    """Run the command with tokens alone: nothing leads to a database or a key."""
    file = home / "tokens.txt"
    file.write_text("".join(f"{token('acme', device)}\n" for device in devices))
    nowhere = {f"TIDEMARK__POSTGRES__{name}DSN": "host=127.0.0.1 port=1" for name in ("", "OWNER_", "JOBS_")}
    return await smoke(url, "--tokens", str(file), "--json", **nowhere, TIDEMARK__AUTH__SECRET="")


async def test_smoke_tokens_need_neither_database_nor_key(server: Running, tmp_path: Path) -> None:
    ended = await smoke_tokens(server.url, tmp_path, "a", "b")
    assert ended.status == 0, ended.out + ended.err
    assert steps(ended) == dict.fromkeys(ALL, "ok")


async def test_smoke_failed_step_is_named_and_cleaned_up_after(serve: Serve) -> None:
    server = await serve(uploads={"image_types": ["image/png"]})
    ended = await deployed_smoke(server)
    assert ended.status == 1
    *_, upload, look, cleaned, last = ended.out.splitlines()
    assert upload.startswith("failed  upload")
    assert "unsupported_type" in upload
    assert look.strip().startswith("look at data.dir")
    assert cleaned.startswith("ok      clean up")
    assert last == "failed: upload"
    assert rows(server.dsn, "SELECT count(*) FROM tenants WHERE name LIKE 'smoke-%'") == [(0,)]


async def test_smoke_refused_token_fails_at_the_connection(server: Running) -> None:
    ended = await deployed_smoke(server, TIDEMARK__AUTH__SECRET="another secret of thirty-two bytes or more")
    assert ended.status == 1
    assert "failed  connect" in ended.out
    assert "answered with 401 instead of 101" in ended.out
    assert "handshake_refused" in ended.out
    assert rows(server.dsn, "SELECT count(*) FROM tenants WHERE name LIKE 'smoke-%'") == [(0,)]


def test_smoke_nobody_there_fails_at_the_first_step(tmp_path: Path) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text("a b")
    ended = CliRunner().invoke(cli, ["smoke", "--url", "http://127.0.0.1:1", "--tokens", str(file), "--json"])
    assert ended.exit_code == 1
    [reach] = json.loads(ended.stdout)["steps"]
    assert (reach["step"], reach["status"]) == ("reach", "failed")
    assert "nginx" in reach["look"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_smoke_interrupted_erases_its_tenant(dsn: str, number: signal.Signals) -> None:
    reached = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        try:
            await asyncio.sleep(60)
        finally:
            writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(ROOT / "run.py"), "smoke", "--url", f"http://127.0.0.1:{port}"),
            env={**os.environ, **role_variables(dsn), "TIDEMARK__AUTH__SECRET": SECRET.decode()},
        )
        await asyncio.wait_for(reached.wait(), 60)
        assert rows(dsn, "SELECT count(*) FROM tenants") == [(1,)]
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 60) == 1
    assert rows(dsn, "SELECT count(*) FROM tenants") == [(0,)]


def test_smoke_mistakes_in_the_call_are_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text("a b")
    for arguments, sentence in (
        (["--tenant", "acme", "--tokens", str(file)], "give one of the two"),
        (["--tokens", str(file)], "give --url, too"),
    ):
        ended = CliRunner().invoke(cli, ["smoke", *arguments])
        assert ended.exit_code == 2
        assert sentence in ended.stderr
