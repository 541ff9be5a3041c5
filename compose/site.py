"""One deployment as its settings describe it: what commands open, and ``serve``."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from compose.desk import ConflictDesk, QuarantineDesk
from compose.doctor import examine
from compose.server import run_server
from compose.upload_desk import UploadDesk
from compose.workers import supervise, work
from engine.administration import Finding
from engine.domains import Domains
from engine.ports import StoreRetryError
from engine.settings import Layer, Settings, SettingsError, environment, named_policies, settings
from handlers.auth import KeySet, issue_token
from handlers.commands.serve import DEMO_TENANT, announce_demo
from handlers.commands.site import SiteError
from handlers.keys import key_set, signing_key
from handlers.logging import configure
from handlers.server import ClosedDoorError
from handlers.supervisor import WorkersFailedError
from storage.bus_news import UnusableUrlError, announce
from storage.checkup import bus_findings
from storage.embedded import Services, embedded, embedded_redis_url
from storage.embedded_account import EmbeddedError, account_for, make_data_dir
from storage.epoch import PostgresEpoch
from storage.fleet import PostgresFleet
from storage.migrate import PostgresSchema, migrate, status
from storage.partitions import maintain
from storage.policies import PostgresPolicies
from storage.tenancy import PostgresTenancy

_DEFAULTS: Final = Path(__file__).parent.parent / "config.toml"

_log = structlog.get_logger()


class Site:
    """One deployment (``handlers.commands.site.Site``).

    ``chosen_domains`` are those whose policy the operator's settings name.
    """

    def __init__(self, chosen: Settings, chosen_domains: Collection[str] = ()) -> None:
        self.settings = chosen
        self._chosen_domains = chosen_domains
        self._data_dir = Path(chosen.data.dir)
        self._embedded = not chosen.postgres.dsn
        self._moved_tenants: set[int] = set()

    def keys(self) -> KeySet:
        """Read the keys of tokens; the embedded default makes its secret under the data directory."""
        return key_set(self.settings.auth, self._secret_file if self._embedded else None)

    def _secret_file(self) -> Path:
        try:
            data_dir = self._data_dir.resolve()
            make_data_dir(data_dir, account_for(data_dir))
        except (EmbeddedError, OSError) as error:
            raise SiteError(str(error)) from None
        return data_dir / "auth.secret"

    @contextmanager
    def _services(self, *, redis: bool) -> Iterator[Services]:
        given = Services(self.settings.postgres.dsn, self.settings.redis.url)
        wanted = redis and not given.redis_url
        if given.dsn and not wanted:
            yield given
            return
        try:
            with embedded(self._data_dir, postgres=not given.dsn, redis=wanted) as running_services:
                yield Services(
                    given.dsn or running_services.dsn, given.redis_url or running_services.redis_url
                )
        except EmbeddedError as error:
            raise SiteError(str(error)) from None

    @contextmanager
    def _database(self) -> Iterator[str]:
        with self._services(redis=False) as running_services:
            yield running_services.dsn

    @contextmanager
    def schema(self) -> Iterator[PostgresSchema]:
        """Open the schema."""
        with self._database() as dsn:
            yield PostgresSchema(dsn, self._chosen_domains)

    @contextmanager
    def _administered(self) -> Iterator[str]:
        """Open a database that the embedded default has set up by now, and tell servers what was done."""
        with self._database() as dsn:
            if self._embedded:
                migrate(dsn, chosen_domains=self._chosen_domains)
            yield dsn
            redis_url = self.settings.redis.url or embedded_redis_url(self._data_dir)
            if redis_url:
                announce(redis_url, dsn, self._moved_tenants)

    @contextmanager
    def tenants(self) -> Iterator[PostgresTenancy]:
        """Open the tenants."""
        with self._administered() as dsn:
            yield PostgresTenancy(dsn)

    @contextmanager
    def policies(self) -> Iterator[PostgresPolicies]:
        """Open the policies of tenants."""
        with self._administered() as dsn:
            yield PostgresPolicies(dsn, Domains(self.settings.domains).default_policies)

    @contextmanager
    def conflicts(self) -> Iterator[ConflictDesk]:
        """Open the conflicts that wait for a person."""
        with self._administered() as dsn:
            yield ConflictDesk(dsn, self.settings, self._moved)

    @contextmanager
    def quarantine(self) -> Iterator[QuarantineDesk]:
        """Open the items that were rejected."""
        with self._administered() as dsn:
            yield QuarantineDesk(dsn, self.settings, self._moved)

    @contextmanager
    def upload_jobs(self) -> Iterator[UploadDesk]:
        """Open what is done for uploads on schedule."""
        with self._administered() as dsn:
            self._refuse_restored(dsn)  # of files that are there since the backup nothing is known
            yield UploadDesk(dsn, self.settings, self._moved)

    def _moved(self, tenants: set[int]) -> None:
        """Note of which tenants a command committed changes."""
        self._moved_tenants |= tenants

    def examine(self) -> list[Finding]:
        """Look at all that a server needs."""
        return examine(self.settings, self.keys)

    @contextmanager
    def fleet(self) -> Iterator[PostgresFleet]:
        """Open the devices."""
        with self._administered() as dsn:
            yield PostgresFleet(dsn)

    @contextmanager
    def epoch(self) -> Iterator[PostgresEpoch]:
        """Open the epoch."""
        with self._database() as dsn:
            yield PostgresEpoch(dsn)

    def serve(self) -> None:
        """Serve until told to stop."""
        chosen = self.settings
        several = chosen.server.workers > 1
        if several and not chosen.server.port:
            raise SiteError("server.port: several workers share a port, so that it has to be named")
        configure(chosen.log)
        with self._services(redis=True) as running_services:
            dsn = running_services.dsn
            if self._embedded:
                migrate(dsn, chosen_domains=self._chosen_domains)
                PostgresTenancy(dsn).ensure(DEMO_TENANT)
            elif any(one.applied_at is None for one in status(dsn)):
                raise SiteError("the schema is not up to date: run `run.py migrate`, then serve again")
            self._refuse_restored(dsn)
            try:
                maintain(dsn, chosen.idempotency.lifetime_h)
            except StoreRetryError as error:  # a dump holds the tables: there are days ahead for a fortnight
                _log.warning("maintenance_failed", reason=type(error).__name__)
            announced = self._announce if self._embedded else lambda _: None
            try:
                if several:
                    for finding in bus_findings(running_services.redis_url, alone=False):
                        if finding.level == "fault":
                            raise SiteError(
                                f"several workers meet in Redis, which is away ({finding.found}):"
                                " start it, or serve with one worker"
                            )
                    self.keys()  # what is wrong with them is said once, and by this process
                    supervise(chosen, running_services, lambda: announced(chosen.server.port))
                else:
                    run_server(chosen, running_services, self.keys(), announced)
            except UnusableUrlError as error:
                raise SiteError(f"redis.url: {error}") from None
            except (ClosedDoorError, WorkersFailedError) as error:
                raise SiteError(str(error)) from None

    def _refuse_restored(self, dsn: str) -> None:
        if PostgresEpoch(dsn).restored():
            raise SiteError("this database was restored: run `run.py epoch renew`, then try again")

    def _announce(self, port: int) -> None:
        auth = self.settings.auth
        token = issue_token(
            signing_key(self.keys()),
            audience=auth.audience,
            ttl_s=auth.token_ttl_s,
            tenant=DEMO_TENANT,
            device_id="demo-device",
        )
        announce_demo(f"http://{self.settings.server.host}:{port}", token)


def open_site(config: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> Site:
    """Read the settings: config.toml, ``config``, the environment, the command line; the later wins.

    Raises SettingsError.
    """
    files = [_DEFAULTS] if config is None else [_DEFAULTS, config]
    layers = [*map(_read_layer, files), environment(os.environ), Layer("the command line", flags)]
    return Site(settings(layers), named_policies(layers))


def run_worker() -> None:
    """Be one worker of a supervisor, which says on standard input what that is."""
    work(sys.stdin.buffer, lambda chosen: Site(chosen).keys())


def _read_layer(path: Path) -> Layer:
    try:
        return Layer(str(path) if path != _DEFAULTS else path.name, tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
