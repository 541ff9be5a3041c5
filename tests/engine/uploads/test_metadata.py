"""What an upload says of itself: taken apart, put together, and which of it is refused in which words."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.filetypes.types import UNDECLARED, FileTypes
from engine.runtime.setting_layers import settings
from engine.uploads.metadata import Described, describe, format_metadata, parse_metadata
from engine.wire.errors import SyncError
from engine.wire.values import MAX_ID_CHARS
from tests.engine.runtime.test_settings import DEFAULTS

TYPES = FileTypes(settings([DEFAULTS]).uploads)
SAID = {"filename": "Tor.jpg", "filetype": "image/jpeg", "domain": "task", "record_id": "pump-3"}
SHA256 = "0123456789abcdef" * 4
KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","), min_size=1)


def coded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def checked(**changed: str | None) -> Described:
    """Check what is said, changed in some keys or without them."""
    values = {key: value for key, value in {**SAID, **changed}.items() if value is not None}
    return describe(values, TYPES, {"task", "ticket"}.__contains__)


def refusal(**changed: str | None) -> tuple[str, str]:
    """Give code and sentence of a refusal."""
    with pytest.raises(SyncError) as refused:
        checked(**changed)
    return refused.value.code, refused.value.message


@given(st.dictionaries(KEYS, st.text(), max_size=5))
def test_format_metadata_parse_gives_the_values_back(values: dict[str, str]) -> None:
    assert parse_metadata(format_metadata(values)) == values


@given(st.text("ab \t,=\x00\u00e4YQ", max_size=20))
def test_parse_metadata_any_header_parsed_or_refused(header: str) -> None:
    with contextlib.suppress(SyncError):
        values = parse_metadata(header)
        assert "" not in values
        assert parse_metadata(format_metadata(values)) == values


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("", {}),
        (" ", {}),
        ("is_confidential", {"is_confidential": ""}),
        ("is_confidential ", {"is_confidential": ""}),
        (f"filename {coded('a b,c.jpg')},empty", {"filename": "a b,c.jpg", "empty": ""}),
        (f"a {coded('1')}, b {coded('2')}\t,\tc", {"a": "1", "b": "2", "c": ""}),
        (f"filename {coded('../../etc/passwd')}", {"filename": "../../etc/passwd"}),
        (f"filename {coded('写真 №1 ')}", {"filename": "写真 №1 "}),
    ],
)
def test_parse_metadata_pairs_parsed(header: str, values: dict[str, str]) -> None:
    assert parse_metadata(header) == values


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (",", "'': a key is one printable ASCII character or more"),
        (f"a {coded('1')},", "'': a key is one printable ASCII character or more"),
        (f"ä {coded('1')}", "'\\xe4': a key is one printable ASCII character or more"),
        (f"a\tb {coded('1')}", "'a\\tb': a key is one printable ASCII character or more"),
        (f"a {coded('1')},a {coded('1')}", "'a': the key stands there twice"),
        ("a YQ", "'a': a value in base64, padded, is required"),
        ("a YQ=", "'a': a value in base64, padded, is required"),
        ("a YQ==YQ==", "'a': a value in base64, padded, is required"),
        ("a Y-_=", "'a': a value in base64, padded, is required"),
        ("a YW Jj", "'a': a value in base64, padded, is required"),
        ("a ä", "'a': a value in base64, padded, is required"),
        ("a /w==", "'a': the value in base64 must be UTF-8"),
        ("a 7aCA", "'a': the value in base64 must be UTF-8"),
        ("a " + "YQ==" * 1100, "4096 characters at most"),
        ("k" * 500 + " !", f"'{'k' * 64}': a value in base64, padded, is required"),
    ],
)
def test_parse_metadata_faulty_value_names_its_key(header: str, why: str) -> None:
    with pytest.raises(SyncError) as refused:
        parse_metadata(header)
    assert refused.value.code == "invalid_message"
    assert refused.value.message == f"Upload-Metadata: {why}"


def test_format_metadata_lone_surrogate_refused() -> None:
    with pytest.raises(SyncError, match=r"^Upload-Metadata: filename: UTF-8 is required\Z"):
        format_metadata({"filename": "a\udcff"})


def test_describe_valid_values_kept() -> None:
    assert checked() == Described("Tor.jpg", "image/jpeg", "task", "pump-3", None)
    assert checked(sha256=SHA256.upper(), other="\0").sha256 == SHA256
    assert checked(filetype=" Image/JPEG ; a=b").content_type == "image/jpeg"
    assert checked(filetype="audio/x-m4a").content_type == "audio/mp4"
    assert checked(domain="ticket", record_id="b").domain == "ticket"


@pytest.mark.parametrize("said", [None, "", " ", "application/octet-stream", "Application/Octet-Stream; a=b"])
def test_describe_without_a_type_is_undeclared(said: str | None) -> None:
    assert checked(filetype=said).content_type == UNDECLARED


@pytest.mark.parametrize("key", [key for key in SAID if key != "filetype"])
def test_describe_missing_key_named(key: str) -> None:
    assert refusal(**{key: None}) == ("invalid_message", f"Upload-Metadata: {key}: required")


@pytest.mark.parametrize("name", ["a", "../../etc/passwd", "C:\\a.jpg", "..", "写" * 255, " ", "a\u200db"])
def test_describe_name_like_a_path_kept(name: str) -> None:
    assert checked(filename=name).file_name == name


@pytest.mark.parametrize("length", [0, 256, 10_000])
def test_describe_name_length_bounded(length: int) -> None:
    sentence = "Upload-Metadata: filename: 1 to 255 characters are required"
    assert refusal(filename="n" * length) == ("invalid_message", sentence)


@pytest.mark.parametrize("inside", ["\0", "\r\n", "\n", "\t", "\x1b", "\x7f", "\x85", "\x9f", "\udcff"])
def test_describe_name_with_control_characters_refused(inside: str) -> None:
    sentence = "Upload-Metadata: filename: control characters and lone surrogates are not allowed"
    assert refusal(filename=f"a{inside}b") == ("invalid_message", sentence)


@pytest.mark.parametrize("said", ["*/*", "image", "application/zip", ",image/jpeg", "image/jpeg\r\n\r\nx"])
def test_describe_unlisted_type_refused(said: str) -> None:
    code, sentence = refusal(filetype=said)
    assert code == "unsupported_type"
    assert sentence.startswith("Upload-Metadata: filetype: '")
    assert "use one of image/jpeg, image/png" in sentence


def test_describe_unknown_domain_refused() -> None:
    code, sentence = refusal(domain="voice" * 100)
    assert code == "invalid_message"
    assert sentence == f"Upload-Metadata: domain: no domain of records {('voice' * 100)[:64]!r} is configured"


@pytest.mark.parametrize(
    ("record_id", "why"),
    [
        ("", f"1 to {MAX_ID_CHARS} characters are required"),
        ("r" * (MAX_ID_CHARS + 1), f"1 to {MAX_ID_CHARS} characters are required"),
        ("a\0b", "control characters are not allowed"),
        ("a\x85b", "control characters are not allowed"),
        ("a\udcffb", "lone surrogates are not allowed"),
    ],
)
def test_describe_invalid_record_id_refused(record_id: str, why: str) -> None:
    assert refusal(record_id=record_id) == ("invalid_message", f"Upload-Metadata: record_id: {why}")
    assert checked(record_id="r" * MAX_ID_CHARS).record_id == "r" * MAX_ID_CHARS


@pytest.mark.parametrize("said", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n", "\u0660" * 64])
def test_describe_invalid_sha256_refused(said: str) -> None:
    assert refusal(sha256=said) == ("invalid_message", "Upload-Metadata: sha256: 64 hex digits are required")
