"""What every command is given to work with, and what every command has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

import click
import msgspec

from engine.administration import (
    ConflictDesk,
    Epoch,
    Finding,
    Fleet,
    Policies,
    QuarantineDesk,
    Schema,
    Tenants,
    UploadJobs,
)
from engine.ports import StoreError, StoreUnavailableError
from engine.settings import Log, Settings, SettingsError
from handlers.auth import KeySet, UnusableKeyError
from handlers.logging import configure

Command = Callable[..., None]


class SiteError(Exception):
    """What a command needs cannot be had; one sentence names the remedy."""


class Site(Protocol):
    """One deployment as its settings describe it.

    What is opened here works while ``serve`` runs and while it does not: embedded services are started
    for it and stopped after. Raises SiteError, StoreError.
    """

    @property
    def settings(self) -> Settings:
        """All settings."""

    def keys(self) -> KeySet:
        """Read the keys of tokens. Raises UnusableKeyError, SiteError."""

    def schema(self) -> AbstractContextManager[Schema]:
        """Open the schema."""

    def tenants(self) -> AbstractContextManager[Tenants]:
        """Open the tenants."""

    def policies(self) -> AbstractContextManager[Policies]:
        """Open the policies of tenants."""

    def fleet(self) -> AbstractContextManager[Fleet]:
        """Open the devices."""

    def epoch(self) -> AbstractContextManager[Epoch]:
        """Open the epoch."""

    def conflicts(self) -> AbstractContextManager[ConflictDesk]:
        """Open the conflicts that wait for a person."""

    def quarantine(self) -> AbstractContextManager[QuarantineDesk]:
        """Open the items that were rejected."""

    def upload_jobs(self) -> AbstractContextManager[UploadJobs]:
        """Open what is done for uploads on schedule."""

    def examine(self) -> list[Finding]:
        """Look at all that a server needs; what is wrong is a finding, not an error."""

    def serve(self) -> None:
        """Serve until told to stop."""


class OpenSite(Protocol):
    """Reads the settings; the ``obj`` of click's context."""

    def __call__(self, config: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> Site:
        """Open the site. ``flags`` are settings from the command line, by section. Raises SettingsError."""


def on_site(*, serving: bool = False, **flags: tuple[str, str]) -> Callable[[Command], Command]:
    """Give a command --config, --data-dir and its site as first argument; a user's mistake is a sentence.

    ``flags`` maps the command's own options to the settings (section, key) that they override. A
    ``serving`` command sets up its logs itself, the others warn on stderr.
    """
    overrides = {"data_dir": ("data", "dir"), **flags}

    def decorate(command: Command) -> Command:
        @click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file of settings that differ from config.toml.",
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
            open_site: OpenSite = context.obj
            try:
                command(open_site(config, given), **options)
            except StoreUnavailableError as error:
                remedy = "see that it runs and that postgres.dsn leads to it; `run.py doctor` looks"
                raise click.ClickException(f"the database is away ({error}): {remedy}") from None
            except (SettingsError, SiteError, StoreError, UnusableKeyError) as error:
                raise click.ClickException(str(error)) from None

        return run

    return decorate


of_tenant = click.option("--tenant", metavar="T", help="Of this tenant alone.")


def table(rows: list[tuple[str, ...]], heading: tuple[str, ...]) -> None:
    """Print rows under their heading, in columns."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    for row in (heading, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def as_json(rows: object) -> None:
    """Print rows as one JSON document."""
    click.echo(msgspec.json.format(msgspec.json.encode(rows)).decode())
