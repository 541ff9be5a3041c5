"""The checklist for a deployment: 15 points, and what the checks of doctor say of each.

docs/checklist.md is made of this table. A check belongs to one point, by its subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final, NamedTuple, Protocol

import msgspec

from engine.operate.rows import CheckLevel, CheckResult


class Point(NamedTuple):
    """One point of the checklist.

    Attributes:
        name: What it is about.
        wanted: What is wanted, and why.
        looked: How it is checked.
        subjects: The subjects of its checks.
        without: Why nothing may have been checked, and what to do then.
    """

    name: str
    wanted: str
    looked: str
    subjects: tuple[str, ...]
    without: tuple[str, str]


_NO_DATABASE: Final = ("the database could not be asked", "mend what point 1 says first")
_NO_SCHEMA: Final = ("there is no schema of this version to look at", "mend what points 1 and 7 say first")
_NO_URL: Final = ("no address of devices was given", "give it: --url wss://sync.example.org")

CHECKLIST: Final = (
    Point(
        "PostgreSQL",
        "14.2 or later, the primary, encoded in UTF8. PostGIS is not needed, nor any other extension: places"
        " are part of the JSON of records, and nothing is looked up by place",
        "asks the database of `postgres.dsn`",
        ("database",),
        _NO_DATABASE,
    ),
    Point(
        "Redis",
        "Redis 6 or later, whose users have rights of their own, or Valkey. One process works without;"
        " several need it",
        "asks each node of `redis.url` for its version, and times an answer",
        ("redis",),
        ("redis.url could not be read", "mend what is said of it"),
    ),
    Point(
        "Durability",
        "`fsync`, `full_page_writes` and `synchronous_commit` on: else what was acknowledged may be lost."
        " Where backups are made, the WAL is archived too: else a restore loses what came after the last one",
        "reads the settings of PostgreSQL, on Citus of each node, and `pg_stat_archiver`",
        ("durability", "citus", "archive"),
        _NO_DATABASE,
    ),
    Point(
        "Roles and rights",
        "an owner, a role of serving and a role of jobs, so that row-level security holds",
        "asks as each role what it may do, and whether it could pass a policy by",
        ("rights", "access", "roles", "row security", "tables"),
        _NO_DATABASE,
    ),
    Point(
        "Pooling",
        "`max_connections` above what workers, jobs and others open together. A pooler in between is in"
        " `pool_mode = transaction` or `session`",
        "compares the settings with PostgreSQL's, and looks whether a second client gets the first one's"
        " connection",
        ("connections", "pooler"),
        _NO_DATABASE,
    ),
    Point(
        "Indexes",
        "valid, as migrations make them, and used by the statements of serving",
        "as [`run.py verify`](#verify) does",
        ("indexes", "plans"),
        _NO_SCHEMA,
    ),
    Point(
        "Migrations",
        "all applied, of this cluster's epoch, and days ahead have their partitions",
        "compares the schema with the migrations of this version",
        ("schema", "epoch", "partitions", "constraints", "triggers"),
        _NO_DATABASE,
    ),
    Point(
        "Secrets",
        "settings that can be used, keys that are strong enough, files of secrets closed to other accounts",
        "reads the settings, the files that they name and their modes",
        (
            *("settings", "environment", "secrets", "keys", "master key", "sealing"),
            *("uploads.tenant_quotas", "monitor.tenants"),
        ),
        ("nothing was checked", "run `run.py settings`"),
    ),
    Point(
        "Certificate",
        "of the host's name, with its chain, and valid for two weeks more at least: else devices lose"
        " their server one night",
        "opens TLS at `--url`, with the authorities of this host, or that of `--ca`",
        ("certificate",),
        _NO_URL,
    ),
    Point(
        "WebSockets",
        "every balancer on the way passes the upgrade on",
        "makes a handshake at `--url`; with `--tenant` to its end, as the device `doctor` of that tenant,"
        " if the certificate is trusted, or without TLS on this host",
        ("websocket",),
        _NO_URL,
    ),
    Point(
        "Clocks",
        "of this host, of PostgreSQL and of Redis less than a second apart: tokens expire by them, and"
        " `most_recent_wins` compares times of different hosts",
        "asks each for its time",
        ("clock", "clock of redis"),
        _NO_DATABASE,
    ),
    Point(
        "Open files and ports",
        "10,000 connections for each worker, and ports that nobody else holds",
        "reads the limit of this process, which is that of `serve` if the same account starts both, and binds"
        " the ports",
        ("open files", "sharing", "port"),
        ("nothing was checked", "run it on the host of the server"),
    ),
    Point(
        "Disk",
        "10 GiB free for the data directory, and room for files",
        "looks at the disk of `data.dir` and at where files are kept",
        ("disk", "uploads"),
        ("nothing was checked", "run it on the host of the server"),
    ),
    Point(
        "Alerts",
        "each receiver of `[alerts]` takes a message",
        "sends each a test, whose message says that nothing is wrong",
        ("alerts", "alert test"),
        ("nothing was sent", "mend what is said of [alerts] first"),
    ),
    Point(
        "Backup",
        "a backup ended well not long ago: 8 days with an archive of the WAL, 26 hours without",
        "looks at the time of the file `last_backup` in `data.dir`, which the last step of a backup touches",
        ("backup",),
        _NO_DATABASE,
    ),
)

_WORST: Final[tuple[CheckLevel, ...]] = ("fault", "warning", "not checked", "ok")


class PointState(msgspec.Struct, frozen=True):
    """What the checks say of a point.

    Attributes:
        point: Its place in the checklist, from 1 on.
        name: What it is about.
        state: The worst of its checks.
        found: What they found, of those that are as bad as that.
        remedy: What to do; empty if all is right.
        checks: All of its checks.
    """

    point: int
    name: str
    state: CheckLevel
    found: str
    remedy: str
    checks: list[CheckResult]


class DeviceAddress(NamedTuple):
    """The address of devices, such as ``wss://sync.example.org``.

    Attributes:
        encrypted: Whether TLS is spoken there.
        host: Its name or address.
        port: Its port.
        path: A prefix of paths, without a slash at its end.
        authority: The file of the authority that devices trust; None for those of this host.
    """

    encrypted: bool
    host: str
    port: int
    path: str
    authority: str | None = None

    @property
    def url(self) -> str:
        """The address as HTTP has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.encrypted else ''}://{host}:{self.port}{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, so that nobody else is on the way."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False


class Doctor(Protocol):
    """Looks at a deployment. What is wrong is a finding, and hides no other."""

    def examine(self) -> list[CheckResult]:
        """Check everything that a server needs."""

    def go_through_checklist(self, at: DeviceAddress | None, tenant: str | None) -> list[PointState]:
        """Go through the checklist for a deployment, and send each receiver of alerts a test.

        Args:
            at: The address of devices.
            tenant: Whose device ``doctor`` makes a handshake there to its end.
        """

    def verify(self) -> list[CheckResult]:
        """Check that the schema, its policies and the plans of statements are as this version needs them.

        Raises:
            StoreError: The database is away.
        """


def gone_through(findings: Sequence[CheckResult]) -> list[PointState]:
    """Return the state of each point, by the findings of all checks."""
    return [
        _state(number, point, [one for one in findings if one.subject in point.subjects])
        for number, point in enumerate(CHECKLIST, 1)
    ]


def _state(number: int, point: Point, checks: list[CheckResult]) -> PointState:
    state: CheckLevel = min((one.level for one in checks), key=_WORST.index, default="not checked")
    if not checks:
        return PointState(number, point.name, state, *point.without, checks)
    worst = [one for one in checks if one.level == state]
    found = "; ".join(one.found for one in worst)
    remedies = dict.fromkeys(one.remedy for one in worst if one.remedy)
    return PointState(number, point.name, state, found, "; ".join(remedies), checks)
