"""Header fields by the grammar of RFC 9110: every spelling of a field is read as what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from handlers.http.expect import _is_met
from handlers.http.headers import (
    combined,
    content_coding,
    elements,
    is_known,
    media_type,
    prefers_msgpack,
    qualities,
    takes_gzip,
    tokens,
)
from handlers.http.tokens import offered_subprotocols, token_of
from handlers.uploads.ranges import Part, wanted_part

_TCHAR = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TOKEN = st.text(_TCHAR, min_size=1, max_size=8)
BLANKS = st.sampled_from(["", " ", "\t", " \t "])
QUOTED = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8).map(
    lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
)
NAME = TOKEN.filter(lambda name: name.lower() != "q")
PARAMETER = st.builds("{};{}{}={}".format, BLANKS, BLANKS, NAME, TOKEN | QUOTED)
WEIGHT = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


@st.composite
def lines(draw: st.DrawFn, of: list[str]) -> list[str]:
    """Spell a list: blanks and empty elements between, cut into lines anywhere between two elements."""
    spelled, line = [], ""
    for index, element in enumerate(of):
        if index and draw(st.booleans()):
            spelled.append(line)
            line = ""
        elif index:
            line += ","
        line += draw(st.sampled_from(["", ",", " , "])) + draw(BLANKS) + element + draw(BLANKS)
    return [*spelled, line]


def headers(name: str, spelled: list[str]) -> CIMultiDict[str]:
    """A request with these lines of a name."""
    return CIMultiDict([(name, line) for line in spelled])


def any_case(draw: Callable[..., bool], text: str) -> str:
    """Spell letters large or small."""
    return "".join(letter.upper() if draw(st.booleans()) else letter for letter in text)


@given(st.data())
def test_elements_are_split_at_commas_outside_of_quotes(data: st.DataObject) -> None:
    said = data.draw(st.lists(st.builds("{}{}".format, TOKEN, PARAMETER | st.just("")), max_size=5))
    spelled = data.draw(lines(said))
    assert elements(combined(headers("X", spelled), "x")) == said


@given(st.data())
def test_tokens_in_any_case_and_any_lines_are_the_same(data: st.DataObject) -> None:
    said = data.draw(st.lists(TOKEN, max_size=5))
    spelled = headers("Connection", data.draw(lines(said)))
    assert tokens(spelled, "connection") == [one.lower() for one in said]


@st.composite
def weighted(draw: st.DrawFn, names: list[str]) -> tuple[dict[str, float], list[str]]:
    """What a client takes, and one spelling of it."""
    said: dict[str, float] = {}
    spelled: list[str] = []
    for name in draw(st.lists(st.sampled_from(names), unique=True)):
        weight = draw(WEIGHT)
        text = any_case(draw, name) + "".join(draw(st.lists(PARAMETER, max_size=2)))
        if weight < 1 or draw(st.booleans()):
            digits = draw(st.sampled_from([f"{weight:g}", f"{weight:.3f}"]))
            text += f"{draw(BLANKS)};{draw(BLANKS)}{any_case(draw, 'q')}={digits}"
        said[name] = weight
        spelled.append(text)
    return said, draw(lines(spelled))


CODINGS = ["gzip", "x-gzip", "deflate", "br", "identity", "*"]
RANGES = ["application/json", "application/msgpack", "application/*", "text/html", "*/*"]


@given(weighted(CODINGS))
def test_takes_gzip_if_named_and_identity_is_not_preferred(
    taken: tuple[dict[str, float], list[str]],
) -> None:
    said, spelled = taken
    fields = headers("Accept-Encoding", spelled)
    assert qualities(combined(fields, "accept-encoding")) == said
    named = [said[name] for name in ("gzip", "x-gzip") if name in said]
    weight = max(named) if named else said.get("*", 0)
    assert takes_gzip(fields) is (weight > 0 and weight >= said.get("identity", 0))


@given(weighted(RANGES))
def test_prefers_msgpack_if_named_and_json_is_not_preferred(
    taken: tuple[dict[str, float], list[str]],
) -> None:
    said, spelled = taken
    json = next((said[name] for name in (RANGES[0], RANGES[2], RANGES[4]) if name in said), 0)
    named = said.get("application/msgpack", 0)
    assert prefers_msgpack(headers("Accept", spelled)) is (named > 0 and named >= json)


@pytest.mark.parametrize(
    ("accept", "msgpack"),
    [
        ("application/msgpack", True),
        ("Application/MsgPack", True),
        ("application/msgpack;q=0", False),
        ("application/msgpack;q=0.000", False),
        ("application/json, application/msgpack", True),
        ("application/json;q=0.9, application/msgpack;q=0.8", False),
        ("application/msgpack;q=0.5, */*;q=0.1", True),
        ('application/msgpack;v=";q=0"', True),
        ("application/msgpackish", False),
        ("text/application/msgpack", False),
        ("application/msgpack;q=2", False),
        ("application/msgpack;q=", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_prefers_msgpack_each_header_has_its_outcome(accept: str, msgpack: bool) -> None:
    assert prefers_msgpack(headers("Accept", [accept])) is msgpack


@pytest.mark.parametrize(
    ("said", "coding"),
    [
        ([], ""),
        ([""], ""),
        (["identity"], ""),
        (["gzip"], "gzip"),
        (["X-GZIP"], "gzip"),
        ([" Gzip "], "gzip"),
        (["identity, gzip"], "gzip"),
        (["identity", "gzip"], "gzip"),
        ([",gzip,"], "gzip"),
        (["Deflate"], "deflate"),
        (["br"], "br"),
        (["gzip, gzip"], "gzip, gzip"),
        (["gzip", "deflate"], "gzip, deflate"),
    ],
)
def test_content_coding_each_header_has_its_outcome(said: list[str], coding: str) -> None:
    assert content_coding(headers("Content-Encoding", said)) == coding


_TOKEN68 = st.from_regex(r"[A-Za-z0-9._~+/-]{1,12}={0,2}", fullmatch=True)


@given(st.data())
def test_token_of_bearer_in_any_case_and_after_any_blanks_is_read(data: st.DataObject) -> None:
    token = data.draw(_TOKEN68)
    said = any_case(data.draw, "bearer") + " " * data.draw(st.integers(1, 3)) + token
    assert token_of(headers("authorization", [said])) == token


@given(st.data())
def test_token_of_subprotocols_in_any_lines_is_read(data: st.DataObject) -> None:
    token = data.draw(st.text("abcXYZ019._-", min_size=1, max_size=8))
    others = data.draw(st.lists(TOKEN.filter(lambda name: not name.startswith("bearer.")), max_size=3))
    said = [*others, f"bearer.{token}"]
    fields = headers("Sec-WebSocket-Protocol", data.draw(lines(said)))
    assert token_of(fields) == token
    assert offered_subprotocols(fields) == said


@given(st.data())
def test_media_type_has_no_parameters(data: st.DataObject) -> None:
    kind = f"{data.draw(TOKEN)}/{data.draw(TOKEN)}"
    parameters = "".join(data.draw(st.lists(PARAMETER, max_size=2)))
    fields = headers("Content-Type", [kind + parameters])
    request = make_mocked_request("POST", "/", headers=fields)
    assert media_type(request) == kind.lower()


@given(st.data())
def test_expectation_of_100_continue_alone_is_met(data: st.DataObject) -> None:
    said = data.draw(st.lists(st.just("100-continue") | TOKEN, max_size=3))
    spelled = data.draw(lines([any_case(data.draw, one) for one in said]))
    request = make_mocked_request("POST", "/", headers=headers("Expect", spelled))
    assert _is_met(request) is all(one.lower() == "100-continue" for one in said)


# -- what files are asked with ------------------------------------------------------------------

_ABC = '"abc"'


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("", False),
        (_ABC, True),
        (f'W/{_ABC}, "x"', True),
        (f'"x",{_ABC}', True),
        ("*", True),
        ('"x"', False),
        ("abc", False),
        ('"x" "abc', False),
    ],
)
def test_is_known_if_none_match(header: str, known: bool) -> None:
    assert is_known(header, _ABC) is known


_ETAGC = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters='"\x7f'), max_size=6
)
TAG = st.builds('{}"{}"'.format, st.sampled_from(["", "W/"]), _ETAGC)


@given(st.data())
def test_is_known_with_the_files_tag_weak_or_strong(data: st.DataObject) -> None:
    said = data.draw(st.lists(TAG, max_size=4))
    own = f'"{data.draw(_ETAGC)}"'
    if data.draw(st.booleans()):
        said.insert(0, data.draw(st.sampled_from(["", "W/"])) + own)
    spelled = headers("If-None-Match", data.draw(lines(said)))
    known = own in [tag.removeprefix("W/") for tag in said]
    assert is_known(combined(spelled, "if-none-match"), own) is known


@given(st.data())
def test_wanted_part_of_one_range_is_that_part_of_several_the_whole(data: st.DataObject) -> None:
    bounds = st.tuples(st.integers(0, 9), st.integers(0, 20)).filter(lambda pair: pair[0] <= pair[1])
    said = data.draw(st.lists(bounds, min_size=1, max_size=3))
    spelled = data.draw(lines([f"{first}-{last}" for first, last in said]).filter(lambda one: len(one) == 1))
    unit = any_case(data.draw, "bytes")
    first, last = said[0]
    part = Part(first, min(last, 9) - first + 1) if len(said) == 1 else "whole"
    assert wanted_part(f"{unit}={spelled[0]}", None, '"a"', 10) == part


# -- time ---------------------------------------------------------------------------------------

#: What has patterns look at the rest of a line again and again, if they do. In squares a line takes hours.
_CHARS = 300_000
_LONG = ['"', '\\"', 'a"', ",", " ", "\t, ", ";", "; ", ";q=", ';a="', 'W/"', "0-", "-"]


@pytest.mark.parametrize("piece", _LONG)
def test_headers_long_field_is_read_in_linear_time(piece: str) -> None:
    for begun in ("", "a", '"'):
        for ended in ("", "x", "\\"):
            field = begun + piece * (_CHARS // len(piece)) + ended
            assert isinstance(qualities(field), dict)
            assert is_known(field, "no tag") is False
            assert wanted_part("bytes=" + field, None, '"a"', 10) == "whole"
