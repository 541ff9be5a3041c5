"""One deployment as its settings describe it: what commands open, and `serve`."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from msgspec.structs import replace

from compose.admin import ConflictAdmin, QuarantineAdmin
from compose.alerts import AlertingMonitor, named_receivers, receivers, send_tests
from compose.command_commit import WorkCommitter
from compose.configuration import SECRETS, bus_url, database_services, in_cell, layers
from compose.doctor.doctor import Doctor
from compose.job_command import JobAdmin
from compose.monitoring import health_check
from compose.processes.reload import Reading, Reload, note_reload, note_start
from compose.processes.supervisor import WorkersFailedError
from compose.processes.workers import check_bus, supervise, work
from compose.sealing.admin import KeyAdmin
from compose.sealing.start import check_reloaded, start_sealing
from compose.sealing.stores import TenantsWithKeys, open_sealing
from compose.server import SystemClock
from compose.signing import signed_for_device
from compose.start import check_database_roles, check_file_storage, ensure_demo_tenant, refuse_restored
from compose.uploads import file_verifier
from engine.model.audit import AuditRow
from engine.model.domains import Domains
from engine.operate.rows import AlertTargets, AlertTest
from engine.runtime.ports import StoreRetryError
from engine.runtime.setting_layers import (
    COMMAND_LINE,
    DEFAULT,
    ENVIRONMENT,
    InForce,
    Layer,
    in_force,
    named_policies,
    settings,
)
from engine.runtime.settings import Settings
from engine.uploads.verify import FileVerifier
from handlers.commands.deployment import DeploymentError, run_async
from handlers.commands.serve import DEMO_TENANT, announce_demo
from handlers.http.keys import key_set, signing_key
from handlers.http.tokens import KeySet
from handlers.operate.logging import configure
from handlers.server import ListenError
from storage.bus.bus_messages import announce
from storage.embedded.account import EmbeddedError, account_for, make_data_dir
from storage.embedded.servers import NAME_IT, Services, embedded, embedded_redis_url
from storage.postgres.commands import command_database
from storage.postgres.display_names import database_name
from storage.postgres.migrate import PostgresSchemaAdmin, status
from storage.postgres.partitions.maintenance import maintain
from storage.postgres.pool import Database
from storage.stores.audit import PostgresAudit, append_now, process_account
from storage.stores.devices import PostgresDevices
from storage.stores.epoch import PostgresEpoch
from storage.stores.export import PostgresExport
from storage.stores.monitoring.analytics import PostgresAnalytics
from storage.stores.monitoring.telemetry import PostgresTelemetry
from storage.stores.monitoring.voice import PostgresVoice
from storage.stores.policies import PostgresPolicies
from storage.stores.tenants import PostgresTenants
from storage.stores.usage import PostgresUsage

_MADE_SECRET: Final = "auth.secret"  # noqa: S105  # the name of a file

_log = structlog.get_logger()


class Deployment:
    """One deployment (``handlers.commands.deployment.Deployment``).

    Args:
        chosen: The settings.
        sources: The layers that they were made of.
        reopen: Reads the layers again.
    """

    def __init__(
        self, chosen: Settings, sources: Sequence[Layer] = (), reopen: Callable[[], Deployment] | None = None
    ) -> None:
        self.settings = chosen
        self._sources = sources
        self._reopen = reopen or (lambda: self)
        self._chosen_domains = named_policies(sources)
        others = (DEFAULT, ENVIRONMENT, COMMAND_LINE)
        self._file = next((layer for layer in sources if layer.source not in others), None)
        self._data_dir = Path(chosen.data.dir)
        self._embedded = chosen.postgres.is_embedded
        self._opened_dsns: tuple[str, ...] = ()
        self._advanced_tenants: set[int] = set()

    @property
    def settings_file(self) -> str:
        """The path of the settings file; empty without one."""
        return "" if self._file is None else self._file.source

    def in_force(self) -> list[InForce]:
        """List every setting with its source."""
        return [_without_secrets(one) for one in in_force(self._sources)]

    def database(self) -> str:
        """Name the database that was opened; empty if none was."""
        if not self._opened_dsns:
            return ""
        if self._embedded:
            return f"the embedded database of {self._data_dir.resolve()}"
        return database_name(*self._opened_dsns)

    def keys(self) -> KeySet:
        """Read the keys of tokens, with those that ``serve`` made under the data directory."""
        return key_set(self.settings.auth, self._made_secret if self._embedded else None)

    def _keys_to_serve(self) -> KeySet:
        """Read the keys of tokens; the embedded default makes its secret under the data directory."""
        return key_set(self.settings.auth, self._secret_to_make if self._embedded else None)

    def _made_secret(self) -> Path:
        place = self._data_dir.resolve() / _MADE_SECRET
        try:
            place.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise DeploymentError(
                f"no key of tokens is set, and there is none at {place}: {NAME_IT}"
            ) from None
        except OSError:
            pass  # said when it is read
        return place

    def _secret_to_make(self) -> Path:
        try:
            data_dir = self._data_dir.resolve()
            make_data_dir(data_dir, account_for(data_dir))
        except (EmbeddedError, OSError) as error:
            raise DeploymentError(str(error)) from None
        return data_dir / _MADE_SECRET

    @contextmanager
    def _services(self) -> Iterator[Services]:
        """Open PostgreSQL and Redis to serve on; embedded ones are made if none are set."""
        given = replace(database_services(self.settings), redis_url=bus_url(self.settings))
        if given.dsn and given.redis_url:
            yield given
            return
        try:
            with embedded(self._data_dir, postgres=not given.dsn, redis=not given.redis_url) as made:
                own = given if given.dsn else in_cell(made, self.settings)
                yield replace(own, redis_url=given.redis_url or made.redis_url)
        except EmbeddedError as error:
            raise DeploymentError(str(error)) from None

    @contextmanager
    def _database(self) -> Iterator[Services]:
        """Open the database; an embedded one must exist already."""
        given = database_services(self.settings)
        if given.dsn:
            self._opened_dsns = given.dsn, given.owner
            yield given
            return
        try:
            with embedded(self._data_dir, redis=False, make=False) as made:
                running_services = in_cell(made, self.settings)
                self._opened_dsns = (running_services.owner,)
                yield running_services
        except EmbeddedError as error:
            raise DeploymentError(str(error)) from None

    def note(self, row: AuditRow) -> None:
        """Append an event to the audit log. Raises DeploymentError, StoreError."""
        with self._database() as at:
            append_now(at.owner, row)

    def _schema(self, at: Services) -> PostgresSchemaAdmin:
        return PostgresSchemaAdmin(
            at.owner, at.dsn, at.jobs, self._chosen_domains, process_account(), embedded=self._embedded
        )

    @contextmanager
    def schema(self) -> Iterator[PostgresSchemaAdmin]:
        """Open the schema."""
        with self._database() as at:
            yield self._schema(at)

    @asynccontextmanager
    async def _administered(self) -> AsyncIterator[tuple[Database, Services]]:
        """Open the database, migrated where it is the embedded one, and tell servers what was done."""
        redis_url = bus_url(self.settings)  # an error in it is raised before anything is changed
        with self._database() as at:
            if self._embedded:
                self._schema(at).migrate(None, down=False)
            async with command_database(at.dsn, at.jobs) as database:
                yield database, at
            if redis_url := redis_url or embedded_redis_url(self._data_dir):
                announce(redis_url, at.dsn, self._advanced_tenants)

    @asynccontextmanager
    async def tenants(self) -> AsyncIterator[PostgresTenants]:
        """Open the tenants."""
        async with self._administered() as (database, _):
            yield TenantsWithKeys(self.settings, database)

    @asynccontextmanager
    async def usage(self) -> AsyncIterator[PostgresUsage]:
        """Open the usage of tenants."""
        async with self._administered() as (database, _):
            yield PostgresUsage(database)

    @asynccontextmanager
    async def tokens(self) -> AsyncIterator[PostgresTenants]:
        """Open what signing a token asks and leaves."""
        with self._database() as at:
            # As the owner: on the embedded default the others are made by the commands that migrate.
            async with command_database(at.owner) as database:
                yield PostgresTenants(database)

    @asynccontextmanager
    async def policies(self) -> AsyncIterator[PostgresPolicies]:
        """Open the policies of tenants."""
        async with self._administered() as (database, _):
            yield PostgresPolicies(database, Domains(self.settings.domains).default_policies)

    @asynccontextmanager
    async def conflicts(self) -> AsyncIterator[ConflictAdmin]:
        """Open the conflicts that wait for a person."""
        async with self._administered() as (database, at):
            yield ConflictAdmin(database, await self._committer(database, at.dsn))

    @asynccontextmanager
    async def quarantine(self) -> AsyncIterator[QuarantineAdmin]:
        """Open the items that were rejected."""
        async with self._administered() as (database, at):
            yield QuarantineAdmin(database, await self._committer(database, at.dsn))

    async def _committer(self, database: Database, dsn: str) -> WorkCommitter:
        sealing = await open_sealing(self.settings, database)
        return WorkCommitter(dsn, self.settings, sealing, self._advanced_tenants.update)

    @asynccontextmanager
    async def jobs(self, *, files: bool) -> AsyncIterator[JobAdmin]:
        """Open the scheduled jobs."""
        if files:
            check_file_storage(self.settings)
        async with self._administered() as (database, at):
            if files:  # a restored database does not list the files that came after the backup
                refuse_restored(at.dsn)
            yield JobAdmin(at, database, self.settings, self._advanced_tenants.update)

    @asynccontextmanager
    async def files(self) -> AsyncIterator[FileVerifier]:
        """Open the files of tenants."""
        check_file_storage(self.settings)
        async with self._administered() as (database, _), file_verifier(self.settings, database) as verifier:
            yield verifier

    @asynccontextmanager
    async def sealing_keys(self) -> AsyncIterator[KeyAdmin]:
        """Open the keys of sealed data."""
        async with self._administered() as (database, _):
            yield KeyAdmin(self.settings, database)

    def doctor(self) -> Doctor:
        """Return what looks at this deployment."""
        return Doctor(self.settings, self._file, self.keys, self.note, self._database)

    @asynccontextmanager
    async def devices(self) -> AsyncIterator[PostgresDevices]:
        """Open the devices."""
        async with self._administered() as (database, _):
            yield PostgresDevices(database)

    @asynccontextmanager
    async def monitor(self, targets: AlertTargets | None) -> AsyncIterator[AlertingMonitor]:
        """Open the monitor."""
        senders = [] if targets is None else named_receivers(self.settings, targets)
        clock = SystemClock()
        async with self._administered() as (database, _):
            yield AlertingMonitor(health_check(self.settings, database, clock), senders, database, clock)

    async def test_alerts(self, targets: AlertTargets) -> list[AlertTest]:
        """Send a test to each receiver."""
        return await send_tests(named_receivers(self.settings, targets))

    @asynccontextmanager
    async def audit(self) -> AsyncIterator[PostgresAudit]:
        """Open the audit log."""
        async with self._administered() as (database, _):
            yield PostgresAudit(database)

    @asynccontextmanager
    async def analytics(self) -> AsyncIterator[tuple[PostgresAnalytics, PostgresVoice, PostgresTelemetry]]:
        """Open the figures of tenants, the log of voice verifications, and telemetry."""
        async with self._administered() as (database, _):
            sealing = await open_sealing(self.settings, database)
            yield PostgresAnalytics(database), PostgresVoice(database, sealing), PostgresTelemetry(database)

    @asynccontextmanager
    async def exports(self) -> AsyncIterator[PostgresExport]:
        """Open the exports."""
        async with self._administered() as (database, _):
            sealing = await open_sealing(self.settings, database)
            yield PostgresExport(database, self.settings.domains, sealing)

    @contextmanager
    def epoch(self) -> Iterator[PostgresEpoch]:
        """Open the epoch."""
        with self._database() as at:
            yield PostgresEpoch(at.owner)

    def serve(self) -> None:
        """Serve until told to stop."""
        chosen = self.settings
        receivers(chosen)  # an error in them is reported once, by this process
        several = chosen.server.workers > 1
        if several and not chosen.server.port:
            raise DeploymentError("server.port: several workers share a port, so that it has to be named")
        # Until the supervisor handles it: SIGHUP would end the start, and the settings were read just now.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        configure(chosen.log)
        with self._services() as running_services:
            dsn = running_services.dsn
            demo_number = None
            if self._embedded:
                self._schema(running_services).migrate(None, down=False)
                demo_number = run_async(ensure_demo_tenant(dsn))
            elif any(one.applied_at is None for one in status(dsn)):
                raise DeploymentError("the schema is not up to date: run `run.py migrate`, then serve again")
            refuse_restored(dsn)
            check_database_roles(running_services)
            # A mistake in the settings is found before the start writes, or says, anything else.
            check_bus(running_services.redis_url, several=several)
            self._keys_to_serve()  # an error in them is reported once, by this process
            run_async(start_sealing(self.settings, dsn, running_services.jobs))
            try:
                maintain(running_services.owner, chosen.idempotency.lifetime_h, chosen.retention.events_d)
            except StoreRetryError as error:  # a dump holds the tables: there are days ahead for a fortnight
                _log.warning("maintenance_failed", reason=type(error).__name__)
            note_start(dsn, self.in_force())
            announced = partial(self._announce, dsn, demo_number) if self._embedded else lambda _: None
            try:
                reload = Reload(self._reading(), running_services, self._read_again, note_reload)
                supervise(chosen, running_services, announced, reload)
            except (ListenError, WorkersFailedError) as error:
                raise DeploymentError(str(error)) from None

    def _reading(self) -> Reading:
        return Reading(self.settings, in_force(self._sources))

    def _read_again(self) -> Reading:
        deployment = self._reopen()
        deployment.keys()
        check_reloaded(deployment.settings)
        return deployment._reading()  # noqa: SLF001  # another one of this class

    def _announce(self, dsn: str, demo_number: int | None, port: int) -> None:
        def sign() -> str:
            key, note = signing_key(self.keys()), partial(append_now, dsn)
            return signed_for_device(key, self.settings, note, DEMO_TENANT, "demo-device", demo_number)

        place = shlex.quote(str(self._data_dir.resolve()))
        program = shlex.join((sys.executable, sys.argv[0]))
        command = f"{program} token --tenant {DEMO_TENANT} --device demo-device --data-dir {place}"
        announce_demo(f"http://{self.settings.server.host}:{port}", sign, command)


def open_deployment(config: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> Deployment:
    """Read the settings: config.toml, the settings file, the environment, the command line; the later wins.

    Raises SettingsError.
    """
    found = layers(config, flags)
    return Deployment(settings(found), found, lambda: open_deployment(config, flags))


def run_worker() -> None:
    """Run one worker; its orders come on standard input."""
    work(sys.stdin.buffer, lambda chosen: Deployment(chosen).keys())


def _without_secrets(one: InForce) -> InForce:
    if one.value and one.key in SECRETS:
        return msgspec.structs.replace(one, value=SECRETS[one.key](one.value))
    return one
