"""Every command on a terminal: its tables fit, it says that it goes on, and its words are completed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from handlers.commands import export
from handlers.commands.deployment import opened
from handlers.commands.terminal.progress import progress
from handlers.commands.terminal.tables import table
from run import cli
from tests.handlers.commands.test_tables import called_functions, reaches
from tests.handlers.commands.test_wrong_database import leaves
from tests.harness.commands import Run, command
from tests.harness.in_process_server import Serve, serve
from tests.harness.services import execute
from tests.harness.ws_device import day, item

__all__ = ["command", "serve"]

#: Commands that print a table, with the options that make them print one here.
TABLES: dict[str, list[str]] = {
    "migrate": ["--status"],
    "tenant list": [],
    "tenant usage": [],
    "tenant files": [],
    "device list": [],
    "device show": ["--tenant", "acme", "PHONE"],
    "policy list": [],
    "conflicts list": [],
    "conflicts list --settled": [],
    "conflicts show": ["CONFLICT"],
    "quarantine list": [],
    "keys status": [],
    "keys verify": [],
    "job list": [],
    "job cleanup": [],
    "monitor": [],
    "audit": [],
    "analytics": ["--tenant", "acme"],
    "analytics --voice": ["--tenant", "acme"],
    "doctor": [],
    "doctor --deployment": [],
    "verify": [],
    "settings": [],
}
#: Lines that are no table: sentences, which the terminal wraps.
_SENTENCES = (
    "conflict  ",
    "server    ",
    "client    ",
    "run.py ",
    "settings file: ",
    "no room for ",
    "sealed domains: ",
    "not sealed, ",
    "  ",
)
#: Commands that do not say that they go on, and why.
WITHOUT_PROGRESS = {
    "serve": "it logs",
    "worker": "it logs",
    "settings": "it opens no service",
    "nginx": "it opens no service",
    "completion": "it opens no service",
    "bench": "it says itself how far it is",
    "device simulate": "it says itself how far it is",
    "smoke": "it says each step",
}
#: Arguments that name a row by an id which a server made: its first characters are enough.
IDS = {"conflicts show", "conflicts resolve", "quarantine show", "quarantine retry", "quarantine drop"}


def _commands() -> Iterator[tuple[str, click.Command]]:
    for name in leaves(cli):
        found: click.Command = cli
        for word in name.split():
            assert isinstance(found, click.Group)
            found = found.commands[word]
        yield name, found


def test_commands_that_print_a_table_are_tried_on_terminals() -> None:
    calls = called_functions()
    printing = {name for name, one in _commands() if one.callback and reaches(calls, one, table)}
    printing.remove("quarantine retry")  # its table is that of conflicts show
    assert printing == {" ".join(word for word in name.split() if word[0] != "-") for name in TABLES}


def test_commands_that_may_take_long_say_that_they_go_on() -> None:
    calls, saying = called_functions(), (progress, opened, export._tell)
    silent = {name for name, one in _commands() if one.callback and not reaches(calls, one, *saying)}
    assert silent == WITHOUT_PROGRESS.keys()


def test_commands_that_take_an_id_take_its_beginning() -> None:
    """That they do is tested in test_conflicts_command.py and test_quarantine_command.py."""
    found = {name for name, one in _commands() if "ID" in {parameter.metavar for parameter in one.params}}
    assert found == IDS


@pytest.mark.parametrize("name", sorted(leaves(cli)))
def test_command_words_are_completed(name: str) -> None:
    *before, last = name.split()
    complete = BashComplete(cli, {}, "tidemark", "_TIDEMARK_COMPLETE").get_completions
    if name != "worker":  # which is for serve alone
        assert last in {one.value for one in complete(before, last[:1])}
    found = dict(_commands())[name]
    options = {one.value for one in complete(name.split(), "--")}
    wanted = {option for one in found.params for option in one.opts if option.startswith("--")}
    assert wanted <= options
    for one in found.params:
        if isinstance(one, click.Option) and isinstance(one.type, click.Choice):
            assert {found.value for found in complete([*name.split(), one.opts[0]], "")} == set(
                one.type.choices
            )


def test_command_words_of_bench_and_simulate_are_completed() -> None:
    complete = BashComplete(cli, {}, "tidemark", "_TIDEMARK_COMPLETE").get_completions
    assert [one.value for one in complete(["bench"], "--sce")] == ["--scenario"]
    assert [one.value for one in complete(["bench", "--scenario"], "conc")] == ["concurrent"]
    assert [one.value for one in complete(["device", "simulate"], "--devices")] == ["--devices"]


@pytest.fixture
async def stored(serve: Serve) -> dict[str, str]:
    """Fill tables with long names; return the ids."""
    server = await serve(domains={"note": {"policy": "manual", "required": ["n"]}})
    long = "a-device-with-a-very-long-name-" + "x" * 60
    phone, tablet = await server.device(long), await server.device("tablet")
    await tablet.push(*(item("put", "note", f"n{n}", data={"n": "long " * 40}, at=day(1)) for n in range(3)))
    await tablet.push(item("put", "task", "t1", data={"n": 1}, at=day(1), base=None))
    held, *_ = await phone.push(
        item("put", "note", "n0", data={"n": "other " * 40}, at=day(2), base=9),
        item("put", "note", "n9", data={"m": 1}, at=day(2)),
        item("put", "task", "t1", data={"n": 2}, at=day(2), base=None),
    )
    await server.drained()
    execute(
        server.dsn,
        "INSERT INTO voice_verification_log (tenant_id, verification_id, device_id, occurred_at, result)"
        f" VALUES (1, 'v', '{long}', now(), '{{\"verified\": true}}')",
    )
    return {"PHONE": long, "CONFLICT": held["conflict_id"]}


async def _printed(command: Run, name: str, ids: dict[str, str], columns: int) -> list[str]:
    arguments = [ids.get(word, word) for word in TABLES[name]]
    ended = await command(*name.split(), *arguments, COLUMNS=str(columns))
    assert ended.out, f"{name}: {ended.err}"
    return [line for line in ended.out.splitlines() if not line.startswith(_SENTENCES)]


async def test_tables_of_commands_fit_the_terminal_and_are_whole_elsewhere(
    command: Run, stored: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIDEMARK__DATA__DIR", str(tmp_path))
    for name in TABLES:
        piped = await _printed(command, name, stored, 40)
        assert "…" not in "\n".join(piped), name
        with monkeypatch.context() as patch:
            patch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
            for columns in (120, 80, 40):
                shown = await _printed(command, name, stored, columns)
                assert max(map(len, shown)) <= columns, f"{name} on {columns} columns"
