"""``run.py export``: every record and event once, as it is, in JSON lines and in CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.clusters import as_role, role_variables
from engine.operate.export import CsvForm, Row, compact, json_line
from engine.operate.ports import RefusedError
from engine.wire.timestamps import EARLIEST_US
from handlers.commands import export as command_module
from storage.postgres.commands import command_database
from storage.stores import export as store_module
from storage.stores.sealed.sealing import Sealing
from tests.harness.admin import add_tenants
from tests.harness.commands import Run, command
from tests.harness.services import Databases, execute, rows

__all__ = ["command"]

_ROOT = Path(__file__).parents[3]
_RECORD = (
    "INSERT INTO records (tenant_id, domain, id, version, seq, at_us, chain_from, data, device_id)"
    " SELECT {tenant}, '{domain}', {id}, 1, {seq}, {at_us}, 1, {data}, 'phone' FROM {source}"
)
_DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def filled(databases: Databases, template: str) -> Iterator[str]:
    """A database with 2,500 tasks of acme, one of globex, and events over three days. Only to be read."""
    with databases.copy(template) as dsn:
        add_tenants(dsn, "acme", "globex")
        many = _RECORD.format(
            tenant=1,
            domain="task",
            id="'t' || lpad(n::text, 5, '0')",
            seq="n",
            at_us="n * 1000000::bigint",
            data="CASE n % 500 WHEN 0 THEN NULL ELSE format('{\"n\": %s}', n)::json END",
            source="generate_series(1, 2500) AS n",
        )
        odd = '{ "text": "a,\\"b\\"\\nü",\n "big": 1e400, "no": null, "in": {"a": [1.0]}, "yes": true }'
        execute(
            dsn,
            many,
            _RECORD.format(
                tenant=2,
                domain="task",
                id="'odd'",
                seq=1,
                at_us=0,
                data=f"$${odd}$$::json",
                source="tenants LIMIT 1",
            ),
            "INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data)"
            f" SELECT 1, 'metrics', 'm' || d, d * {_DAY_US}::bigint, 5, 'phone', '{{\"value\": 1}}'"
            " FROM generate_series(20000, 20002) AS d",
            "INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data)"
            f" SELECT 1, 'metrics', 'm20000', 20000 * {_DAY_US}::bigint + 1, 5, 'phone', '{{\"value\": 2}}'",
        )
        yield dsn


def _lines(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


async def test_export_gives_every_record_once_in_order_with_tombstones_marked(
    command: Run, filled: str
) -> None:
    ended = await command("export", "--tenant", "acme", "--domain", "task", **role_variables(filled))
    assert (ended.status, ended.err) == (0, "")
    found = _lines(ended.out)
    assert [one["id"] for one in found] == [f"t{n:05}" for n in range(1, 2501)]
    assert found[0] == {
        "id": "t00001",
        "version": 1,
        "seq": 1,
        "at": "1970-01-01T00:00:01Z",
        "sent_at": None,
        "device_id": "phone",
        "deleted": False,
        "attachments": [],
        "data": {"n": 1},
    }
    deleted = [one["id"] for one in found if one["deleted"]]
    assert deleted == ["t00500", "t01000", "t01500", "t02000", "t02500"]
    assert all((one["data"] is None) is one["deleted"] for one in found)


async def test_export_leaves_out_what_is_out_of_the_range_whatever_page_it_is_on(
    command: Run, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_MOST_ROWS", 7)
    span = ("--from", "1970-01-01T00:20:00Z", "--to", "1970-01-01T01:20:10+01:00")
    arguments = ("export", "--tenant", "acme", "--domain", "task", *span)
    ended = await command(*arguments, **role_variables(filled))
    assert [one["id"] for one in _lines(ended.out)] == [f"t{n:05}" for n in range(1200, 1210)]


async def test_export_gives_events_by_the_day_that_was_sent(command: Run, filled: str) -> None:
    ended = await command("export", "--tenant", "acme", "--domain", "metrics", **role_variables(filled))
    found = _lines(ended.out)
    assert [(one["id"], one["data"]) for one in found] == [
        ("m20000", {"value": 1}),
        ("m20000", {"value": 2}),
        ("m20001", {"value": 1}),
        ("m20002", {"value": 1}),
    ]
    assert list(found[0]) == ["id", "at", "sent_at", "received_at", "device_id", "data"]
    assert (found[0]["sent_at"], found[0]["at"]) == ("2024-10-04T00:00:00Z", "1970-01-01T00:00:00.000005Z")
    span = ("--from", "2024-10-04T00:00:00.000001", "--to", "2024-10-06")
    arguments = ("export", "--tenant", "acme", "--domain", "metrics", *span)
    ended = await command(*arguments, **role_variables(filled))
    assert [(one["id"], one["data"]) for one in _lines(ended.out)] == [
        ("m20000", {"value": 2}),
        ("m20001", {"value": 1}),
    ]


async def test_export_to_a_file_as_csv_has_a_column_for_each_field_and_values_as_they_are(
    command: Run, filled: str, tmp_path: Path
) -> None:
    file = tmp_path / "out.csv"
    arguments = ("export", "--tenant", "globex", "--domain", "task", "--format", "csv", "--output", str(file))
    ended = await command(*arguments, **role_variables(filled))
    assert (ended.status, ended.out) == (0, "")
    (found,) = csv.DictReader(io.StringIO(file.read_text("utf-8"), newline=""))
    assert (found["id"], found["deleted"], found["attachments"]) == ("odd", "false", "[]")
    assert {name: text for name, text in found.items() if name.startswith("data.")} == {
        "data.text": 'a,"b"\nü',
        "data.big": "1e400",
        "data.no": "",
        "data.in": '{"a":[1.0]}',
        "data.yes": "true",
    }
    assert file.stat().st_mode & 0o777 == 0o600
    again = await command(*arguments, **role_variables(filled))
    assert f"{file} is there already" in again.refusal()


async def test_export_that_is_broken_off_leaves_no_file(
    command: Run, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_module, "_tell", interrupted)
    ended = await command(
        *("export", "--tenant", "acme", "--domain", "task", "--output", str(tmp_path / "out")),
        **role_variables(filled),
    )
    assert (ended.status, ended.err.strip()) == (1, "Aborted!")
    assert list(tmp_path.iterdir()) == []


async def test_export_of_what_is_not_there_names_what_is(command: Run, filled: str, tmp_path: Path) -> None:
    for arguments, sentence in (
        (("--tenant", "nobody", "--domain", "task"), "there is no tenant nobody"),
        (("--tenant", "acme", "--domain", "tusk"), "there is no domain tusk: choose one of task, "),
        (("--tenant", "acme", "--domain", "task", "--from", "monday"), "a day or an instant such as 2026"),
        (
            ("--tenant", "acme", "--domain", "task", "--output", str(tmp_path / "no" / "out")),
            f"there is no directory {tmp_path / 'no'}: make it, or name another --output",
        ),
        (
            ("--tenant", "acme", "--domain", "task", "--from", "2026-02-01", "--to", "2026-01-01"),
            "--from has to be before --to",
        ),
    ):
        ended = await command("export", *arguments, **role_variables(filled))
        assert sentence in ended.refusal()


async def test_export_pages_are_transactions_of_their_own(filled: str) -> None:
    from compose.configuration import layers  # noqa: PLC0415
    from engine.runtime.setting_layers import settings  # noqa: PLC0415

    async with command_database(as_role(filled, "serving"), as_role(filled, "jobs")) as opened:
        with pytest.raises(RefusedError):
            await anext(
                store_module.PostgresExport(opened, {}, Sealing()).pages("acme", "task", None, None, print)
            )
        domains = settings(layers(None, {}, of_system=False)).domains
        pages = store_module.PostgresExport(opened, domains, Sealing()).pages(
            "acme", "task", None, None, print
        )
        assert len(await anext(pages)) == 200
        idle = "SELECT state FROM pg_stat_activity"
        idle += " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert rows(filled, idle) == [("idle",)]
        assert sum([len(page) async for page in pages]) == 2300


async def test_export_goes_on_behind_sealed_data_that_cannot_be_opened_and_names_them(
    command: Run, dsn: str, tmp_path: Path
) -> None:
    add_tenants(dsn, "acme")
    values = ('{"n":1}', '"AQAAAAk="', '{"n":3}')
    execute(
        dsn,
        *(
            "INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data)"
            f" VALUES (1, 'voice', 'e{at}', {20000 * _DAY_US}, 5, 'phone', '{value}')"
            for at, value in enumerate(values)
        ),
        _RECORD.format(
            tenant=1, domain="task", id="'r1'", seq=1, at_us=0, data=f"'{values[1]}'::json", source="tenants"
        ),
    )
    file = tmp_path / "voice.jsonl"
    ended = await command("export", "--tenant", "acme", "--domain", "voice", "--output", str(file))
    assert "rows whose sealed data cannot be opened, and has all others: 1 (e1)" in ended.refusal()
    assert [one["id"] for one in _lines(file.read_text())] == ["e0", "e2"]
    ended = await command("export", "--tenant", "acme", "--domain", "task")
    assert ended.status == 1
    assert "and has all others: 1 (r1); `run.py keys verify --tenant acme` looks" in ended.err


@pytest.mark.parametrize(("behind", "count"), [("", 2500), (" | head -n 1", 1)])
def test_export_on_a_terminal_tells_how_far_it_is_and_a_reader_may_leave(
    filled: str, behind: str, count: int
) -> None:
    ours, theirs = pty.openpty()
    ended = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} run.py export --tenant acme --domain task{behind}"],
        cwd=_ROOT,
        env={**os.environ, **role_variables(filled)},
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=False,
    )
    os.close(theirs)
    told = os.read(ours, 10_000).decode()
    os.close(ours)
    assert len(_lines(ended.stdout.decode())) == count
    assert ("\r2,500 rows" in told) is (not behind)
    assert "Error" not in told
    assert ended.returncode == 0


#: What a text begins with that a spreadsheet calculates.
_BEGINS_FORMULAS = set("=+-@\t\r\n\0\uff1d\uff0b\uff0d\uff20")
_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner),
    max_leaves=5,
)


@given(st.lists(st.none() | st.dictionaries(_TEXT, _JSON), max_size=4))
def test_export_csv_reads_back_as_the_same_values(datas: list[dict[str, object] | None]) -> None:
    written = [
        json_line(Row({"id": str(n)}, None if data is None else compact(json.dumps(data, indent=1).encode())))
        for n, data in enumerate(datas)
    ]
    assert all(line.count(b"\n") == 1 for line in written)
    form = CsvForm()
    for line in written:
        form.note(line)
    text = form.heading() + "".join(form.write(written))
    heading, *found = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    assert len(found) == len(datas)
    for cells, data in zip(found, datas, strict=True):
        expected = {name: value for name, value in (data or {}).items() if value is not None}
        shown = dict(zip(heading[1:], cells[1:], strict=True))
        for name, value in expected.items():
            cell = shown.pop(f"data.{name}")
            if isinstance(value, str):
                assert cell == (f"'{value}" if value.lstrip("'")[:1] in _BEGINS_FORMULAS else value)
            else:
                assert json.loads(cell) == value
        assert not any(shown.values())


@pytest.mark.parametrize(("form", "nothing"), [("jsonl", None), ("csv", "")])
async def test_export_of_a_change_whose_device_sent_no_time_leaves_sent_at_empty(
    command: Run, dsn: str, form: str, nothing: str | None
) -> None:
    add_tenants(dsn, "acme")
    record = _RECORD.format(
        tenant="tenant_id", domain="task", id="'t1'", seq=1, at_us=0, data="'{}'", source="tenants"
    )
    execute(dsn, record, f"UPDATE records SET sent_at_us = {EARLIEST_US}")
    out = (await command("export", "--tenant", "acme", "--domain", "task", "--format", form)).out
    row = _lines(out)[0] if form == "jsonl" else next(csv.DictReader(io.StringIO(out)))
    assert (row["at"], row["sent_at"]) == ("1970-01-01T00:00:00Z", nothing)
