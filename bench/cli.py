"""The command ``run.py bench``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import click

from bench.abuse.attacks import ATTACKS
from bench.abuse.scenario import abuse
from bench.conflicts.scenario import conflicts
from bench.faults.scenario import faults
from bench.harness.connections import most_connections
from bench.harness.environment import BenchError, read_settings
from bench.harness.progress import over, part_begins
from bench.harness.sealed import seal_from_now
from bench.harness.stage import Options
from bench.live.scenario import CONNECTIONS, connections, live
from bench.overload.scenario import overload
from bench.peers.installation import check_node
from bench.peers.scenario import peers
from bench.peers.stages import PEERS
from bench.report.html import html_of
from bench.report.results import OPEN_CONNECTIONS, Figure, Report
from bench.report.targets import targets_of
from bench.report.text import text_of, text_of_targets
from bench.report.written import as_json, origin_of
from bench.scenarios.aggregation import aggregation
from bench.scenarios.behind_nginx import behind_nginx
from bench.scenarios.cleanup import cleanup
from bench.scenarios.comparison import compare
from bench.scenarios.concurrent import concurrent, high_volume
from bench.scenarios.limits import limits
from bench.scenarios.outages import outages
from bench.scenarios.scaling import scaling
from bench.scenarios.soak import soak
from bench.scenarios.suite import SUITES, Part, Scenario, Suite, expected_s, options_of
from bench.uploads.scenario import uploads
from engine.runtime.ports import StoreError
from engine.runtime.settings import SettingsError
from storage.embedded.servers import EmbeddedError

SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.__name__: scenario
    for scenario in (
        *(concurrent, limits, overload, faults, scaling, live, connections, uploads, abuse, conflicts),
        *(high_volume, outages, behind_nginx, cleanup, aggregation, soak, peers),
    )
}
#: What a server that runs already can be measured with; the others start one, and do harm to its services.
AT_URL: Final = ("concurrent", "overload", "abuse", "high_volume")
#: How many devices a scenario has unless told otherwise.
_CONNECTIONS: Final = {"connections": CONNECTIONS, "behind_nginx": 500}


def _worker_count(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if value == "auto":
        return len(os.sched_getaffinity(0))
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise click.BadParameter("a number from 1, or auto for one per core.")


@click.command(
    epilog="""\b
Examples:
  run.py bench --quick
  run.py bench --scenario all --duration 300 --json all.json --html all.html
  run.py bench --scenario concurrent --connections 1000 --rate 1200 --profile flames.svg --html report.html
  run.py bench --scenario soak --duration 600
  run.py bench --scenario faults --rounds 20 --cells 2
  run.py bench --compare v1""",
)
@click.option(
    "--scenario",
    type=click.Choice([*SCENARIOS, "all"]),
    default="concurrent",
    show_default=True,
    help="What to measure.",
)
@click.option(
    "--connections", "asked_connections", type=click.IntRange(1, 60_000), metavar="N",
    help="Devices, each with a socket: 1000, of connections 15000, of behind_nginx 500; of live those that"
    " subscribe.",
)  # fmt: skip
@click.option(
    "--rate", "rate_per_s", type=click.FloatRange(0, min_open=True), default=1200.0, show_default=True,
    metavar="R", help="Syncs a second of concurrent, scaling and live, over all connections.",
)  # fmt: skip
@click.option(
    "--workers", callback=_worker_count, metavar="N|auto",
    help="Processes of a server: 1 of concurrent and peers, 2 of live and connections; auto is one per core.",
)  # fmt: skip
@click.option(
    "--duration", "duration_s", type=click.FloatRange(1), metavar="S",
    help="Seconds that are measured of each run: 60 of concurrent (of all, too), 3600 of soak, 10 of live,"
    " connections and of syncs beside uploads, 1.5 of each phase of abuse, else 5. Of outages those that the"
    " database is away, of behind_nginx those from stop to start: 10.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1), metavar="N",
    help="How often each run is repeated; medians count. 1 of concurrent, 3 with --fill, of limits,"
    " scaling, uploads, behind_nginx and overload's quiet tenant. 50 of faults, each with one fault; 20 of"
    " outages, each with every kind.",
)  # fmt: skip
@click.option(
    "--seed", type=int, default=1, show_default=True, metavar="N",
    help="Which faults come in faults, and what devices send; the order of outages.",
)  # fmt: skip
@click.option(
    "--cells", type=click.IntRange(1, 8), default=1, show_default=True, metavar="N",
    help="faults in so many cells of one database at once: cell_a, cell_b and on, each with its own server.",
)  # fmt: skip
@click.option(
    "--tenants", type=click.IntRange(1, 1000), default=20, show_default=True, metavar="N",
    help="Tenants that the devices are spread over.",
)  # fmt: skip
@click.option(
    "--attack", "attacks", type=click.Choice(list(ATTACKS)), multiple=True, metavar="NAME",
    help=f"An attack of abuse, once for each of several, of {', '.join(ATTACKS)}.  [default: all]",
)  # fmt: skip
@click.option(
    "--peer", "peers", type=click.Choice(list(PEERS)), multiple=True, metavar="NAME",
    help=f"A server of peers, once for each of several, of {', '.join(PEERS)}.  [default: all]",
)  # fmt: skip
@click.option(
    "--before", metavar="COMMIT|FILE",
    help="abuse beside a server of that commit, or beside what a report of --json has of one.",
)  # fmt: skip
@click.option(
    "--compare", metavar="COMMIT|FILE",
    help="In place of a scenario, this version beside that commit, by turns, or beside what a report of"
    " --json has of an earlier comparison: throughput, CPU of a sync and p95. 10 rounds.",
)  # fmt: skip
@click.option(
    "--margin", type=click.FloatRange(0, 1), default=0.03, show_default=True, metavar="PART",
    help="The part by which --compare lets this version cost more.",
)  # fmt: skip
@click.option(
    "--sealed", is_flag=True,
    help="Seal every domain: servers of this version encrypt what they store, audits have the key.",
)  # fmt: skip
@click.option("--through-nginx", is_flag=True, help="abuse with nginx and the site of run.py nginx in front.")
@click.option("--saturate", is_flag=True, help="concurrent as a closed loop: as many syncs as are taken.")
@click.option(
    "--fill", "fill_records", type=click.IntRange(0), default=0, metavar="N",
    help="concurrent by turns on an empty database and on one with N records; rows of each kind that cleanup"
    " deletes, 1000000.",
)  # fmt: skip
@click.option(
    "--url", metavar="U",
    help="A server that runs with the same settings, in place of one that is started for this.",
)  # fmt: skip
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="F",
    help="Write the report as JSON; faults puts its history beside it, as F.history.jsonl.",
)  # fmt: skip
@click.option(
    "--quick", is_flag=True,
    help="In place of a scenario, the targets of all in less than three minutes, for a laptop.",
)  # fmt: skip
@click.option(
    "--profile", "flame_graph", type=click.Path(path_type=Path), metavar="F",
    help="Draw a flame graph of the server in concurrent (py-spy, SVG), which --html embeds.",
)  # fmt: skip
@click.option("--html", "html_file", type=click.Path(path_type=Path), metavar="F", help="Write it as a page.")
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE",
    help="TOML file of settings that differ from config.toml.",
)  # fmt: skip
@click.option("--data-dir", metavar="DIR", help="Where embedded services are kept while this runs.")
def bench(
    *,
    scenario: str,
    asked_connections: int | None,
    json_file: Path | None,
    html_file: Path | None,
    config: Path | None,
    data_dir: str | None,
    sealed: bool,
    quick: bool,
    **asked: Any,
) -> None:
    """Measure a server under load and audit what it stored.

    all judges every target, in 27 minutes with --duration 300; --quick does so in three. Their exit status is
    1 when a target is missed.

    Without --url it starts its own, on embedded services of its own, with the rate limits lifted. The exit
    status is 1 when a bar is missed or the audit finds a fault.

    uploads has 100 devices upload a file each at once, compares that with two other servers, and then
    uploads beside syncs: about three minutes. peers sends the same pushes to Django Channels with Daphne and
    to Parse Server. Both install servers of others, the first time, into a directory under data.dir, and need
    Node.js 20.19 or later with npm for it.
    """
    began_s = perf_counter()
    if sealed and asked["url"]:
        raise click.UsageError("--sealed starts a server of its own: leave --url out")
    if sealed:
        seal_from_now()
    suite: Suite | None = "quick" if quick else "all" if scenario == "all" else None
    try:
        history = json_file and json_file.with_name(f"{json_file.name}.history.jsonl")
        options = Options(
            settings=read_settings(config, data_dir, of_system=bool(asked["url"])),
            config=config,
            history=history,
            suite=suite or "",
            connections=asked_connections or _CONNECTIONS.get(scenario, 1000),
            **asked,
        )
        parts = _parts(suite, scenario, options)
        _check(parts, options)
        reports = _reports(parts, options, suite)
    except (BenchError, EmbeddedError, SettingsError, StoreError) as error:
        raise click.ClickException(str(error)) from None
    except asyncio.CancelledError:
        raise click.Abort from None
    targets = targets_of(reports, every=suite is not None and options.url is None)
    if options.changed_load:
        targets = []
    passed = all(report.passed for report in reports)
    if suite is not None:
        passed = all(one.met for one in targets) and not any(report.faulty for report in reports)
    for report in reports:
        click.echo(text_of(report))
    if targets:
        click.echo(text_of_targets(targets))
    origin = origin_of(sys.argv[2:], options.settings, began_s)
    if json_file is not None:
        json_file.write_bytes(as_json(reports, targets, origin, passed=passed))
    if html_file is not None:
        html_file.write_text(html_of(reports, targets, origin), "utf-8")
    sys.exit(0 if passed else 1)


def _parts(suite: Suite | None, scenario: str, options: Options) -> Sequence[Part]:
    """Choose what is to be run."""
    if options.compare is not None:
        return [Part(compare, 0)]
    if suite is None:
        return [Part(SCENARIOS[scenario], 0)]
    return [part for part in SUITES[suite] if not options.url or part.scenario.__name__ in AT_URL]


def _check(parts: Sequence[Part], options: Options) -> None:
    """Refuse what does not go together. Raises UsageError, BenchError."""
    names = {part.scenario.__name__ for part in parts}
    if options.workers and options.url:
        raise click.UsageError("a server at --url has its workers already: leave --workers out")
    if options.url and options.through_nginx:
        raise click.UsageError("--through-nginx starts a server of its own: leave --url out")
    if options.fill_records and (options.saturate or options.url):
        raise click.UsageError(
            "--fill compares latencies on databases of its own: leave --saturate and --url out"
        )
    if options.url and not names <= {*AT_URL}:
        raise click.UsageError(f"only {', '.join(AT_URL)} measure a server that runs: leave --url out")
    if options.flame_graph and (options.url or "concurrent" not in names):
        raise click.UsageError("--profile is for concurrent, on a server that this starts")
    if options.cells > 1 and names != {"faults"}:
        raise click.UsageError("only faults runs in several cells: leave --cells out")
    if options.cells > 1 and options.settings.postgres.schema:
        raise click.UsageError(
            "--cells makes cells of its own: leave postgres.schema empty, or leave --cells out"
        )
    if options.suite and options.changed_load:
        raise click.UsageError(
            f"targets are those of a load that is fixed: leave {' and '.join(options.changed_load)} out"
        )
    if "uploads" in names and options.suite != "quick":
        check_node()
    if "peers" in names and "parse" in (options.peers or PEERS):
        check_node()


def _reports(parts: Sequence[Part], options: Options, suite: Suite | None) -> list[Report]:
    """Run the scenarios. An interrupted suite keeps what it has; its other scenarios count as failed."""
    reports: list[Report] = []
    try:
        reports.extend(_report(place, parts, options, suite) for place in range(len(parts)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        if not reports:
            raise
        left = [part.scenario.__name__ for part in parts[len(reports) :]]
        reports += [Report(scenario=name, work="it was interrupted", failed=True) for name in left]
    return reports


def _report(place: int, parts: Sequence[Part], options: Options, suite: Suite | None) -> Report:
    """Run one scenario. One of a suite that cannot go on has a report that says why."""
    part = parts[place]
    if suite is None:
        return _with_connections(asyncio.run(_interruptible(part.scenario(options))))
    name = part.scenario.__name__
    times_s = [expected_s(one, options, suite) for one in parts[place:]]
    part_begins(name, place + 1, len(parts), times_s[0], sum(times_s))
    try:
        report = asyncio.run(_interruptible(part.scenario(options_of(part, options, suite))))
    except Exception as error:  # the figures of the other scenarios are not to be lost
        if not isinstance(error, (BenchError, EmbeddedError, StoreError)):
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        report = Report(scenario=name, work="it could not go on", remarks=[reason], failed=True)
    finally:
        over()
    return _with_connections(report)


def _with_connections(report: Report) -> Report:
    most = most_connections()
    if most:
        report.figures.append(Figure(OPEN_CONNECTIONS, most, "open"))
    return report


async def _interruptible(scenario: Awaitable[Report]) -> Report:
    """Have SIGTERM end the servers too, as an interrupt from the keyboard does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await scenario
