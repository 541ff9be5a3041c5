"""The deployment that commands act on, and the options that all commands share."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import msgspec

from engine.operate.checklist import Doctor
from engine.operate.export import ExportStore
from engine.operate.figures.analytics import AnalyticsReads
from engine.operate.figures.telemetry import TelemetryReads
from engine.operate.figures.voice import VoiceReads
from engine.operate.key_admin import KeyAdmin
from engine.operate.ports import (
    AlertingMonitor,
    AuditReads,
    ConflictAdmin,
    DeviceAdmin,
    EpochAdmin,
    JobAdmin,
    PolicyAdmin,
    QuarantineAdmin,
    RefusedError,
    SchemaAdmin,
    TenantAdmin,
    TokenAdmin,
    UsageAdmin,
)
from engine.operate.rows import AlertTargets, AlertTest
from engine.runtime.ports import StoreError, StoreUnavailableError
from engine.runtime.setting_layers import InForce
from engine.runtime.settings import Log, Settings, SettingsError
from engine.seal.master_keys import MasterKeyError
from engine.uploads.verify import FileVerifier
from handlers.commands.terminal.progress import progress, undisturbed
from handlers.http.tokens import DEVICE_ID, KeySet, UnusableKeyError
from handlers.operate.logging import configure
from handlers.operate.printing import json_text, plain, say

#: A command that awaits returns a coroutine.
Command = Callable[..., Coroutine[Any, Any, None] | None]

Result = TypeVar("Result")


class DeploymentError(Exception):
    """A command cannot work here; one sentence names the remedy."""


class Deployment(Protocol):
    """One deployment as its settings describe it.

    Its parts can be opened whether ``serve`` runs or not: embedded services that exist are started for the
    command and stopped after it.

    Raises:
        DeploymentError: A part is missing or cannot be used.
        SettingsError: The settings are wrong.
        StoreError: The database does not answer.
    """

    @property
    def settings(self) -> Settings:
        """All settings."""

    @property
    def settings_file(self) -> str:
        """The path of the settings file; empty without one."""

    def in_force(self) -> list[InForce]:
        """List every setting with its source; secrets are hidden."""

    def database(self) -> str:
        """Name the database that was opened, without any secret; empty if none was."""

    def tokens(self) -> AbstractAsyncContextManager[TokenAdmin]:
        """Open what signing a token asks and leaves."""

    def keys(self) -> KeySet:
        """Read the keys of tokens. Raises UnusableKeyError, DeploymentError."""

    def schema(self) -> AbstractContextManager[SchemaAdmin]:
        """Open the schema."""

    def tenants(self) -> AbstractAsyncContextManager[TenantAdmin]:
        """Open the tenants."""

    def usage(self) -> AbstractAsyncContextManager[UsageAdmin]:
        """Open the usage of tenants."""

    def files(self) -> AbstractAsyncContextManager[FileVerifier]:
        """Open the files of tenants."""

    def policies(self) -> AbstractAsyncContextManager[PolicyAdmin]:
        """Open the policies of tenants."""

    def devices(self) -> AbstractAsyncContextManager[DeviceAdmin]:
        """Open the devices."""

    def audit(self) -> AbstractAsyncContextManager[AuditReads]:
        """Open the audit log."""

    def analytics(self) -> AbstractAsyncContextManager[tuple[AnalyticsReads, VoiceReads, TelemetryReads]]:
        """Open the figures of tenants, the log of voice verifications, and telemetry."""

    def exports(self) -> AbstractAsyncContextManager[ExportStore]:
        """Open the records and events to export."""

    def epoch(self) -> AbstractContextManager[EpochAdmin]:
        """Open the epoch."""

    def conflicts(self) -> AbstractAsyncContextManager[ConflictAdmin]:
        """Open the conflicts that wait for a person."""

    def quarantine(self) -> AbstractAsyncContextManager[QuarantineAdmin]:
        """Open the items that were rejected."""

    def sealing_keys(self) -> AbstractAsyncContextManager[KeyAdmin]:
        """Open the keys of sealed data."""

    def jobs(self, *, files: bool) -> AbstractAsyncContextManager[JobAdmin]:
        """Open the scheduled jobs; ``files`` says that those of uploads are to be run."""

    def monitor(self, targets: AlertTargets | None) -> AbstractAsyncContextManager[AlertingMonitor]:
        """Open the monitor, which sends alerts to the targets; None are none. Raises SettingsError."""

    async def test_alerts(self, targets: AlertTargets) -> list[AlertTest]:
        """Send a test to each target, or to the receivers of the settings. Raises SettingsError."""

    def doctor(self) -> Doctor:
        """Return what looks at this deployment."""

    def serve(self) -> None:
        """Serve until told to stop."""


class OpenDeployment(Protocol):
    """Reads the settings; the ``obj`` of click's context."""

    def __call__(self, config: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> Deployment:
        """Open the deployment.

        Args:
            config: The settings file; None for the default one.
            flags: Settings from the command line, by section.

        Raises:
            SettingsError: The settings cannot be read, or are wrong.
        """


def with_deployment(
    *, serving: bool = False, changes: bool = False, **flags: tuple[str, str]
) -> Callable[[Command], Command]:
    """Give a command --config, --data-dir and, as its first argument, the deployment.

    An error of the user or of the store is printed as one sentence.

    Args:
        serving: The command sets up its logs itself; the others warn on stderr.
        changes: The command changes the database, and so names it on stderr, also when it refuses.
        flags: The command's own options, with the settings (section, key) that they override.
    """
    overrides = {"data_dir": ("data", "dir"), **flags}

    def decorate(command: Command) -> Command:
        @click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file of settings that differ from config.toml."
            "  [default: $TIDEMARK_CONFIG, else /etc/tidemark/config.toml if there is one]",
        )
        @click.option("--data-dir", metavar="DIR", help="Where embedded services and secrets are kept.")
        @click.pass_context
        @wraps(command)
        def run(context: click.Context, /, config: Path | None, **options: Any) -> None:
            if not serving:
                configure(Log(level="warning", format="console"), descriptor=2)
            given: dict[str, dict[str, Any]] = {}
            for option, (section, key) in overrides.items():
                value = options.pop(option)
                if value is not None:
                    given.setdefault(section, {})[key] = value
            open_deployment: OpenDeployment = context.obj
            try:
                deployment = open_deployment(config, given)
                try:
                    running = command(deployment, **options)
                    if running is not None:
                        run_async(running)
                except (RefusedError, click.ClickException):
                    _name_database(deployment, changes=changes)
                    raise
                _name_database(deployment, changes=changes)
            except StoreUnavailableError as error:
                remedy = "see that it runs and that postgres.dsn leads to it; `run.py doctor` looks"
                raise click.ClickException(plain(f"the database is away ({error}): {remedy}")) from None
            except (SettingsError, DeploymentError, StoreError, UnusableKeyError, MasterKeyError) as error:
                raise click.ClickException(plain(str(error))) from None

        return run

    return decorate


@asynccontextmanager
async def opened(doing: str, opening: AbstractAsyncContextManager[Result]) -> AsyncIterator[Result]:
    """Open a part of the deployment, and show on a terminal that opening it and the block go on.

    Args:
        doing: What the block does, such as ``reading``.
        opening: The part, such as ``deployment.devices()``.
    """
    with progress(doing):
        async with opening as part:
            yield part


def run_async(call: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine of a command; all commands enter an event loop here.

    ``asyncio.run`` would turn the first Ctrl-C into a cancellation, which a question on the terminal does not
    notice. Here KeyboardInterrupt is raised where the command is, and what it opened is closed.
    """
    with asyncio.Runner() as runner:
        return runner.get_loop().run_until_complete(call)


def _name_database(deployment: Deployment, *, changes: bool) -> None:
    """Name the changed database on stderr, so that stdout stays for programs."""
    if changes and (database := deployment.database()):
        say(f"database: {database}", err=True)


def checked_device(_: click.Context, __: click.Parameter, device_id: str | None) -> str | None:
    """Refuse a device's id that no token may have."""
    if device_id is not None and not DEVICE_ID.match(device_id):
        raise click.BadParameter("a device's id is 1 to 255 of A-Z a-z 0-9 _ -.")
    return device_id


may_reveal = click.option(
    "--reveal", is_flag=True, help="Show personal fields, too; the audit log says who did."
)
of_tenant = click.option("--tenant", metavar="T", help="Of this tenant alone.")


def confirm(question: str) -> None:
    """Ask before a change that cannot be undone. Raises ClickException if no terminal can answer."""
    try:
        with undisturbed():
            click.confirm(question, abort=True, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.ClickException("not done: it takes a yes, on a terminal or by --yes") from None


def as_json(rows: object) -> None:
    """Print rows as one JSON document."""
    click.echo(json_text(msgspec.json.encode(rows)))
