"""``python -m deploy.recovery``: drills a recovery on servers of its own, and prints RPO and RTO."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec

from deploy.recovery.drill import Options, Recovery
from deploy.recovery.report import text


@contextmanager
def _home(place: Path | None) -> Iterator[Path]:
    """Make a directory that PostgreSQL's account may pass through, and remove it unless it was named."""
    made = Path(tempfile.mkdtemp(prefix="tidemark-recovery-")) if place is None else place
    if place is not None:
        made.mkdir()
    made.chmod(0o711)
    try:
        yield made
    finally:
        if place is None:
            shutil.rmtree(made, ignore_errors=True)


@click.command(epilog="Example: python -m deploy.recovery --archive-timeout 60 --json drill.json")
@click.option(
    "--archive-timeout", "archive_timeout_s", type=click.FloatRange(1, 3600), default=10.0, show_default=True,
    metavar="S", help="archive_timeout of PostgreSQL.",
)  # fmt: skip
@click.option("--wait-for-receiver", is_flag=True, help="Let each commit wait for the receiver of the WAL.")
@click.option(
    "--home", type=click.Path(path_type=Path), metavar="DIR", help="A new directory, which is kept."
)
@click.option(
    "--json", "json_", type=click.Path(path_type=Path), metavar="FILE", help="Write the figures, too."
)
@click.option("--quiet", is_flag=True, help="Do not show the commands.")
def main(
    *, archive_timeout_s: float, wait_for_receiver: bool, home: Path | None, json_: Path | None, quiet: bool
) -> None:
    """Drill a recovery on a PostgreSQL, a server and devices of its own, all on this machine.

    Devices work while a base backup is made. Then a tenant is erased, and the disk of the database is lost.
    The drill measures what each way of keeping the WAL loses, restores to just before the mistake, and has
    the devices come back. The exit status is 1 if anything was not as it has to be.
    """

    def tell(command: str) -> None:
        if not quiet:
            click.echo(f"$ {command}", err=True)

    with _home(home) as place:
        options = Options(archive_timeout_s, wait_for_receiver)
        drill = asyncio.run(Recovery(place.resolve(), options, tell).run())
    click.echo(text(drill))
    if json_ is not None:
        json_.write_bytes(msgspec.json.format(msgspec.json.encode(drill)) + b"\n")
    sys.exit(1 if drill.faults else 0)


if __name__ == "__main__":
    main()
