"""Tables fit the terminal and lose nothing elsewhere; every command that prints one has ``--json``."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.commands.terminal import tables
from handlers.commands.terminal.tables import fitted, table
from run import cli

_COMMANDS = Path(tables.__file__).parents[1]
_widths = st.lists(st.integers(0, 60), min_size=1, max_size=8)


@given(_widths, st.integers(0, 200))
def test_fitted_widths_take_the_room_and_cut_the_widest_alone(widths: list[int], room: int) -> None:
    found = fitted(widths, room)
    if sum(widths) <= room:
        assert found == widths
        return
    cap = max(found)
    assert found == [min(width, cap) for width in widths]
    assert sum(found) <= room or cap <= 8
    if cap > 8:
        assert sum(min(width, cap + 1) for width in widths) > room, "more of them would fit"


ROWS: list[tuple[str, ...]] = [
    ("4f0c6d2e8b1a4c7f9e3d5a6b7c8d9e0f", "acme", "a record that has a long name"),
    ("1", "globex", "n1"),
]
HEADING = ("ID", "TENANT", "RECORD")


def printed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    *,
    terminal: bool,
    wrapped: bool = False,
    spare: tuple[str, ...] = (),
) -> list[str]:
    """The lines of a table."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    table(ROWS, HEADING, wrapped=wrapped, spare=spare)
    return capsys.readouterr().out.splitlines()


def test_table_on_a_terminal_is_cut_to_its_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed(capsys, monkeypatch, 40, terminal=True) == [
        "ID               TENANT  RECORD",
        "4f0c6d2e8b1a4c…  acme    a record that …",
        "1                globex  n1",
    ]
    assert printed(capsys, monkeypatch, 100, terminal=True)[1].split("  ")[-1] == ROWS[0][2]


def test_table_elsewhere_has_whole_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for column, line in zip((0, 2), (1, 1), strict=True):
        assert ROWS[0][column] in printed(capsys, monkeypatch, 20, terminal=False)[line]


def test_table_wrapped_on_a_terminal_cuts_the_other_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(capsys, monkeypatch, 50, terminal=True, wrapped=True)
    assert lines[1:3] == ["4f0c6d2e8b1a4c7…  acme    a record that has a long", " " * 26 + "name"]
    assert max(map(len, lines)) <= 50
    assert printed(capsys, monkeypatch, 50, terminal=False, wrapped=True)[1].startswith(ROWS[0][0])


def test_table_too_narrow_for_columns_is_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed(capsys, monkeypatch, 24, terminal=True) == [
        *("ID      4f0c6d2e8b1a4c7f", "        9e3d5a6b7c8d9e0f", "TENANT  acme"),
        *("RECORD  a record that", "        has a long name", ""),
        *("ID      1", "TENANT  globex", "RECORD  n1"),
    ]


def test_table_leaves_out_what_a_narrow_terminal_has_no_room_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed(capsys, monkeypatch, 46, terminal=True, spare=("TENANT", "ID")) == [
        "ID                      RECORD",
        "4f0c6d2e8b1a4c7f9e3d5…  a record that has a l…",
        "1                       n1",
        "no room for TENANT: --json has all",
    ]


def called_functions() -> dict[str, set[str]]:
    """Each function of the commands, and the functions that it calls, by module and name."""
    calls: dict[str, set[str]] = {}
    for path in _COMMANDS.rglob("*.py"):
        module = ".".join(path.relative_to(_COMMANDS.parents[1]).with_suffix("").parts)
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        named = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        named |= {node.name: f"{module}.{node.name}" for node in functions}
        for node in functions:
            calls[named[node.name]] = {
                named.get(called.func.id, called.func.id)
                for called in ast.walk(node)
                if isinstance(called, ast.Call) and isinstance(called.func, ast.Name)
            }
    return calls


def reaches(calls: Mapping[str, set[str]], command: click.Command, *wanted: Callable[..., object]) -> bool:
    """Whether a command calls one of the wanted functions, by itself or by those that it calls."""
    assert command.callback is not None
    looked, ahead = set[str](), {_named(inspect.unwrap(command.callback))}
    while ahead:
        looked |= ahead
        ahead = set().union(*(calls.get(one, set()) for one in ahead)) - looked
    return not looked.isdisjoint(map(_named, wanted))


def _named(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{function.__name__}"


def _leaves(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            yield from _leaves(one, *above, name)
        yield " ".join((*above, name)), one


def test_commands_that_print_a_table_have_json() -> None:
    calls = called_functions()
    printing = {
        name: one for name, one in _leaves(cli) if one.callback is not None and reaches(calls, one, table)
    }
    assert {"device list", "quarantine retry", "audit", "doctor"} <= printing.keys()
    without = [name for name, one in printing.items() if "json_" not in {p.name for p in one.params}]
    assert without == []
