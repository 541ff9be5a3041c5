"""The blocks of docs/deployment.md (ten steps) and docs/upgrades.md (blue and green), as they stand.

PostgreSQL on TCP with a superuser of its own, a real nginx with TLS, and two servers. What a test may not do
to its machine, or may not find there, is replaced: folders, ports, the account. tests/book/tables.py names
the blocks that are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness.clusters import PASSWORD, Cluster, cluster_in
from bench.harness.nginx import nginx_program
from bench.harness.server import free_ports
from bench.smoke.steps import STEPS
from compose.configuration import database_services, layers
from engine.runtime.setting_layers import settings
from handlers.http.keys import key_set
from storage.embedded.account import account_for
from storage.embedded.binaries import postgres_binaries
from storage.embedded.servers import Services
from storage.postgres.blocking import connected
from tests.book.blocks import COMMANDS, ROOT, Block, read
from tests.book.runner import matches, pairs
from tests.book.tables import RUN_BY
from tests.compose.test_configuration import account
from tests.harness.scratch import scratch

TEST = "tests/system/test_first_deployment.py::test_ten_steps_deploy_and_upgrade_as_written"
PAGES = "docs/deployment.md", "docs/upgrades.md"
_MARK = "\x1e"
_GID = 4321 if os.geteuid() == 0 else os.getgid()
_WORKERS = 2
_PATIENCE_S = 240

_NGINX = """\
daemon on;
pid {home}/nginx.pid;
error_log {home}/error.log;
include {home}/nginx/modules-enabled/*.conf;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {home}/client_body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    include {home}/nginx/conf.d/*.conf;
}}
"""
_BEGIN = """\
set -eu -o pipefail
nginx() {{ {program} -p {home} -c {home}/nginx.conf -e {home}/error.log "$@"; }}
end() {{
    nginx -s stop 2>/dev/null || :
    for one in $(jobs -p); do kill "$one" 2>/dev/null || :; done
    wait
}}
trap end EXIT
nginx
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """The folders that the pages write to, below one that other accounts may enter."""
    with scratch("tidemark-deployed-") as made:
        made.chmod(0o755)
        for name in ("etc", "lib", "log", "prometheus", "nginx/conf.d", "nginx/modules-enabled"):
            (made / name).mkdir(parents=True)
        for path in (
            ROOT / "deploy" / "systemd" / "config.toml",
            ROOT / "deploy" / "prometheus" / "prometheus.yml",
        ):
            text = (
                path.read_text("utf-8")
                .replace('"/etc/', f'"{made}/etc/')
                .replace('"/var/lib/', f'"{made}/lib/')
            )
            (made / path.name).write_text(text.replace("/etc/prometheus/", f"{made}/prometheus/"))
        (made / "nginx.conf").write_text(_NGINX.format(home=made) + f"{_user()}")
        yield made


def _user() -> str:
    return "user root;\n" if os.geteuid() == 0 else ""


@pytest.fixture
def postgres() -> Iterator[Cluster]:
    """A server whose superuser is ``postgres``, and that has no role and no database of ours."""
    with scratch("tidemark-cluster-") as place, cluster_in(place / "clusters", "own") as made:
        with connected(made.database("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE ROLE postgres SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        own = made.database("postgres").replace("user=tidemark", "user=postgres")
        with connected(own) as connection, connection.cursor() as cursor:
            cursor.execute("DROP DATABASE tidemark")
            cursor.execute("ALTER ROLE tidemark RENAME TO bootstrap")
        yield made


def _programs() -> str:
    program = nginx_program()
    for name in ("openssl", "promtool"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    if program is None:
        pytest.skip("nginx is not installed")
    return program


def _blocks() -> list[Block]:
    """All blocks of both pages but those that nothing runs, or another test."""
    found = [block for page in PAGES for block in read(page)]
    mine = {name for name, test in RUN_BY.items() if test == TEST}
    return [block for block in found if block.language not in COMMANDS or any(map(block.is_named, mine))]


def _here(text: str, home: Path, postgres: Cluster, services: Services, port: int) -> str:
    """Write a block for this machine."""
    for written, here in (
        ("deploy/systemd/config.toml", f"{home}/config.toml"),
        ("deploy/prometheus/prometheus.yml", f"{home}/prometheus.yml"),
        ("/opt/tidemark-green", str(ROOT)),
        ("/opt/tidemark", str(ROOT)),
        ("/etc/tidemark", f"{home}/etc/tidemark"),
        ("/var/lib/tidemark", f"{home}/lib/tidemark"),
        ("/var/log", f"{home}/log"),
        ("/etc/nginx", f"{home}/nginx"),
        ("/etc/prometheus", f"{home}/prometheus"),
        ("PGPORT=5432", f"PGPORT={postgres.port}"),
        ("redis://127.0.0.1:6379/0", services.redis_url),
        ("-o tidemark ", ""),
        ("-o prometheus ", ""),
        ("-g tidemark", f"-g {_GID}"),
        ("$(nproc)", str(_WORKERS)),
        ("runuser -u tidemark -- ", ""),
        ("systemctl reload-or-restart nginx", "nginx -s reload"),
        (".venv/bin/python run.py nginx ", f"{{}} run.py nginx --address 127.0.0.1 --https-port {port} "),
        (".venv/bin/python", "{}"),
        ("https://127.0.0.1", f"https://127.0.0.1:{port}"),
        ("sync.example.org:443:", f"sync.example.org:{port}:"),
        ("https://sync.example.org", f"https://sync.example.org:{port}"),
    ):
        text = text.replace(written, here)
    text = text.replace("{}", sys.executable)
    blue, green = port + 1, port + 11
    return re.sub(
        r"\b([89])08(\d)\b", lambda one: str((blue if one[1] == "8" else green) + int(one[2])), text
    )


def _steps_left_out(text: str) -> str:
    """Leave out the lines that change the machine."""
    return "".join(
        line
        for line in text.splitlines(keepends=True)
        if not line.startswith(("make install-server", "useradd "))
    )


@pytest.mark.slow
def test_ten_steps_deploy_and_upgrade_as_written(home: Path, postgres: Cluster, services: Services) -> None:
    program = _programs()
    port = free_ports(24)
    blocks = _blocks()
    commands = [block for block in blocks if block.language in COMMANDS]
    parts = [_BEGIN.format(home=home, program=program)]
    parts += [
        f"printf '\\036'\n{_here(_steps_left_out(block.text), home, postgres, services, port)}"
        for block in commands
    ]
    ended = subprocess.run(
        ["/bin/bash", "-c", "".join(parts)],
        cwd=ROOT,
        env=_environment(home) | {"TIDEMARK__SERVER__PORT": str(port + 1)},
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_S,
    )
    printed = ended.stdout.split(_MARK)[1:]
    failed = commands[len(printed) - 1].place if printed else "before the first block"
    assert ended.returncode == 0, f"{failed}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}\n{_logs(home)}"
    for command, shown in pairs(blocks):
        if command in commands:
            assert matches(shown.text, printed[commands.index(command)]), printed[commands.index(command)]
    said = {command.text: text for command, text in zip(commands, printed, strict=True)}
    smokes = [text for block, text in said.items() if "run.py smoke" in block]
    assert [text.count(f"all {len(STEPS) + 1} steps went well") for text in smokes] == [1, 1, 2, 1]
    assert "pending" not in _said(said, "migrate --status")
    assert re.search(r"^north ", _said(said, "tenant list"), re.MULTILINE)
    assert '"status": "ready"' in _said(said, "run.py doctor")
    assert "fault" not in _said(said, "run.py doctor")
    assert _said(said, "grep -E '^ +server").count("max_fails=0") == _WORKERS
    assert _said(said, "--resolve").strip() == '{"status": "ok"}'
    assert [len(re.findall(part, _said(said, "grep ' file '"))) for part in ("_file ", "\n")] == [6, 8]
    assert 'schema="' in _said(said, "^tidemark_build_info")
    _only_for_the_account(home / "etc" / "tidemark")


def _said(said: dict[str, str], part: str) -> str:
    [text] = [text for block, text in said.items() if part in block]
    return text


def _only_for_the_account(folder: Path) -> None:
    """Each file of a secret is root's, and only the group of the server may read it."""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    names = {"auth.secret", "config.toml", "jobs.dsn", "master.key", "owner.dsn", "redis.url", "serving.dsn"}
    for name in names:
        found = (folder / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o640, _GID), name
    if os.geteuid() == 0:
        with account(_GID):
            chosen = settings(layers(folder / "config.toml", {}))
            assert database_services(chosen).owner_dsn.startswith("postgresql://tidemark:")
            assert key_set(chosen.auth, None).default is not None
        with account(), pytest.raises(PermissionError):
            (folder / "config.toml").read_bytes()


def _environment(home: Path) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEMARK_", "PG"))}
    binaries = postgres_binaries(home, account_for(home), None)
    return bare | {
        "PATH": f"{binaries}:{bare['PATH']}",
        "PGPASSWORD": PASSWORD,
        "TIDEMARK_CONFIG": f"{home}/etc/tidemark/config.toml",
    }


def _logs(home: Path) -> str:
    return "".join(path.read_text()[-2000:] for path in (*home.glob("log/*"), *home.glob("error.log")))
