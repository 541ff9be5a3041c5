"""``run.py export``: writes records and events to a file or to stdout."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Final

import click

from engine.operate.export import CsvForm, Format, Row, json_line
from engine.wire.timestamps import to_us as microseconds
from handlers.commands.deployment import Deployment, DeploymentError, with_deployment
from handlers.commands.terminal.times import Instant

#: So many rows that were left out are named.
_NAMED: Final = 10


@click.command(
    "export",
    short_help="Write a tenant's records or events as JSON lines or CSV.",
    epilog="Example: run.py export --tenant acme --domain task --format csv --output tasks.csv",
)
@click.option("--tenant", metavar="T", required=True, help="The tenant.")
@click.option("--domain", metavar="D", required=True, help="The domain, of records or of events.")
@click.option("--from", "begins_at", type=Instant(), metavar="TIME", help="Leave out what is older.")
@click.option("--to", "ends_at", type=Instant(), metavar="TIME", help="Leave out what is not older.")
@click.option("--format", "format_", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="A new file, not stdout.")
@with_deployment()
async def export(
    deployment: Deployment,
    *,
    tenant: str,
    domain: str,
    begins_at: datetime | None,
    ends_at: datetime | None,
    format_: Format,
    output: Path | None,
) -> None:
    """Write all records or events of a domain, in the order of their ids, events day by day.

    Records are written in their last version; --from and --to apply to its time. Deleted records have no data
    and are marked `deleted`. For events --from and --to apply to the time that the device sent. In CSV each
    field of the data is a column. Servers may run: each page is a transaction of its own, and a change after
    its page is not in the export. A row whose sealed data cannot be opened is left out, and named at the end,
    with exit status 1.
    """
    from_us = None if begins_at is None else microseconds(begins_at)
    to_us = None if ends_at is None else microseconds(ends_at)
    if from_us is not None and to_us is not None and from_us >= to_us:
        raise click.UsageError("--from has to be before --to: nothing is between them.")
    left_out = _LeftOut()
    async with deployment.exports() as store:
        with _opened(output) as file:
            await _write(store.pages(tenant, domain, from_us, to_us, left_out.note), format_, file)
    if left_out.count:
        raise DeploymentError(left_out.sentence(tenant))


class _LeftOut:
    """Rows with sealed values that cannot be opened: how many, and the first ids."""

    def __init__(self) -> None:
        self.count = 0
        self._ids: list[str] = []

    def note(self, row_id: str) -> None:
        self.count += 1
        if self.count <= _NAMED:
            self._ids.append(row_id)

    def sentence(self, tenant: str) -> str:
        more = self.count - len(self._ids)
        named = ", ".join(self._ids) + (f" and {more} more" if more else "")
        return (
            f"the export lacks rows whose sealed data cannot be opened, and has all others: {self.count}"
            f" ({named}); `run.py keys verify --tenant {tenant}` looks at all data of the tenant"
        )


async def _write(pages: AsyncIterator[list[Row]], format_: Format, file: IO[bytes]) -> None:
    write = _csv if format_ == "csv" else _jsonl
    try:
        async for count in write(_lines(pages), file):
            _tell(count)
        file.flush()
    except BrokenPipeError:  # the reader closed the pipe, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        _tell(None)


async def _lines(pages: AsyncIterator[list[Row]]) -> AsyncIterator[list[bytes]]:
    async for page in pages:
        yield [json_line(row) for row in page]


async def _jsonl(pages: AsyncIterator[list[bytes]], file: IO[bytes]) -> AsyncIterator[int]:
    count = 0
    async for page in pages:
        file.writelines(page)
        count += len(page)
        yield count


async def _csv(pages: AsyncIterator[list[bytes]], file: IO[bytes]) -> AsyncIterator[int]:
    """Write CSV. Its columns are known only at the end, so rows wait in a temporary file."""
    form, count = CsvForm(), 0
    with tempfile.TemporaryFile() as waiting:
        async for page in pages:
            for line in page:
                form.note(line)
            waiting.writelines(page)
            count += len(page)
            yield count
        waiting.seek(0)
        file.write(form.heading().encode())
        for text in form.write(waiting):
            file.write(text.encode())


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[bytes]]:
    """Open stdout, or a private file that gets its name once it is complete."""
    if output is None:
        yield sys.stdout.buffer
        return
    if not output.parent.is_dir():
        raise DeploymentError(f"there is no directory {output.parent}: make it, or name another --output")
    unfinished = output.with_name(f"{output.name}.part")
    try:
        if output.exists():
            raise DeploymentError(f"{output} is there already: remove it, or name another --output")
        descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        raise DeploymentError(
            f"{unfinished}: {error.strerror}: remove it, or name another --output"
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        unfinished.rename(output)
    except OSError as error:
        raise DeploymentError(f"{output}: {error.strerror}: nothing was kept") from None
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()


def _tell(count: int | None) -> None:
    """Show the progress on a terminal; None ends the line."""
    if sys.stderr.isatty():
        click.echo("\r" if count is None else f"\r{count:,} rows", nl=count is None, err=True)
