"""What becomes of devices while the database is away, and once it is back: ``python -m bench.tools.outages``.

Several deployments side by side, each with a PostgreSQL of its own on TCP, of one and of two workers, idle
and under load, go through outages of 1, 5, 15 and 60 seconds and restarts. What is judged:

- no process ends, no open socket is closed, and everything acknowledged is there once;
- within 2 s of the database's return a device that was never seen is welcomed, and its sync is answered;
- a socket that was open all the time is answered at its next try;
- a device that follows the guide is back within 2 s of what it waits by its own backoff;
- a server whose first host in ``postgres.dsn`` is dead, refusing or silent, is ready within 10 s.

Each site's outages come in a random order. All waits are on this machine, whose processors the sites share.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import click
from psycopg2.extensions import make_dsn

from bench.harness.child import progress
from bench.harness.environment import BenchError, fresh_on_tcp, read_settings
from bench.harness.product import product
from bench.report.tables import table
from bench.tools.outages_site import RESTART, Plan, Result, Seen, site
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings, SettingsError
from storage.embedded.servers import EmbeddedError

OUTAGES: Final = ("1", "5", "15", "60", RESTART)
RETURN_S: Final = 2.0
READY_S: Final = 10.0
_HEADING: Final = (
    "deployment", "outage", "times", "welcomed s", "synced s", "tries of open", "answered s",
    "guided back s", "of own wait s", "beyond it s", "verdict",
)  # fmt: skip


def plans(outages: Sequence[str], times: int, parts: int, seed: int) -> list[Plan]:
    """Plan the outages of each site: ``parts`` sites of each kind of deployment share the times."""
    found: list[Plan] = []
    for workers_count in (1, 2):
        for loaded in (False, True):
            for part in range(parts):
                own = times // parts + (part < times % parts)
                every = [outage for outage in outages for _ in range(own)]
                found.append(Plan(workers_count, loaded, every, seed + len(found)))
    return [plan for plan in found if plan.outages]


async def _outages(chosen: Settings, config: Path | None, planned: Sequence[Plan]) -> list[Result]:
    async with AsyncExitStack() as stack:
        sites = []
        for plan in planned:
            progress(f"{plan.name}: starts")
            sites.append(await stack.enter_async_context(site(plan, chosen, config)))
        return list(await asyncio.gather(*(one.run() for one in sites)))


async def _ready_s(chosen: Settings, config: Path | None, count: int, *, silent: bool) -> float:
    """Start a server whose first host is dead. Returns the seconds until each worker is ready."""
    with fresh_on_tcp(chosen) as (environment, postgres), socket.create_server(("127.0.0.1", 0)) as dead:
        port = dead.getsockname()[1]
        if not silent:
            dead.close()
        ports = f"{port},{postgres.port}"
        dsn = make_dsn(environment.database("product"), host="127.0.0.1,127.0.0.1", port=ports)
        began_s = time.monotonic()
        async with product(environment, dsn, secrets.token_urlsafe(48), config, count) as server:
            await server.ready()
            return time.monotonic() - began_s


def verdict(seen: Sequence[Seen]) -> str:
    """Judge the outages of one kind."""
    missed = []
    if max(one.welcomed_s for one in seen) > RETURN_S:
        missed.append("welcomed late")
    if max(one.synced_s for one in seen) > RETURN_S:
        missed.append("synced late")
    if max(one.tries for one in seen) > 1:
        missed.append("asked again")
    if max(one.beyond_s for one in seen) > RETURN_S:
        missed.append("back late")
    return ", ".join(missed) or "ok"


def _rows(results: Sequence[Result], outages: Sequence[str]) -> Iterator[Sequence[str]]:
    for name in dict.fromkeys(result.plan.name for result in results):
        for outage in outages:
            seen = [
                one
                for result in results
                if result.plan.name == name
                for one in result.seen
                if one.outage == outage
            ]
            if not seen:
                continue
            slowest = max(seen, key=lambda one: one.back_s)
            yield (
                name,
                outage if outage == RESTART else f"{outage} s",
                str(len(seen)),
                _spread([one.welcomed_s for one in seen]),
                _spread([one.synced_s for one in seen]),
                str(max(one.tries for one in seen)),
                _spread([one.answered_s for one in seen]),
                _spread([one.back_s for one in seen]),
                f"{slowest.own_wait_s:.2f}",
                f"{max(one.beyond_s for one in seen):.2f}",
                verdict(seen),
            )


def _spread(found_s: list[float]) -> str:
    return f"{statistics.median(found_s):.2f} ≤ {max(found_s):.2f}"


@click.command(
    help=__doc__,
    epilog="Example: python -m bench.tools.outages --times 2 --outage 1 --outage restart",
)
@click.option(
    "--outage", "outages", multiple=True, default=OUTAGES, show_default=True, metavar="S|restart",
    help="Seconds to be away for, or a restart; may be repeated.",
)  # fmt: skip
@click.option(
    "--times", type=click.IntRange(0), default=20, show_default=True,
    help="How often each kind of outage comes; 0 for none.",
)  # fmt: skip
@click.option(
    "--parts", type=click.IntRange(1), default=2, show_default=True,
    help="Sites of each kind of deployment, which share the times: more take less time and more memory.",
)  # fmt: skip
@click.option("--starts", default=3, show_default=True, help="How often a first host is dead; 0 for never.")
@click.option("--seed", default=1, show_default=True, help="In which order outages come, and when.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file of settings that differ.")
@click.option("--data-dir", metavar="DIR", help="Where the servers' files are kept while this runs.")
def main(
    outages: Sequence[str],
    times: int,
    parts: int,
    starts: int,
    seed: int,
    config: Path | None,
    data_dir: str | None,
) -> None:
    """Measure, print a table, and exit with 1 if a bar is missed."""
    for outage in outages:
        if outage != RESTART and not outage.replace(".", "", 1).isdecimal():
            raise click.BadParameter(f"{outage} is neither a number of seconds nor {RESTART}.")
    try:
        chosen = read_settings(config, data_dir)
        began_s = time.monotonic()
        ready_s = {
            (count, silent): [
                asyncio.run(_ready_s(chosen, config, count, silent=silent)) for _ in range(starts)
            ]
            for count in (1, 2)
            for silent in (False, True)
        }
        results = asyncio.run(_outages(chosen, config, plans(outages, times, parts, seed)))
    except (BenchError, EmbeddedError, SettingsError, StoreError) as error:
        raise click.ClickException(str(error)) from None
    rows = list(_rows(results, outages))
    for line in table([_HEADING, *rows]):
        click.echo(line)
    passed = all(row[-1] == "ok" for row in rows)
    if starts:
        first = []
        for (count, silent), found_s in ready_s.items():
            in_time = max(found_s) <= READY_S
            passed = passed and in_time
            dead = "is silent" if silent else "refuses"
            first.append((str(count), dead, str(starts), _spread(found_s), "ok" if in_time else "late"))
        click.echo()
        for line in table([("workers", "first host", "times", "ready s", "verdict"), *first]):
            click.echo(line)
    wrong = [f"{result.plan.name}: {sentence}" for result in results for sentence in result.wrong]
    click.echo(
        f"\n{sum(result.acknowledged for result in results)} edits acknowledged, each there once: "
        + ("yes, no process ended, no socket was closed" if not wrong else "see below")
    )
    for sentence in wrong:
        click.echo(sentence)
    click.echo(f"took {(time.monotonic() - began_s) / 60:.1f} min")
    sys.exit(0 if passed and not wrong else 1)


if __name__ == "__main__":
    main()
