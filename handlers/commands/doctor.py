"""``run.py doctor`` and ``run.py verify``: check what a server needs, and that its schema is whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import click

from engine.operate.checklist import DeviceAddress, PointState
from engine.operate.rows import CheckResult
from handlers.commands.deployment import Deployment, as_json, with_deployment
from handlers.commands.terminal.progress import progress
from handlers.commands.terminal.tables import table

#: The port of each scheme, and whether it is encrypted.
_SCHEMES: Final = {"wss": (443, True), "https": (443, True), "ws": (80, False), "http": (80, False)}


def _address(_: click.Context, __: click.Parameter, url: str | None) -> DeviceAddress | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme not in _SCHEMES or not host:
        raise click.BadParameter("an address such as wss://sync.example.org is wanted.")
    usual, encrypted = _SCHEMES[scheme]
    return DeviceAddress(encrypted, host, port or usual, parts.path.rstrip("/"))


@click.command(
    "doctor",
    short_help="Check settings, services and this machine.",
    epilog="""\b
Examples:
  run.py doctor --json
  run.py doctor --deployment
  run.py doctor --deployment --url wss://sync.example.org --tenant acme""",
)
@click.option(
    "--deployment",
    "deployed",
    is_flag=True,
    help="Go through the checklist for a deployment, 15 points; sends each receiver of alerts a test.",
)
@click.option(
    "--url",
    "at",
    metavar="URL",
    callback=_address,
    help="The address of devices: look at its certificate, and open a WebSocket there.",
)
@click.option(
    "--ca",
    type=click.Path(path_type=str, exists=True, dir_okay=False),
    metavar="FILE",
    help="The authority that signed the certificate of the URL.  [default: those of this machine]",
)
@click.option(
    "--tenant",
    metavar="T",
    help="Open it to its end, as the device `doctor` of this tenant, which stays listed.",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
def doctor(
    deployment: Deployment,
    *,
    deployed: bool,
    at: DeviceAddress | None,
    ca: str | None,
    tenant: str | None,
    json_: bool,
) -> None:
    """Check settings, database, Redis, clock and this machine's limits; each line says what to do.

    The exit status is 1 if anything is a fault, and 0 otherwise, warnings or none.
    """
    if (at or tenant or ca) and not deployed:
        raise click.UsageError("--url, --ca and --tenant are for --deployment")
    if (tenant or ca) and not at:
        raise click.UsageError("--ca and --tenant need --url, the address of devices")
    if deployed:
        if at is not None:
            at = at._replace(authority=ca)
        with progress("checking"):
            points = deployment.doctor().go_through_checklist(at, tenant)
        _print_points(points, json_=json_)
    else:
        with progress("checking"):
            findings = deployment.doctor().examine()
        _print(findings, json_=json_)


@click.command(
    "verify",
    short_help="Check that the schema is whole, and used as it should be.",
    epilog="""\b
Examples:
  run.py verify
  run.py verify --json""",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
def verify(deployment: Deployment, *, json_: bool) -> None:
    """Check indexes, constraints, triggers, partitions, plans and policies; each line says what to do.

    For after a migration, a restore or an upgrade. Nothing is changed: statements are explained and not run.
    The exit status is 1 if anything is a fault, and 0 otherwise, warnings or none.
    """
    with progress("verifying"):
        findings = deployment.doctor().verify()
    _print(findings, json_=json_)


def _print(findings: Sequence[CheckResult], *, json_: bool) -> None:
    """Print findings. Raises SystemExit if one is a fault."""
    if json_:
        as_json(findings)
    else:
        table(
            [(one.level, one.subject, _said(one)) for one in findings],
            ("LEVEL", "WHAT", "FOUND, AND WHAT TO DO"),
            wrapped=True,
        )
    if any(one.level == "fault" for one in findings):
        raise SystemExit(1)


def _print_points(points: Sequence[PointState], *, json_: bool) -> None:
    """Print the points of the checklist. Raises SystemExit if one has a fault."""
    if json_:
        as_json(points)
    else:
        table(
            [(str(one.point), one.state, one.name, _said(one)) for one in points],
            ("#", "STATE", "POINT", "FOUND, AND WHAT TO DO"),
            wrapped=True,
        )
    if any(one.state == "fault" for one in points):
        raise SystemExit(1)


def _said(one: CheckResult | PointState) -> str:
    return f"{one.found}\nto do: {one.remedy}" if one.remedy else one.found
