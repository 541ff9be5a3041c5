"""No header of a request is left to a grammar of mail: it has backtracked for half a minute over 18 KB."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import handlers

#: Of a request, what reads its ``Content-Type`` or ``Content-Disposition`` with the library's parser.
_BY_MAIL = {"content_type", "charset", "content_disposition", "text", "json", "post", "multipart"}


@pytest.mark.parametrize("module", [path.name for path in Path(handlers.__path__[0]).glob("*.py")])
def test_what_a_request_brings_is_not_asked_of_the_library(module: str) -> None:
    path = Path(handlers.__path__[0]) / module
    found = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in _BY_MAIL
        and ast.unparse(node.value) in ("request", "self._request")
    ]
    assert found == []
