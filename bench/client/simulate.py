"""The command ``run.py device simulate``."""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import click
import msgspec

from bench.client.crew import CrewError, Outcome, Setting, crew
from bench.client.persona import DOMAINS
from bench.client.progress import watch

_PATIENCE_S: Final = 60.0
_POOL: Final = 8


class Access(msgspec.Struct, frozen=True):
    """The server of these settings: where it is, and ``sign(tenant, device)`` gives a token."""

    url: str
    sign: Callable[[str, str], str]


#: The ``obj`` of the command's context: opens the site of --config and --data-dir. Raises ClickException.
Open = Callable[[Path | None, str | None], Access]


class Summary(msgspec.Struct, frozen=True):
    """What a simulation came to; ``outcomes`` counts edits."""

    devices: int
    seed: int
    made: int
    outcomes: dict[Outcome, int]
    waiting: int
    records: int
    converge_s: float
    converged: bool


def _names(device: str, devices: int) -> list[str]:
    return [device] if devices == 1 else [f"{device}-{number}" for number in range(1, devices + 1)]


def _offline_first(offline_s: float) -> Callable[[Random], Iterator[float]]:
    return lambda _: iter([offline_s])


async def _simulate(setting: Setting, names: list[str], offline_s: float, duration_s: float) -> Summary:
    async with crew(names, setting) as working:
        await working.reach()
        watching = asyncio.create_task(watch(working))
        try:
            await working.catch_up(_PATIENCE_S)
            await working.work(max(duration_s, offline_s), _offline_first(offline_s))
            began_s = time.monotonic()
            converged = await working.converge(_PATIENCE_S)
            converge_s = time.monotonic() - began_s
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        return Summary(
            devices=len(names),
            seed=setting.seed,
            made=working.made,
            outcomes=working.outcomes,
            waiting=sum(member.waiting for member in working.members),
            records=working.members[0].store.count,
            converge_s=round(converge_s, 3),
            converged=converged,
        )


_MEANINGS: Final[dict[Outcome, str]] = {
    "applied": "applied",
    "unchanged": "held by the server already",
    "won": "in conflict, and won by policy",
    "merged": "merged with what others changed",
    "superseded": "superseded by policy",
    "held": "in the conflict queue",
    "rejected": "rejected, kept on the device and in the server's quarantine",
}


def _text(summary: Summary) -> str:
    lines = [f"{summary.made:>7}  edits made by {summary.devices} devices (seed {summary.seed})"]
    lines += [f"{summary.outcomes[outcome]:>7}  {meaning}" for outcome, meaning in _MEANINGS.items()]
    if summary.waiting:
        lines.append(f"{summary.waiting:>7}  not answered")
    verdict = (
        f"All replicas equal the server's {summary.records} records {summary.converge_s:.1f} s after the end."
        if summary.converged
        else f"The replicas do not equal the server's records after {summary.converge_s:.0f} s."
    )
    return "\n".join([*lines, verdict])


@click.command(
    "simulate",
    epilog=(
        "Examples: run.py device simulate --tenant demo --device phone --offline-for 10 · "
        "run.py device simulate --tenant demo --device crew --devices 50 --duration 60 --seed 7 --json"
    ),
)
@click.option("--tenant", required=True, metavar="T", help="The tenant; serve makes demo.")
@click.option("--device", required=True, metavar="D", help="The device's id; of several, D-1, D-2 and so on.")
@click.option(
    "--devices", type=click.IntRange(1, 1000), default=1, show_default=True, metavar="N", help="How many."
)
@click.option(
    "--offline-for", "offline_s", type=click.FloatRange(0), default=5.0, show_default=True, metavar="S",
    help="Seconds of edits without a connection, before the devices come back.",
)  # fmt: skip
@click.option("--url", metavar="U", help="A server that takes this key's tokens; the local one by default.")
@click.option(
    "--edits-per-minute", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True,
    metavar="N", help="Of each device.",
)  # fmt: skip
@click.option(
    "--duration", "duration_s", type=click.FloatRange(0), default=10.0, show_default=True, metavar="S",
    help="Seconds of edits altogether, offline ones included.",
)  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="Of all chance; a random one by default.")
@click.option("--json", "json_", is_flag=True, help="Print the summary as JSON.")
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE",
    help="TOML file of settings that differ from config.toml.",
)  # fmt: skip
@click.option("--data-dir", metavar="DIR", help="Where embedded services and secrets are kept.")
@click.pass_obj
def simulate(
    open_deployment: Open,
    /,
    *,
    tenant: str,
    device: str,
    devices: int,
    seed: int | None,
    json_: bool,
    **asked: Any,
) -> None:
    """Have devices edit offline and online against a running server until all hold the same.

    They catch up, go offline and edit, come back, go on editing, and then have to agree with the server; the
    exit status is 1 if they do not. Their files go in the end; what they wrote stays on the server.
    """
    access = open_deployment(asked["config"], asked["data_dir"])
    with tempfile.TemporaryDirectory(prefix="tidemark-devices-") as home:
        setting = Setting(
            url=(asked["url"] or access.url).rstrip("/"),
            sign=lambda name: access.sign(tenant, name),
            home=Path(home),
            seed=secrets.randbelow(1_000_000) if seed is None else seed,
            domains=DOMAINS,
            pool=_POOL,
            edits_per_minute=asked["edits_per_minute"],
        )
        spells = asked["offline_s"], asked["duration_s"]
        try:
            summary = asyncio.run(_simulate(setting, _names(device, devices), *spells))
        except CrewError as error:
            raise click.ClickException(str(error)) from None
    if json_:
        click.echo(msgspec.json.format(msgspec.json.encode(summary)).decode())
    else:
        click.echo(_text(summary))
    sys.exit(0 if summary.converged else 1)
