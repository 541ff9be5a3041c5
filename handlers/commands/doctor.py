"""``run.py doctor``: checks everything that a server needs."""

from __future__ import annotations

import click

from engine.operate.rows import CheckResult
from handlers.commands.deployment import Deployment, as_json, with_deployment
from handlers.commands.terminal.progress import progress
from handlers.commands.terminal.tables import table


@click.command(
    "doctor",
    short_help="Check settings, services and this machine.",
    epilog="Example: run.py doctor --json",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
def doctor(deployment: Deployment, *, json_: bool) -> None:
    """Check settings, database, Redis, clock and this machine's limits; each line says what to do.

    The exit status is 1 if anything is a fault, and 0 otherwise, warnings or none.
    """
    with progress("checking"):
        findings = deployment.examine()
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


def _said(one: CheckResult) -> str:
    return f"{one.found}\nto do: {one.remedy}" if one.remedy else one.found
