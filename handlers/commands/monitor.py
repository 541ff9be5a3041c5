"""``run.py monitor``: judges the health of tenants. Its exit status is the status that it found."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Iterable
from datetime import UTC
from typing import Any, Final, Literal

import anyio
import click
import msgspec
from click.core import ParameterSource

from engine.operate.monitor.report import Judgement, Report, Status
from engine.operate.ports import HealthMonitor, RefusedError
from engine.operate.rows import AlertTargets
from engine.runtime.ports import StoreError
from handlers.commands.deployment import Deployment, as_json, with_deployment
from handlers.commands.terminal.progress import progress
from handlers.commands.terminal.tables import table
from handlers.operate.admin_health import MOST_HOURS
from handlers.operate.printing import say

#: The exit status of each status.
EXIT_STATUSES: Final[dict[Status, int]] = {"healthy": 0, "degraded": 1, "critical": 2, "unknown": 3}
#: Where a URL is passed on when the process starts again without it on its command line.
_VARIABLES: Final = {
    "--webhook": "TIDEMARK_MONITOR_WEBHOOK",
    "--slack-webhook": "TIDEMARK_MONITOR_SLACK_WEBHOOK",
}
#: The options of a check, which a test of alerts does not make.
_OF_CHECKS: Final = {
    "tenant": "--tenant",
    "hours": "--hours",
    "continuous": "--continuous",
    "interval_s": "--interval",
    "json_": "--json",
}
#: How long a single check tries to send what it found.
_PATIENCE_S: Final = 15.0
#: Where the last exit status of a call is kept, for its end by Ctrl-C.
_LAST: Final = "tidemark.monitor.exit_status"


class MonitorCommand(click.Command):
    """Exits with 3 for every mistake: click's own 2 and 1 would read as critical and degraded."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Parse the call."""
        try:
            return super().make_context(*arguments, **options)
        except click.ClickException as error:
            error.show()
            raise click.exceptions.Exit(EXIT_STATUSES["unknown"]) from None

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        try:
            super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            error.show()
            ctx.exit(EXIT_STATUSES["unknown"])
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(ctx.meta.get(_LAST, EXIT_STATUSES["unknown"]))
        except Exception:
            traceback.print_exc()
            ctx.exit(EXIT_STATUSES["unknown"])


@click.command(
    "monitor",
    cls=MonitorCommand,
    short_help="Judge the health of tenants.",
    epilog="Example: run.py monitor --tenant acme --hours 1",
)
@click.option("--tenant", metavar="T", help="Judge this tenant alone.")
@click.option(
    "--hours",
    type=click.FloatRange(0, MOST_HOURS, min_open=True),
    default=24,
    show_default=True,
    metavar="H",
    help=f"Judge the last H hours, {MOST_HOURS} at most.",
)
@click.option("--continuous", is_flag=True, help="Judge again and again until Ctrl-C.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(1, 86_400),
    default=300,
    show_default=True,
    metavar="S",
    help="Seconds between two checks of --continuous.",
)
@click.option("--webhook", metavar="URL", envvar=_VARIABLES["--webhook"], help="Send alerts to this webhook.")
@click.option(
    "--slack-webhook",
    metavar="URL",
    envvar=_VARIABLES["--slack-webhook"],
    help="Send alerts to this webhook of Slack.",
)
@click.option(
    "--alert-threshold",
    type=click.Choice(["any", "warning", "critical"]),
    help="The mildest alert that is sent; any includes early warnings.  [default: alerts.threshold]",
)
@click.option("--test-alert", is_flag=True, help="Send one alert to see that it arrives, and judge nothing.")
@click.option("--json", "json_", is_flag=True, help="Print JSON; with --continuous one line for each check.")
@with_deployment()
async def monitor(  # noqa: PLR0913  # one for each option
    deployment: Deployment,
    *,
    tenant: str | None,
    hours: float,
    continuous: bool,
    interval_s: float,
    webhook: str | None,
    slack_webhook: str | None,
    alert_threshold: Literal["any", "warning", "critical"] | None,
    test_alert: bool,
    json_: bool,
) -> None:
    """Judge the health of all tenants, together and each by itself.

    The exit status is 0 if all is healthy, 1 if degraded, 2 if critical, and 3 if it is unknown or the check
    could not be made. Thresholds are settings, see [monitor]. Syncs of the last ten seconds may be missing.

    A receiver that is named here is told when something gets bad, gets worse and is over, once each. Those of
    [alerts] are told by servers, every five minutes. --test-alert sends to those named here, or else to those
    of [alerts]; its exit status is 0 if all took it.
    """
    _hide_from_process_list()
    window_s = max(60, round(hours * 3600))
    targets = AlertTargets(webhook, slack_webhook, alert_threshold, window_s)
    context = click.get_current_context()
    _refuse_options_without_effect(context)
    if test_alert:
        context.exit(await _test(deployment, targets))
    told = targets if webhook or slack_webhook else None
    async with deployment.monitor(told) as health:
        sending = asyncio.ensure_future(health.keep_sending()) if continuous and told is not None else None
        try:
            while True:
                judgement = await _checked(health, tenant, window_s, continuous=continuous)
                status: Status = "unknown" if judgement is None else judgement.status
                context.meta[_LAST] = EXIT_STATUSES[status]
                if judgement is not None:
                    _print(judgement, json_=json_, line=continuous)
                if not continuous:
                    break
                await anyio.sleep(interval_s)
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.wait([sending])
        if left := await health.send(_PATIENCE_S):
            say(f"alerts that could not be sent: {left}; the next call like this one tries again", err=True)
    context.exit(EXIT_STATUSES[status])


def _refuse_options_without_effect(context: click.Context) -> None:
    given = {
        name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if context.params["test_alert"] and (given := given & _OF_CHECKS.keys()):
        named = ", ".join(option for name, option in _OF_CHECKS.items() if name in given)
        raise click.UsageError(f"--test-alert judges nothing: leave {named} out.")
    if "interval_s" in given and not context.params["continuous"]:
        raise click.UsageError("--interval belongs to --continuous: give both.")
    if "alert_threshold" in given and not (context.params["webhook"] or context.params["slack_webhook"]):
        raise click.UsageError(
            "--alert-threshold belongs to --webhook or --slack-webhook; for servers set alerts.threshold."
        )


async def _test(deployment: Deployment, targets: AlertTargets) -> int:
    """Send a test to each receiver; return the exit status."""
    tests = await deployment.test_alerts(targets)
    if not tests:
        raise click.ClickException("no receiver: give --webhook or --slack-webhook, or set [alerts]")
    for one in tests:
        say(f"{one.target}: {one.fault or 'sent'}", err=one.fault is not None)
    return EXIT_STATUSES["healthy" if all(one.fault is None for one in tests) else "unknown"]


def _hide_from_process_list() -> None:
    """Start this process again with URLs in its environment, which only its own account can read."""
    arguments = list(sys.orig_argv)
    for option, variable in _VARIABLES.items():
        named = [at for at, argument in enumerate(arguments) if argument.partition("=")[0] == option]
        for at in reversed(named):  # of several the last one counts
            joined = "=" in arguments[at]
            url = arguments[at].partition("=")[2] if joined else arguments[at + 1]
            if at == named[-1]:
                os.environ[variable] = url
            del arguments[at : at + (1 if joined else 2)]
    if arguments != sys.orig_argv:
        os.execv(sys.executable, arguments)  # noqa: S606  # this program again


async def _checked(
    health: HealthMonitor, tenant: str | None, window_s: int, *, continuous: bool
) -> Judgement | None:
    """Check. If the database is away, a continuous monitor says so and goes on: the result is None."""
    try:
        with progress("judging"):
            return await health.check(tenant, window_s)
    except StoreError as error:
        if isinstance(error, RefusedError) or not continuous:
            raise
        say(f"no check could be made: {error}", err=True)
        return None


def _print(judgement: Judgement, *, json_: bool, line: bool) -> None:
    if json_ and line:
        say(msgspec.json.encode(judgement).decode())
    elif json_:
        as_json(judgement)
    else:
        _print_table(judgement)


def _print_table(judgement: Judgement) -> None:
    reports = judgement.reports
    at = reports[0].judged_at.astimezone(UTC)
    say(f"{at:%Y-%m-%dT%H:%M:%SZ}: {judgement.status}")
    table(
        [_row(report) for report in reports],
        (
            "TENANT",
            "STATUS",
            "SCORE",
            "SYNCS",
            "SUCCESS",
            "CONFLICTS",
            "MEAN",
            "P95",
            "FAILED/MIN",
            "ABANDONED",
            "DEVICE HEALTH",
        ),
        spare=("ABANDONED", "FAILED/MIN", "MEAN", "DEVICE HEALTH", "CONFLICTS", "P95"),
    )
    for report in _explained(reports):
        say()
        say(f"{_name(report)}: {report.status}")
        for reason in report.reasons:
            say(f"  {reason}")


def _explained(reports: list[Report]) -> Iterable[Report]:
    """Leave out idle tenants, of which there may be many; the first report is always explained."""
    for index, report in enumerate(reports):
        if report.reasons and (index == 0 or report.status != "unknown" or report.values.syncs):
            yield report


def _row(report: Report) -> tuple[str, ...]:
    values = report.values
    return (
        _name(report),
        report.status,
        _shown(report.score, "{:.0f}"),
        str(values.syncs),
        _shown(values.success_rate, "{:.2%}"),
        _shown(values.conflict_rate, "{:.2%}"),
        _shown(values.sync_duration_ms, "{:.0f} ms"),
        _shown(values.sync_duration_p95_ms, "{:.0f} ms"),
        _shown(values.failed_per_minute, "{:.2f}"),
        _shown(values.upload_abandonment, "{:.1%}"),
        _shown(values.device_health, "{:.0f}"),
    )


def _name(report: Report) -> str:
    return "(all)" if report.tenant is None else report.tenant


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
