"""Commands in the test's own process, on a thread beside the server's loop: a tenth of a process's cost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from click.testing import CliRunner

from bench.harness.clusters import role_variables
from compose.deployment import open_deployment
from run import cli


class Ended:
    """A command that has run."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def refusal(self) -> str:
        """The one sentence on stderr, nothing being on stdout."""
        assert self.status != 0
        assert self.out == ""
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("Error: ")
        return last


Run = Callable[..., Awaitable[Ended]]


@pytest.fixture
def command(dsn: str) -> Run:
    """Run commands on the test's database; settings from the environment are keyword arguments."""

    async def run(*arguments: str, **variables: str) -> Ended:
        of_roles = {} if "TIDEMARK__POSTGRES__DSN" in variables else role_variables(dsn)
        environment = {**of_roles, **variables}
        ended = await asyncio.to_thread(
            CliRunner().invoke, cli, arguments, obj=open_deployment, env=environment, catch_exceptions=False
        )
        return Ended(ended.exit_code, ended.stdout, ended.stderr)

    return run
