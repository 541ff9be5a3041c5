"""How long a cell pauses while it is moved to another PostgreSQL, by the commands of docs/scaling.md.

The time of stopping and starting its servers is not in it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from time import perf_counter
from typing import Final

import click

from bench.harness.clusters import cluster_in, migrate_for_roles
from bench.harness.environment import fresh_on_tcp, read_settings
from bench.harness.progress import progress
from bench.harness.stage import add_tenants, fill
from storage.embedded.account import account_for
from storage.embedded.binaries import postgres_binaries
from storage.postgres.blocking import connected
from storage.postgres.cell.dsn import with_schema
from storage.stores.epoch import PostgresEpoch

_TENANTS: Final = tuple(f"moved-{number}" for number in range(20))


@click.command(epilog="Example: python -m bench.tools.moving --records 1000000")
@click.option(
    "--records",
    type=click.IntRange(1),
    default=1_000_000,
    show_default=True,
    metavar="N",
    help="How many records of 200 bytes the cell has.",
)
@click.option("--data-dir", metavar="DIR", help="Where both servers are kept while this runs.")
def main(records: int, data_dir: str | None) -> None:
    """Fill a cell, move it to a second PostgreSQL of this machine, and print the seconds of each step."""
    with (
        fresh_on_tcp(read_settings(None, data_dir)) as (environment, old),
        cluster_in(environment.home / "moved", "new") as new,
    ):
        dump, binaries = (
            environment.home / "dump",
            postgres_binaries(environment.home, account_for(environment.home), None),
        )
        (cell,) = environment.cells("cells", ["north"])
        add_tenants(cell, _TENANTS)
        fill(cell, _TENANTS, records)
        moved = with_schema(new.dsn, "north")
        migrate_for_roles(with_schema(new.dsn, "beside"))  # its roles are those of the cell, too

        def run(program: str, *arguments: str) -> None:
            subprocess.run([binaries / program, *arguments], check=True)

        def rename(dsn: str, name: str, to: str) -> None:
            with connected(dsn) as connection, connection.cursor() as cursor:
                cursor.execute(f"ALTER SCHEMA {name} RENAME TO {to}")

        at_old, away = old.database("cells"), "north_moved"
        steps: tuple[tuple[str, Callable[[], object]], ...] = (
            ("new name", lambda: rename(at_old, "north", away)),
            ("pg_dump", lambda: run("pg_dump", f"--schema={away}", "-Fc", f"--file={dump}", at_old)),
            (
                "pg_restore",
                lambda: run(
                    "pg_restore", "--exit-on-error", "--single-transaction", f"--dbname={new.dsn}", str(dump)
                ),
            ),
            ("its name back", lambda: rename(new.dsn, away, "north")),
            ("migrate", lambda: migrate_for_roles(moved)),
            ("epoch renew", lambda: PostgresEpoch(moved).renew()),
        )
        progress("moving")
        began_s = perf_counter()
        for name, step in steps:
            step_s = perf_counter()
            step()
            click.echo(f"{name:<14}{perf_counter() - step_s:>8.2f} s")
        click.echo(f"{'together':<14}{perf_counter() - began_s:>8.2f} s")
        with connected(moved) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM records")
            ((found,),) = cursor.fetchall()
        click.echo(f"{found:,} records, a dump of {dump.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
