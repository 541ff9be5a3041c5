"""No header of a request is left to a grammar of mail: it has backtracked for half a minute over 18 KB."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

import handlers
from engine.wire.errors import SyncError
from handlers.http.errors import error_body
from handlers.http.headers import file_name

FOLDER = Path(handlers.__path__[0])
MODULES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py"))
#: Of a request, what reads its ``Content-Type`` or ``Content-Disposition`` with the library's parser.
_BY_MAIL = {"content_type", "charset", "content_disposition", "text", "json", "post", "multipart"}


@pytest.mark.parametrize("module", MODULES)
def test_headers_are_not_parsed_by_the_library(module: str) -> None:
    found = [
        ast.unparse(node)
        for node in ast.walk(ast.parse((FOLDER / module).read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in _BY_MAIL
        and ast.unparse(node.value) in ("request", "self._request")
    ]
    assert found == []


@pytest.mark.parametrize("module", MODULES)
def test_headers_no_module_imports_a_mail_parser(module: str) -> None:
    mail = r"^(?:from|import) email\b(?!\.utils import format_datetime$)"
    assert not re.search(mail, (FOLDER / module).read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("attachment; filename=a.png", "a.png"),
        ("attachment; filename=a.png; ", "a.png"),
        ("attachment; filename=a photo.png", None),
        ("attachment", None),
        ("", None),
        ('form-data; a=b ;\tFileName = "a;\\"b\\".png" ', 'a;"b".png'),
        ("x; filename*=utf-8'de'%C3%9C%20a.png; filename=u.png", "Ü a.png"),
        ("x; filename=\"a; filename*=UTF-8''b.png\"", "a; filename*=UTF-8''b.png"),
        ("x; filename*=UTF-8''%ff.png; filename=a.png", "a.png"),
        ('x; filename="Ü.png"', "Ü.png"),
    ],
)
def test_file_name_of_each_disposition_is_read(disposition: str, name: str | None) -> None:
    assert file_name(disposition) == name


def test_error_message_with_bytes_that_are_no_utf8_is_escaped() -> None:
    told = msgspec.json.decode(error_body(SyncError("malformed", "not \udcff, ü"), None))
    assert told["message"] == "not \\udcff, ü"
