#!/usr/bin/env python3
"""The command line: ``run.py --help``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage, and to look for it takes a quarter of a start

try:
    import click
    from click.shell_completion import CompletionItem, ShellComplete

    from compose.deployment import open_deployment, run_worker
except ModuleNotFoundError as missing:
    remedy = "run `make install`, then .venv/bin/python run.py"
    sys.stderr.write(f"Error: this Python has no {missing.name}: {remedy}\n")
    sys.exit(3 if "monitor" in sys.argv[1:] else 1)  # 1 of the monitor would read as degraded

from compose.metrics import release
from compose.sealing.core_dumps import forbid_core_dumps
from handlers.commands.analytics.command import analytics
from handlers.commands.audit import audit
from handlers.commands.completion import completion
from handlers.commands.conflicts import conflicts
from handlers.commands.device import device
from handlers.commands.doctor import doctor, verify
from handlers.commands.epoch import epoch
from handlers.commands.export import export
from handlers.commands.job import job
from handlers.commands.keys import keys
from handlers.commands.migrate import migrate
from handlers.commands.monitor import EXIT_STATUSES, monitor
from handlers.commands.nginx import nginx
from handlers.commands.policy import policy
from handlers.commands.quarantine import quarantine
from handlers.commands.serve import serve
from handlers.commands.settings import settings
from handlers.commands.tenant import tenant
from handlers.commands.token import token


def _show_version(context: click.Context, _: click.Parameter, asked: bool) -> None:  # noqa: FBT001
    if asked:
        click.echo(" ".join(release()))
        context.exit()


class CommandGroup(click.Group):
    """Exits with 3 for a mistake before the name of the monitor: click's own 2 would read as critical."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the call."""
        command = next((argument for argument in args if argument in self.commands), None)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if command != monitor.name:
                raise
            error.show()
            raise click.exceptions.Exit(EXIT_STATUSES["unknown"]) from None


@click.group(cls=CommandGroup, epilog="Every command has its own --help with an example.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Tidemark, the sync engine: devices push, everybody else of the tenant sees it."""


class _Forwarding(click.Command):
    """Hands its words to a command that is a client, and loaded only for this; also to complete them."""

    def __init__(
        self, name: str, load: Callable[[], click.Command], short_help: str, obj: Any = None
    ) -> None:
        words = click.Argument(
            ["words"],
            nargs=-1,
            type=click.UNPROCESSED,
            shell_complete=lambda context, _, begun: self.shell_complete(context, begun),
        )
        super().__init__(
            name,
            callback=self._run,
            params=[words],
            context_settings={"ignore_unknown_options": True},
            add_help_option=False,
            short_help=short_help,
        )
        self._load = load
        self._obj = obj

    def _run(self, words: tuple[str, ...]) -> None:
        self._load().main(list(words), prog_name=click.get_current_context().command_path, obj=self._obj)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a word as the other command does."""
        words = list(ctx.params.get("words") or ())
        return ShellComplete(self._load(), {}, ctx.command_path, "").get_completions(words, incomplete)


def _bench() -> click.Command:
    from bench.cli import bench  # noqa: PLC0415  # no other command pays for it

    return bench


def _simulate() -> click.Command:
    from bench.client.simulate import simulate  # noqa: PLC0415  # as bench

    return simulate


def _smoke() -> click.Command:
    from bench.smoke.command import smoke  # noqa: PLC0415  # as bench

    return smoke


def _open_deployed(config: Path | None, data_dir: str | None) -> Any:
    from compose.smoke import open_deployed  # noqa: PLC0415  # as bench

    return open_deployed(config, data_dir)


def _open_access(config: Path | None, data_dir: str | None) -> Any:
    from compose.simulation import open_access  # noqa: PLC0415  # as bench

    return open_access(config, data_dir)


bench = _Forwarding("bench", load=_bench, short_help="Measure a server under load.")
smoke = _Forwarding(
    "smoke",
    load=_smoke,
    obj=_open_deployed,
    short_help="Go through a device's whole session against a server.",
)
device.add_command(
    _Forwarding(
        "simulate",
        load=_simulate,
        obj=_open_access,
        short_help="Have devices work offline and online until all agree.",
    )
)


@click.command("worker", hidden=True)
def worker() -> None:
    """Be one of several workers; `serve` starts them."""
    run_worker()


for command in (
    serve,
    worker,
    migrate,
    tenant,
    token,
    device,
    policy,
    epoch,
    nginx,
    conflicts,
    quarantine,
    job,
    monitor,
    audit,
    analytics,
    export,
    keys,
    doctor,
    verify,
    settings,
    completion,
    bench,
    smoke,
):
    cli.add_command(command)


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    forbid_core_dumps()
    cli(obj=open_deployment)
