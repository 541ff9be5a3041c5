"""What devices sent, on its way out: cells of CSV, lines of terminals and logs, labels of metrics."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Final

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.operate.export import CsvForm, Row, json_line
from engine.runtime.metrics import Value
from handlers.commands.terminal.tables import table
from handlers.operate import logging as logs
from handlers.operate.exposition import pieces
from handlers.operate.printing import json_text, say
from tests.harness.in_process_server import ON_SHARED
from tests.harness.ws_device import put
from tests.security.arena import Arena
from tests.security.catalogue import against
from tests.security.texts import CONTROLS, TEXTS

EVERY: Final = TEXTS | CONTROLS
EVERY_TEXT = pytest.mark.parametrize("text", EVERY.values(), ids=EVERY)

#: Texts that a spreadsheet calculates, or did in some version.
FORMULAS: Final = {
    "a formula": '=HYPERLINK("http://127.0.0.1/?"&A1)',
    "a command": "=cmd|' /C calc'!A0",
    "an external sheet": "='file:///etc/passwd'#$passwd.A1",
    "a plus": "+1+cmd|' /C calc'!A0",
    "a minus": "-2+3+cmd|' /C calc'!A0",
    "an at": "@SUM(1+1)*cmd|' /C calc'!A0",
    "a tab": "\t=1+1",
    "a carriage return": "\r=1+1",
    "a line feed": "\n=1+1",
    "a NUL": "\0=1+1",
    "a wide equals sign": "\uff1d1+1",
    "a wide at": "\uff20SUM(1)",
    "behind apostrophes": "''=1+1",
    "a telephone number": "+49301234",
    "two cells": '","=1+1',
    "two lines": "a\r\n=1+1",
}
#: What no cell begins with.
_BEGINS: Final = re.compile("[=+\\-@\t\r\n\0\uff1d\uff0b\uff0d\uff20]")


def _read_back(cell: str) -> str:
    """Undo the apostrophe, as docs/operations.md tells programs to."""
    return cell[1:] if cell.startswith("'") and _BEGINS.match(cell.lstrip("'")) else cell


@pytest.mark.parametrize("place", ["an id", "a device", "a value", "a field"])
@pytest.mark.parametrize("text", FORMULAS.values(), ids=FORMULAS)
@against("A05:2025", "V1.2")
def test_csv_cell_is_no_formula(text: str, place: str) -> None:
    fixed = {"id": text if place == "an id" else "a", "device_id": text if place == "a device" else "b"}
    data = {text if place == "a field" else "f": text if place == "a value" else 1}
    line = json_line(Row(fixed, msgspec.Raw(msgspec.json.encode(data))))
    form = CsvForm()
    form.note(line)
    written = form.heading() + "".join(form.write([line]))
    rows = list(csv.reader(io.StringIO(written, newline="")))
    assert [len(row) for row in rows] == [3, 3]
    for cell in rows[0] + rows[1]:
        assert not _BEGINS.match(cell)
    read = [[_read_back(cell) for cell in row] for row in rows]
    assert read == [
        ["id", "device_id", f"data.{next(iter(data))}"],
        [*fixed.values(), str(data.popitem()[1])],
    ]


#: What moves a cursor, changes a title, answers in the person's place, hides or turns text around.
_ACTIVE: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069\ufeff]")
SEQUENCES: Final = {
    **EVERY,
    "a title": "\x1b]0;root@host\x07",
    "a link": "\x1b]8;;http://127.0.0.1\x1b\\click\x1b]8;;\x1b\\",
    "a question that the terminal answers": "\x1b[6n\x1b[c\x1bP+q544e\x1b\\",
    "a clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "a line up": "\x1b[1A\x1b[2Kok",
    "a return": "revoked\rok     ",
    "a backspace": "no\b\bok",
    "C1": "\x9b2J\x9d0;a\x9c",
    "another direction": "\u202egnp.exe",
    "nothing seen": "ph\u200bone\ufeff",
    "another line": "a\u2028b\u2029c\x85d",
}


@pytest.mark.parametrize("text", SEQUENCES.values(), ids=SEQUENCES)
@against("A05:2025", "V1.3")
def test_text_on_a_terminal_does_nothing(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table([(text, "b"), ("a", text)], ("name", "value"))
    table([("a", text)], ("name", "value"), wrapped=True)
    say(f"there is no tenant {text}", err=True)
    say(json_text(json.dumps({text: text}, ensure_ascii=False).encode()).replace("\n", " "))
    shown = capsys.readouterr()
    assert not _ACTIVE.search(shown.out + shown.err)
    assert shown.err.count("\n") == 1


@EVERY_TEXT
@against("A09:2025", "V16.4")
def test_text_in_a_label_stays_in_its_label(text: str) -> None:
    metric = Value("counter", "tidemark_things", "Things", {(text, "b"): 1, ("other", text): 2}, ("a", "b"))
    page = "".join(pieces([metric], worker=1))
    (family,) = text_string_to_metric_families(page)
    found = {(one.labels["a"], one.labels["b"]): one.value for one in family.samples}
    assert found == {(text, "b"): 1, ("other", text): 2}
    assert page.count("\n") - page.count("\n#") == 3


@ON_SHARED
@against("A09:2025", "V16.2")
async def test_texts_of_devices_are_no_labels_and_no_log_lines(
    arena: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a device says is in no metric, and in no log line but escaped."""
    phone = await arena.running.device("phone")
    async with arena.holds("records", "sync_idempotency_record", "tenant_counters", "quarantine"):
        for text in EVERY.values():
            await phone.ask("heartbeat", network=text, app_version=text)
            await phone.push(put(text, None, **{text: text}), {"domain": text, "id": text, "op": text})
            await arena.ask("GET", "/v1/changes", "a." + text.encode().hex())
        page = (await arena.ask("GET", "/metrics")).body.decode()
    shown = capsys.readouterr().out
    for text in EVERY.values():
        assert text not in page
        assert text not in shown
    assert list(text_string_to_metric_families(page))


@EVERY_TEXT
@against("A09:2025", "V16.4")
def test_text_in_a_log_line_stays_in_its_field(text: str) -> None:
    """A line is one object, whatever is in its fields, and a person's form of it does nothing."""
    line = logs._as_json(None, "info", {"event": "handshake_refused", "client": text, "message": text})
    assert line.count(b"\n") == 0
    assert json.loads(line) == {"event": "handshake_refused", "client": text, "message": text}
    plain = logs._without_controls(None, "info", {"event": "handshake_refused", "client": text})
    assert not _ACTIVE.search(str(plain["client"]))
