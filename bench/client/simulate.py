"""The command ``run.py device simulate``."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from bench.client.crew import DOMAINS, OUTCOMES, Crew, CrewError, Member, Outcome, Setting, crew

_PATIENCE_S: Final = 60.0
_POOL: Final = 8
#: How often the table on a terminal is drawn, and how often a line is written where nobody looks.
_REDRAW_S: Final = 0.3
_LINE_S: Final = 5.0
_HEADING: Final = ("DEVICE", "LINE", "MADE", "WAITING", "RECORDS", *(name.upper() for name in OUTCOMES))
_UP: Final = "\x1b[{}F\x1b[J"
_MEANINGS: Final[dict[Outcome, str]] = {
    "applied": "applied",
    "unchanged": "held by the server already",
    "won": "in conflict, and won by policy",
    "merged": "merged with what others changed",
    "superseded": "superseded by policy",
    "held": "in the conflict queue",
    "rejected": "rejected, kept on the device and in the server's quarantine",
}


class Access(msgspec.Struct, frozen=True):
    """The server of these settings: where it is, and ``sign(tenant, device)`` gives a token."""

    url: str
    sign: Callable[[str, str], str]


#: The ``obj`` of the command's context: opens the site of --config and --data-dir. Raises ClickException.
Open = Callable[[Path | None, str | None], Access]


def status_table(members: list[Member], lines: int) -> list[str]:
    """Make a table of at most so many lines: the heading, devices while there is room, all together."""
    numbers = [
        [one.made, one.waiting, one.store.count, *(one.outcomes[outcome] for outcome in OUTCOMES)]
        for one in members
    ]
    rows = [
        (member.name, "online" if member.device.online else "offline", *map(str, row))
        for member, row in zip(members, numbers, strict=True)
    ][: max(1, lines - 3)]
    if len(members) > 1:
        name = "all" if len(rows) == len(members) else f"all {len(members)}"
        sums = (str(sum(column)) for column in zip(*numbers, strict=True))
        rows.append((name, f"{sum(member.device.online for member in members)} online", *sums))
    rows.insert(0, _HEADING)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


async def _show_table(crew: Crew) -> None:
    drawn = 0

    def draw() -> int:
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in status_table(crew.members, size.lines - 2)]
        click.echo((_UP.format(drawn) if drawn else "") + "\n".join(lines), err=True, color=True)
        return len(lines)

    try:
        while True:
            drawn = draw()
            await asyncio.sleep(_REDRAW_S)
    finally:
        draw()


async def _write_lines(crew: Crew) -> None:
    began_s = time.monotonic()
    while True:
        online = sum(member.device.online for member in crew.members)
        waiting = sum(member.waiting for member in crew.members)
        shown = f"{online} of {len(crew.members)} online, {crew.made} edits made, {waiting} wait"
        click.echo(f"{time.monotonic() - began_s:.0f} s: {shown}", err=True)
        await asyncio.sleep(_LINE_S)


async def _simulate(
    setting: Setting, names: list[str], offline_s: float, duration_s: float
) -> dict[str, Any]:
    """Let a crew catch up, work and agree. Returns what it came to, with the outcomes of edits."""
    async with crew(dict.fromkeys(names, setting)) as working:
        show = _show_table if sys.stderr.isatty() else _write_lines
        watching = asyncio.create_task(show(working))
        try:
            await working.catch_up(_PATIENCE_S)
            await working.work(max(duration_s, offline_s), lambda _: iter([offline_s]))
            began_s = time.monotonic()
            converged = await working.converge(_PATIENCE_S)
            converge_s = time.monotonic() - began_s
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        return {
            "devices": len(names),
            "seed": setting.seed,
            "made": working.made,
            "outcomes": working.outcomes,
            "waiting": sum(member.waiting for member in working.members),
            "records": working.members[0].store.count,
            "converge_s": round(converge_s, 3),
            "converged": converged,
        }


def _text(made: int, waiting: int, outcomes: dict[Outcome, int], **summary: Any) -> str:
    lines = [f"{made:>7}  edits made by {summary['devices']} devices (seed {summary['seed']})"]
    lines += [f"{outcomes[outcome]:>7}  {meaning}" for outcome, meaning in _MEANINGS.items()]
    if waiting:
        lines.append(f"{waiting:>7}  not answered")
    if summary["converged"]:
        verdict = "All replicas equal the server's {records} records {converge_s:.1f} s after the end."
    else:
        verdict = "The replicas do not equal the server's records after {converge_s:.0f} s."
    return "\n".join([*lines, verdict.format(**summary)])


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
        names = [device] if devices == 1 else [f"{device}-{number}" for number in range(1, devices + 1)]
        try:
            summary = asyncio.run(_simulate(setting, names, asked["offline_s"], asked["duration_s"]))
        except CrewError as error:
            raise click.ClickException(str(error)) from None
    if json_:
        click.echo(msgspec.json.format(msgspec.json.encode(summary)).decode())
    else:
        click.echo(_text(**summary))
    sys.exit(0 if summary["converged"] else 1)
