"""The documentation is true: pages are made anew, examples are run, tables are held against the code."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import msgspec
import pytest

from bench.cli import bench
from bench.client.simulate import simulate
from bench.harness.clusters import role_variables
from bench.smoke.command import smoke
from docs.generate import pages
from engine.feed import cursor
from engine.model.audit import EVENTS, EventName
from engine.model.domains import OUTCOMES, Policy
from engine.plan import held_changes
from engine.wire import messages, nesting, values
from engine.wire.close_codes import GOODBYES, CloseCode
from engine.wire.codec import JSON
from engine.wire.errors import ERRORS
from engine.wire.messages import Item, Request, Sync
from handlers.sync import connection, reads
from run import cli
from tests.book.rows import table
from tests.harness.in_process_server import Serve
from tests.harness.ws_device import SECRET, Json

ROOT = Path(__file__).parents[2]
ROOMS = ("compose", "engine", "handlers", "storage")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PICTURES = sorted((ROOT / "docs").rglob("*.svg"))
CODE = [
    ROOT / "run.py",
    *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))),
]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(text: str) -> list[tuple[str, str]]:
    """The blocks of a page: their languages, empty where none is named, and their texts."""
    return [(one[1], one[2]) for one in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


# -- pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "text"), list(pages()), ids=lambda value: getattr(value, "name", ""))
def test_generated_page_equals_its_table(path: Path, text: str) -> None:
    assert path.read_text("utf-8") == text, "stale: run python -m docs.generate"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_named_files_settings_and_metrics_exist(page: Path) -> None:
    rooms = ("compose", "deploy", "engine", "handlers", "storage", "bench", "tests", "docs")
    programs = {path.name for room in rooms for path in (ROOT / room).rglob("*.py")}
    programs |= {path.name for path in ROOT.glob("*.py")}
    sections = tomllib.loads((ROOT / "config.toml").read_text("utf-8"))
    code = "".join(path.read_text("utf-8") for path in CODE)
    for name in re.findall(r"`([\w./]+)`", page.read_text("utf-8")):
        section, _, key = name.partition(".")
        if name.startswith(tuple(f"{room}/" for room in rooms)):
            assert (ROOT / name).exists(), name
        elif name.endswith(".py"):
            assert name in programs, name
        elif section in sections and key:
            assert key in sections[section], name
        elif name.startswith("tidemark_"):
            assert f'"{name.removesuffix("_total")}"' in code, name


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_picture_named_files_exist(picture: Path) -> None:
    for name in re.findall(r"\w+(?:/\w+)+\.py", picture.read_text("utf-8")):
        assert (ROOT / name).is_file(), name


# -- command lines ----------------------------------------------------------------------------

#: How the line of a page calls the program: with the installation's Python, from the checkout.
_CALL = re.compile(r"(?:^|[\s(])\.venv/bin/python run\.py (.*)")


def command_lines(page: Path) -> list[str]:
    """The calls of the program in a page's blocks, without what the shell does around them."""
    found = []
    for _, text in fences(page.read_text("utf-8")):
        for line in text.replace("\\\n", " ").splitlines():
            assert not re.search(r"(?<!\.venv/bin/python )\brun\.py ", line), f"no program: {line}"
            if call := _CALL.search(line.split("  #")[0]):
                found.append(re.split(r" *(?:[|)&;]|>)", call[1])[0])
    return found


CALLS = [(page, line) for page in PAGES for line in command_lines(page)]


@pytest.mark.parametrize(("page", "line"), CALLS, ids=[f"{page.name}: {line}" for page, line in CALLS])
def test_page_command_line_accepted_by_the_program(
    page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page.exists()
    for name in ("merged.json", "corrected.json"):  # that a person would have written
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line.replace('"$', '"'))
    command: click.Command = cli
    while isinstance(command, click.Group) and not (
        command.invoke_without_command and arguments[0] not in command.commands
    ):
        command = command.commands[arguments.pop(0)]
    if command.name in ("bench", "simulate", "smoke"):
        command = {"bench": bench, "simulate": simulate, "smoke": smoke}[command.name]
    with command.make_context(command.name, arguments):
        pass  # and the files that it has opened are closed


def test_page_command_lines_found() -> None:
    assert len(CALLS) > 30


# -- dependencies -----------------------------------------------------------------------------


def test_dependencies_page_explains_exactly_the_direct_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    run_time, develop, _, stale, _ = page.split("\n## ")[1:]
    for section, wanted in (
        (run_time, project["dependencies"]),
        (develop, project["optional-dependencies"]["dev"]),
    ):
        named = [row[0] for row in table(section, "package")]
        assert {name for cell in named for name in cell.replace(" with ", " ").split(", ")} == _names(wanted)
    pinned = "\n" + (ROOT / "deploy" / "requirements-dev.txt").read_text("utf-8")
    for kept, *_ in table(stale, "kept"):
        for name in kept.removesuffix(" (development)").split(", "):
            assert f"\n{name}==" in pinned, f"{name} is not installed any more: take its line out"


#: What the extras of our dependencies bring, by the names that people know.
_EXTRAS = {"PyJWT[crypto]": {"PyJWT", "cryptography"}, "redis[hiredis]": {"redis", "hiredis"}}


def _names(requirements: list[str]) -> set[str]:
    names: set[str] = set()
    for requirement in requirements:
        name = re.split(r"[<>=~! ]", requirement)[0]
        names |= _EXTRAS.get(name, {name})
    return names


# -- log events -------------------------------------------------------------------------------


def test_logs_page_lists_exactly_the_events_levels_and_fields() -> None:
    page = (ROOT / "docs" / "logs.md").read_text("utf-8")
    listed = {
        event: (set(levels.split(", ")), {field for field in fields.split(", ") if field})
        for event, levels, fields, _ in table(page, "event")
    }
    logged: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    open_ended: set[str] = set()
    for path in CODE:
        for event, level, fields, more in _logged(ast.parse(path.read_text("utf-8")), path.name):
            logged[event][0].update(level)
            logged[event][1].update(fields)
            if more:
                open_ended.add(event)
    assert listed.keys() == logged.keys()
    for event, (levels, fields) in logged.items():
        assert listed[event][0] == levels, event
        if event in open_ended:
            assert listed[event][1] >= fields, event
        else:
            assert listed[event][1] == fields, event


def test_audit_events_are_all_documented_and_each_is_written_somewhere() -> None:
    assert set(EVENTS) == set(get_args(EventName))
    assert all(rule.meaning for rule in EVENTS.values())
    table_of_events = ROOT / "engine" / "model" / "audit.py"
    written = {
        node.value
        for path in CODE
        if path != table_of_events
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(EVENTS) - written == set()


_LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def _logged(tree: ast.Module, name: str) -> Iterator[tuple[str, set[str], set[str], bool]]:
    """Event, levels and fields of each call of a logger, and whether ``**`` gives it more."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(value=ast.Name(id="_log" | "log"), attr=level) if level in _LEVELS:
                levels = {"error" if level == "exception" else level}
            case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id="log"), _]):
                levels = {"warning", "error"}
                level = ""
            case _:
                continue
        event = node.args[0]
        assert isinstance(event, ast.Constant), f"{name}:{node.lineno}: the name of an event is a constant"
        assert isinstance(event.value, str)
        given = {keyword.arg for keyword in node.keywords}
        fields = {field for field in given if field is not None and field != "exc_info"}
        if "exc_info" in given or level == "exception":
            fields.add("exception")
        yield event.value, levels, fields, None in given


def test_loggers_have_the_searched_names() -> None:
    for path in CODE:
        text = path.read_text("utf-8")
        found = re.findall(r"\b_?log = structlog\.get_logger\(\)", text)
        assert text.count("get_logger(") == len(found), path


# -- the wire contract ------------------------------------------------------------------------

_ANSWERS: dict[str, Any] = {
    str(kind.__struct_config__.tag): kind
    for kind in (
        messages.Welcome,
        messages.HeartbeatAck,
        messages.ConflictList,
        messages.DomainList,
        messages.Resolved,
        messages.Unsubscribed,
        messages.PoliciesChanged,
        messages.Goodbye,
        messages.TelemetryAck,
    )
}
_REQUESTS: dict[str, Any] = {kind.__struct_config__.tag: kind for kind in get_args(Request)}


def examples() -> list[Json]:
    """All messages of the page's examples; what is inside of ``data`` is anybody's and left out."""
    return [
        json.loads(text, object_hook=_without_data)
        for language, text in _FENCE.findall(PROTOCOL)
        if language == "json"
    ]


def _without_data(found: Json) -> Json:
    return found | {"data": None} if "data" in found else found


def test_protocol_page_every_kind_of_message_has_an_example() -> None:
    shown = {example["type"] for example in examples()}
    assert shown == _ANSWERS.keys() | _REQUESTS.keys() | {"synced", "changes", "error"}


@pytest.mark.parametrize("example", examples(), ids=lambda example: str(example["type"]))
def test_protocol_page_example_is_a_message(example: Json) -> None:
    kind = example["type"]
    if kind in _REQUESTS and not (kind == "conflicts" and "conflicts" in example):
        JSON.decode(msgspec.json.encode(example))
        _has_known_fields(example, _REQUESTS[kind])
        if kind == "sync":
            for item in example["items"]:
                msgspec.convert(item, Item)
                _has_known_fields(item, Item)
    elif kind == "synced":
        assert example.keys() == {"type", "id", "replayed", "results"}
        for result in example["results"]:
            assert _through(result, messages.Result) == result
    elif kind == "changes":
        assert example.keys() == {"type", "id", "cursor", "more", "changes"}
        for change in example["changes"]:
            for file in change.pop("attachments", ()):
                assert _through(file, messages.Attachment) == file
            assert _through(change, messages.Change) == change
    elif kind == "error":
        assert example["retryable"] is ERRORS[example["code"]].retryable
    else:
        assert _through(example, _ANSWERS[kind]) == example


def _through(example: Json, kind: Any) -> Any:
    """What is left of an example when the code's own message has taken it in and given it out again."""
    return msgspec.to_builtins(msgspec.convert(example, kind))


def _has_known_fields(example: Json, kind: Any) -> None:
    assert example.keys() - {"type"} <= set(kind.__struct_fields__)


def test_protocol_page_names_every_field() -> None:
    kinds = [
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    ]
    assert len(kinds) > 20
    for kind in kinds:
        for field in kind.__struct_fields__:
            assert f"`{field}`" in PROTOCOL or f'"{field}":' in PROTOCOL, f"{kind.__name__}.{field}"


def test_protocol_page_explains_every_status_policy_and_reason() -> None:
    statuses = {row[0] for row in table(PROTOCOL, "status")}
    assert statuses == set(get_args(messages.Status))
    policies = {row[0]: row[1] for row in table(PROTOCOL, "policy")}
    assert policies == {policy: text.replace("`", "") for policy, text in OUTCOMES.items()}
    assert policies.keys() == set(get_args(Policy))
    reasons = {reason for row in table(PROTOCOL, "reason") for reason in row[0].split(", ")}
    assert reasons == set(get_args(get_type_hints(messages.Goodbye)["reason"]))


def test_protocol_page_lists_exactly_the_routes() -> None:
    text = (ROOT / "handlers" / "sync" / "http_api.py").read_text("utf-8")
    served = {f"{method.upper()} {path}" for method, path in re.findall(r'web\.(\w+)\("(/.*?)"', text)}
    listed = {row[0].replace("CONFLICT_ID", "{conflict_id}") for row in table(PROTOCOL, "request")}
    assert listed == served


def test_protocol_page_close_codes_equal_the_table() -> None:
    listed = [tuple(row) for row in table(PROTOCOL, "close code")]
    assert listed == [
        (str(int(one)), one.meaning.replace("`", ""), one.again)
        for one in CloseCode
        if one is not CloseCode.NORMAL
    ]


def test_protocol_page_goodbyes_equal_the_table() -> None:
    rows = table(PROTOCOL, "reason")
    listed = {reason: int(closes[:4]) for reasons, closes in rows for reason in reasons.split(", ")}
    assert listed == GOODBYES


def test_code_sends_close_codes_of_the_table_only() -> None:
    for path in CODE:
        sent = re.findall(r"(?:WebSocketError|\.close)\((\d{4})", path.read_text("utf-8"))
        assert not sent, f"{path}: take it from engine/wire/close_codes.py"


@pytest.mark.parametrize(
    ("what", "limit"),
    [
        ("messages in a row that are sent in spite of", connection.MAX_RATE_IGNORED),
        ("malformed messages in a row", connection.MAX_MALFORMED),
        ("nesting", nesting.MAX_DEPTH),
        ("characters of a record's or event's id", values.MAX_ID_CHARS),
        ("characters of a key", 128),
        ("names in domains", cursor.MAX_DOMAINS),
        ("open subscriptions", reads.MAX_SUBSCRIPTIONS),
        ("sync and resolve messages", connection.MAX_IN_FLIGHT),
        ("other requests", connection.MAX_READS),
        ("changes that wait in one conflict", held_changes.MAX_CHANGES),
    ],
)
def test_protocol_page_limit_equals_the_code(what: str, limit: int) -> None:
    [row] = [row for row in table(PROTOCOL, "what") if row[0].startswith(what)]
    assert row[1] == str(limit)


def test_protocol_page_key_length_equals_the_code() -> None:
    msgspec.json.decode(_keyed("k" * 128), type=Sync)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(_keyed("k" * 129), type=Sync)


def _keyed(key: str) -> bytes:
    return msgspec.json.encode({"type": "sync", "key": key, "items": []})


# -- the README -------------------------------------------------------------------------------


async def test_readme_first_session_runs_as_written(serve: Serve) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    readme = (ROOT / "README.md").read_text("utf-8")
    session = readme[readme.index("\n## A first session\n") : readme.index("\n## What it measures\n")]
    [(_, start), *blocks] = _FENCE.findall(session)
    assert start == "make run\n"
    script, expected = "set -e\n", []
    for language, text in blocks:
        if language == "sh":
            script += text
        else:
            script += "printf '\\036'\n"
            expected.append(text)
    running = await serve()
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        script.replace(".venv/bin/python", sys.executable),
        cwd=ROOT,
        env={
            **os.environ,
            "TIDEMARK": running.url,
            **role_variables(running.dsn),
            "TIDEMARK__AUTH__SECRET": SECRET.decode(),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    printed = said.decode().split("\x1e")
    assert len(printed) == len(expected) + 1
    for text, shown in zip(printed, expected, strict=False):
        pattern = shown.replace("the embedded database of …/.data", "…")
        assert re.fullmatch(re.escape(pattern).replace("…", '[^"]*'), text), f"{text}\nis not\n{pattern}"
