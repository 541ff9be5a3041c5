"""Do all devices and the server agree in the end, and what became of every edit?

Devices edit the same records while they come and go, with clocks that are off by up to two hours, on a line
that loses answers. ``python -m bench.tools.convergence --devices 50 --minutes 10 --seed N`` runs it against a
server and a database of its own.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any, Final

import click
import msgspec

from bench.client.crew import DOMAINS, Crew, Setting, State, crew
from bench.client.device import Decision
from bench.client.edits import Held
from bench.client.messages import canonical
from bench.faults.check import check
from bench.faults.device import FaultsDevice
from bench.faults.history import History
from bench.faults.tables import Tables, read_tables
from bench.harness.environment import fresh, read_settings
from bench.harness.load_run import Target
from bench.harness.product import product
from bench.harness.stage import add_tenants
from bench.load.proxy import Chances, proxied

TENANT: Final = "convergence"
#: One domain for each policy: those as delivered, and two more.
POLICIES: Final = '[domains.note]\npolicy = "manual"\n\n[domains.form]\npolicy = "field_merge"\n'
EDITED: Final = (*DOMAINS, "note", "form")
#: How far a device's clock is off at most: two hours.
SKEW_S: Final = 7200.0
_LOSS: Final = 0.1
_PATIENCE_S: Final = 120.0


def _spells_s(longest_s: float, random: Random) -> Iterator[float]:
    """Yield the lengths of spells offline and online by turns."""
    while True:
        yield random.uniform(0, longest_s)


async def converge(
    devices: int, duration_s: float, setting: Setting, dsn: str, tenant: str
) -> dict[str, Any]:
    """Run a crew against a server that has the domains ``EDITED``, then audit its database.

    Returns what came of it; ``faults`` is empty if all is well.
    """
    random, history = Random(setting.seed), History()
    port = int(setting.url.rpartition(":")[2])
    async with proxied("127.0.0.1", port, random, Chances(lost=_LOSS)) as proxy:
        setting = setting._replace(url=proxy.url, make=partial(FaultsDevice, history, tenant, None))
        names = [f"device-{index:03}" for index in range(devices)]
        async with crew(dict.fromkeys(names, setting)) as working:
            await working.work(duration_s, partial(_spells_s, min(30.0, duration_s / 4)))
            proxy.chances.lost = 0.0
            began_s = time.monotonic()
            agreed = await working.converge(_PATIENCE_S)
            by_person = await _settle_some(working, random)
            agreed = agreed and await working.converge(_PATIENCE_S)
            converge_s = time.monotonic() - began_s
            tables = read_tables(dsn, [tenant])
            disagreed = [] if agreed else ["the devices did not come to agree"]
            return {
                "seed": setting.seed,
                "devices": devices,
                "edits": working.made,
                "outcomes": working.outcomes,
                "resolved_by_person": by_person,
                "answers_lost": proxy.cuts,
                "records": len(tables.records),
                "converge_s": converge_s,
                "faults": [*disagreed, *faults(working, history, tables)],
            }


def faults(working: Crew, history: History, tables: Tables) -> list[str]:
    """Compare what the devices hold and were told with the tables. Returns the faults."""
    records: State = {
        where[1:]: (row.version, canonical(None if row.data is None else msgspec.json.encode(row.data)))
        for where, row in tables.records.items()
    }
    found = [one.sentence for one in check(history.events, tables, whole=False)]
    for member in working.members:
        if member.state() != records:
            found.append(f"{member.name} holds other records than the server")
        told = len({settled.edit for settled in member.settled})
        if member.waiting or told != member.made:
            found.append(f"{member.name} made {member.made} edits and was told of {told}")
    return found


async def _settle_some(working: Crew, random: Random) -> int:
    """Settle about half of the open conflicts by hand; the rest stays in the queue."""

    def choose(held: Held) -> Decision | None:
        merged = Decision("merged", {"settled": held.conflict_id})
        return random.choice([Decision("server"), Decision("client"), merged, None, None, None])

    return sum([await member.device.resolve(choose) for member in working.members])


async def _run(devices: int, duration_s: float, seed: int) -> dict[str, Any]:
    chosen = read_settings(None, None)
    with fresh(chosen) as environment:
        dsn = environment.database("convergence")
        add_tenants(dsn, [TENANT])
        secret = secrets.token_urlsafe(48)
        config, home = environment.home / "domains.toml", environment.home / "devices"
        config.write_text(POLICIES, "utf-8")
        home.mkdir()
        async with product(environment, dsn, secret, config) as server:
            target = Target(port=server.port, secret=secret, tenants=[TENANT], audience=chosen.audience)
            url, sign, pool = f"http://127.0.0.1:{server.port}", partial(target.token, TENANT), devices // 2
            setting = Setting(url, sign, home, seed, EDITED, max(4, pool), 30.0, skew_s=SKEW_S)
            return await converge(devices, duration_s, setting, dsn, TENANT)


@click.command(epilog="Example: python -m bench.tools.convergence --devices 50 --minutes 10 --seed 7")
@click.option("--devices", type=click.IntRange(1, 1000), default=50, show_default=True, metavar="N")
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, metavar="M"
)
@click.option("--seed", type=int, metavar="N", help="Of all chance; a random one by default, printed.")
def main(devices: int, minutes: float, seed: int | None) -> None:
    """Run a crew and audit every edit; exit status 1 if one is not accounted for or devices disagree."""
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    report = asyncio.run(_run(devices, minutes * 60, seed))
    click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    sys.exit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
