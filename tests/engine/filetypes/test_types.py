"""Types of files: which type content is found to have, against the declared one, and its largest size."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.filetypes.types import UNDECLARED, FileTypes
from engine.runtime.setting_layers import settings
from engine.wire.errors import SyncError
from tests.engine.runtime.test_settings import DEFAULTS
from tests.harness.uploads.file_heads import DOCX, HEADS, OLE, XLSX, archive

UPLOADS = settings([DEFAULTS]).uploads
TYPES = FileTypes(UPLOADS)
#: Content of each type that is taken by default, all the ways that it comes in.
CONTENT = {
    "image/jpeg": ["jpeg"],
    "image/png": ["png"],
    "image/webp": ["webp"],
    "image/gif": ["gif"],
    "image/heic": ["heic"],
    "image/heif": ["heif", "heic"],
    "application/pdf": ["pdf"],
    "text/plain": ["text", "latin", "csv"],
    "text/csv": ["csv", "latin"],
    "application/msword": ["doc"],
    "application/vnd.ms-excel": ["xls"],
    DOCX: ["docx"],
    XLSX: ["xlsx"],
    "audio/mpeg": ["mp3", "id3"],
    "audio/mp4": ["m4a", "mp42", "isom", "3gp"],
    "audio/aac": ["aac"],
    "audio/ogg": ["vorbis", "opus"],
    "audio/opus": ["opus"],
    "audio/wav": ["wav"],
    "audio/webm": ["webm"],
    "audio/flac": ["flac"],
    "audio/amr": ["amr", "amr-wb"],
    "audio/3gpp": ["3gp", "isom"],
}
IMAGES = UPLOADS.image_types
ODT = "application/vnd.oasis.opendocument.text"
UNKNOWN = "of no known type"
WINDOWS = b"MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff"


def taking(**changed: Any) -> FileTypes:
    """Take types that differ from the defaults."""
    return FileTypes(msgspec.structs.replace(UPLOADS, **changed))


def detected_type(declared: str, head: bytes, types: FileTypes = TYPES) -> str:
    """Judge the head of a file that goes on behind it."""
    return types.detected_type(declared, head, len(head) + 1_000_000)


def refusal(declared: str, head: bytes, types: FileTypes = TYPES) -> str:
    """Give the sentence with which content is refused."""
    with pytest.raises(SyncError) as refused:
        detected_type(declared, head, types)
    assert refused.value.code == "unsupported_type"
    return refused.value.message


def test_default_types_each_has_content_here() -> None:
    assert CONTENT.keys() == {*UPLOADS.image_types, *UPLOADS.document_types, *UPLOADS.voice_types}


@pytest.mark.parametrize(("declared", "head"), [(one, head) for one in CONTENT for head in CONTENT[one]])
def test_detected_type_content_as_declared_kept(declared: str, head: str) -> None:
    assert detected_type(declared, HEADS[head]) == declared


@pytest.mark.parametrize(("declared", "head"), [(one, CONTENT[one][0]) for one in CONTENT])
def test_detected_type_content_of_another_group_refused(declared: str, head: str) -> None:
    for group in (UPLOADS.image_types, UPLOADS.document_types, UPLOADS.voice_types):
        if declared not in group:
            for other in group:
                assert f"not {other}" in refusal(other, HEADS[head])


@pytest.mark.parametrize(
    ("declared", "head", "found"),
    [
        ("image/jpeg", "png", "image/png"),
        ("image/png", "jpeg", "image/jpeg"),
        ("image/jpeg", "heic", "image/heic"),
        ("application/pdf", "docx", DOCX),
        (DOCX, "xlsx", XLSX),
        ("application/msword", "xls", "application/vnd.ms-excel"),
        ("application/vnd.ms-excel", "csv", "text/plain"),
        ("text/plain", "pdf", "application/pdf"),
        ("audio/mpeg", "aac", "audio/aac"),
        ("audio/opus", "vorbis", "audio/ogg"),
        ("audio/3gpp", "m4a", "audio/mp4"),
        ("audio/wav", "3gp", "audio/3gpp"),
    ],
)
def test_detected_type_other_type_of_the_group_replaces_declared(
    declared: str, head: str, found: str
) -> None:
    assert detected_type(declared, HEADS[head]) == found


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"<!DOCTYPE html><script>alert(1)</script>", "text/html"),
        (b"\xef\xbb\xbf \n<script >alert(1)</script>", "text/html"),
        (b"<?php echo 1;", "text/html"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "image/svg+xml"),
        (b'<?xml version="1.0"?><!-- a --><s:svg xmlns:s="http://www.w3.org/2000/svg"/>', "image/svg+xml"),
        (b'<?xml version="1.0"?><a/>', "application/xml"),
        (b"#!/bin/sh\nrm -r /\n", "application/x-sh"),
        (b"{\\rtf1\\ansi a}", "application/rtf"),
        (b"%!PS-Adobe-3.0\n", "application/postscript"),
        (WINDOWS, "an executable of Windows"),
        (b"\x7fELF\x02\x01\x01" + bytes(60), "ELF executable"),
        (archive(("a.txt", b"a")), "application/zip"),
        (archive(("inner.docx", HEADS["docx"])), "application/zip"),
        (archive(("mimetype", ODT.encode())), ODT),
        (HEADS["theora"], "video/ogg"),
        (HEADS["theora"].replace(b"theora", b"unheard"), UNKNOWN),
        (HEADS["isom"] + b"\0\0\0\x21hdlr" + bytes(8) + b"vide", "video/mp4"),
        (HEADS["webm"] + b"\x86\x85V_VP8", "video/webm"),
        (HEADS["isom"].replace(b"ftypisom", b"ftypqt  "), "video/quicktime"),
        (b"\\x89PNG\x00", UNKNOWN),
        (b"RIFF\x24\x00\x00\x00AVI LIST", "video/x-msvideo"),
        (b"RIFF\x24\x00\x00\x00NONEfmt ", UNKNOWN),
        (bytes(8192), UNKNOWN),
    ],
)
def test_detected_type_unlisted_content_refused(head: bytes, found: str) -> None:
    for declared in CONTENT:
        assert refusal(declared, head) == f"the content is {found}, not {declared}"


@pytest.mark.parametrize("declared", CONTENT)
def test_empty_file_text_taken_others_refused(declared: str) -> None:
    if declared.startswith("text/"):
        TYPES.check_empty(declared)
        assert TYPES.detected_type(declared, b"", 0) == declared
        return
    for ask, code in ((TYPES.check_empty, "invalid_message"), (empty, "unsupported_type")):
        with pytest.raises(SyncError, match="the file is empty: only a text may be") as refused:
            ask(declared)
        assert refused.value.code == code


def empty(declared: str) -> str:
    return TYPES.detected_type(declared, b"", 0)


def test_empty_file_undeclared_is_plain_text() -> None:
    TYPES.check_empty(UNDECLARED)
    assert empty(UNDECLARED) == empty("") == "text/plain"
    with pytest.raises(SyncError, match="the content is empty; supported are image/jpeg"):
        taking(document_types=()).detected_type(UNDECLARED, b"", 0)


#: One sentence in the encodings that machines and programs still write by default.
WRITTEN = {
    "Excel's Unicode text": "\ufeffTor\tSchlüssel\r\n1\tPförtner €\r\n".encode("utf-16-le"),
    "UTF-16, big end first": "\ufeff門;鍵\n".encode("utf-16-be"),
    "UTF-16 with emoji": "\ufeffok 🎉".encode("utf-16-le"),
    "UTF-16 with Ctrl-Z": "\ufeffTor\r\n\x1a".encode("utf-16-le"),
    "a mark and nothing more": b"\xff\xfe",
    "Shift-JIS": "門番の鍵、ポンプ3号\r\n".encode("cp932"),
    "JIS": "門番の鍵\n".encode("iso2022_jp"),
    "EUC-JP": "門番の鍵\n".encode("euc_jp"),
    "GBK": "泵站三号 钥匙在门卫\n".encode("gbk"),
    "GB 18030": "泵站😀\n".encode("gb18030"),
    "Big5": "閘門鑰匙在警衛室\n".encode("big5"),
    "Korean": "펌프 3호, 열쇠\n".encode("cp949"),
    "Russian": "Ключ под замком; Ћђџ\n".encode("cp1251"),
    "KOI8-R": "Ключ под замком\n".encode("koi8_r"),
    "Arabic": "مفتاح پچگ\n".encode("cp1256"),
    "Thai": "กุญแจประตู\n".encode("cp874"),
    "DOS": "Schlüssel beim Pförtner\r\n\x1a".encode("cp850"),
    "Mac": "Schlüssel beim Pförtner\r".encode("mac_roman"),
    "Ctrl-Z": b"gate;key\r\n1;porter\r\n\x1a",
    "Ctrl-Z to the end of its sector": b"gate;key\r\n" + b"\x1a" * 118,
    "Ctrl-Z alone": b"\x1a",
}


@pytest.mark.parametrize("encoding", WRITTEN)
@pytest.mark.parametrize("declared", ["text/plain", "text/csv", UNDECLARED])
def test_detected_type_text_in_any_encoding_taken(declared: str, encoding: str) -> None:
    text = WRITTEN[encoding]
    expected = "text/plain" if declared == UNDECLARED else declared
    assert TYPES.detected_type(declared, text, len(text)) == expected
    if b"\x1a" not in text:
        long = text * (8192 // len(text) + 1)
        assert TYPES.detected_type(declared, long[:8192], len(long) + 8192) == expected, (
            "cut within a character"
        )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\ufeff<!DOCTYPE html><script>alert(1)</script>", "text/html"),
        ('\ufeff<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "image/svg+xml"),
        ("\ufeff#!/bin/sh\n", "application/x-sh"),
        ("\ufeffone \0 two", UNKNOWN),
        ("\ufeffone \x1a two", UNKNOWN),
        ("\ufeffone \ud800 two", UNKNOWN),
        ("\ufeffcut within a surrogate \ud83c", UNKNOWN),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_detected_type_utf16_sniffed_as_text(encoding: str, text: str, found: str) -> None:
    content = text.encode(encoding, "surrogatepass")
    with pytest.raises(SyncError, match=re.escape(f"the content is {found}, not text/plain")):
        TYPES.detected_type("text/plain", content, len(content))


#: Content that is a listed type for sure, with the likeliest of those that it may be.
CLEAR = {
    **{head: one for one, heads in reversed(CONTENT.items()) for head in heads},
    "heic": "image/heic",
    "latin": "text/plain",
    "csv": "text/plain",
    "opus": "audio/ogg",
}
#: Content that may be sound alone or a video, by its first bytes.
SOUND_OR_VIDEO = ("isom", "mp42", "3gp", "webm")


@pytest.mark.parametrize("head", sorted(HEADS.keys() - {*SOUND_OR_VIDEO, "theora"}))
@pytest.mark.parametrize("said", ["", UNDECLARED, "binary/octet-stream"])
def test_undeclared_type_clear_class_gets_content_type(said: str, head: str) -> None:
    assert TYPES.listed(said) == UNDECLARED
    assert detected_type(said, HEADS[head]) == CLEAR[head]


@pytest.mark.parametrize("head", SOUND_OR_VIDEO)
def test_undeclared_type_two_classes_refused(head: str) -> None:
    sentence = "the content may be .* or video/.*: declare in filetype which it is"
    assert re.fullmatch(sentence, refusal("", HEADS[head]))


@pytest.mark.parametrize("head", ["theora", "zip", "nothing"])
def test_undeclared_type_unlisted_refused_naming_the_listed(head: str) -> None:
    found = {"theora": "video/ogg", "zip": "application/zip", "nothing": UNKNOWN}[head]
    content = {"zip": archive(("a.txt", b"a")), "nothing": bytes(100)}.get(head) or HEADS[head]
    assert refusal("", content).startswith(f"the content is {found}; supported are image/jpeg")


def test_undeclared_type_limit_of_its_class_applies() -> None:
    types = taking(image_bytes=3_000, document_bytes=5_000, voice_bytes=4_000)
    assert types.max_bytes(UNDECLARED) == 5_000
    assert types.detected_type(UNDECLARED, HEADS["pdf"], 5_000) == "application/pdf"
    for head, most in (("png", 3_000), ("flac", 4_000)):
        assert types.detected_type(UNDECLARED, HEADS[head], most)
        with pytest.raises(SyncError, match=f"{most + 1} bytes: an? .* has {most} at most") as refused:
            types.detected_type(UNDECLARED, HEADS[head], most + 1)
        assert refused.value.code == "too_large"


def test_undeclared_type_listed_by_an_operator_is_clear() -> None:
    types = taking(voice_types=(*UPLOADS.voice_types, "video/mp4", "video/3gpp"))
    assert detected_type("", HEADS["isom"], types) == "audio/mp4"
    assert "declare in filetype" in refusal("", HEADS["webm"], types)
    listed = taking(document_types=(*UPLOADS.document_types, UNDECLARED))
    assert listed.listed(UNDECLARED) == UNDECLARED
    assert refusal(UNDECLARED, HEADS["png"], listed).endswith(f"not {UNDECLARED}"), "declared, so a document"


@pytest.mark.parametrize(
    ("head", "declared"),
    [
        (archive(("_rels/.rels", b"<a/>"), ("docProps/thumbnail.jpeg", bytes(9000)))[:8192], DOCX),
        (archive(("_rels/.rels", b"<a/>"), ("docProps/thumbnail.jpeg", bytes(9000)))[:8192], XLSX),
        (OLE + bytes(8184), "application/msword"),
        (OLE + bytes(8184), "application/vnd.ms-excel"),
    ],
)
def test_detected_type_ambiguous_container_is_as_declared(head: bytes, declared: str) -> None:
    assert detected_type(declared, head) == declared


def test_sniff_ole_stream_names_tell_word_from_excel() -> None:
    word, excel = (OLE + bytes(2000) + name.encode("utf-16-le") for name in ("WordDocument", "Workbook\0"))
    for declared in ("application/msword", "application/vnd.ms-excel"):
        assert detected_type(declared, word) == "application/msword"
        assert detected_type(declared, excel) == "application/vnd.ms-excel"


@pytest.mark.parametrize(
    "text",
    [
        b"BM is how this note begins",
        b"MZ 4711 stands in the yard",
        b"From: the gate\nimport 3 crates\n",
        b"\\x89PNG is written out here",
        b"\x1b[1mloud\x1b[0m\tand\x0cfed",
        b"a < b and b > c",
        b"\xef\xbb\xbfgate;key\n",
    ],
)
def test_sniff_text_may_begin_like_other_formats(text: bytes) -> None:
    assert detected_type("text/plain", text) == "text/plain"


@pytest.mark.parametrize("byte", [0x00, 0x01, 0x08, 0x0E, 0x1F, 0x7F])
def test_sniff_text_with_control_characters_refused(byte: int) -> None:
    assert UNKNOWN in refusal("text/plain", b"one " + bytes([byte]) + b" two")


def test_sniff_sound_behind_an_id3_tag_found() -> None:
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x05" + bytes(133)
    assert detected_type("audio/mpeg", tag + HEADS["aac"]) == "audio/aac"
    assert refusal("audio/mpeg", tag + b"anything else") == f"the content is {UNKNOWN}, not audio/mpeg"
    longer = b"ID3\x04\x00\x00\x00\x00\x7f\x7f" + bytes(100)
    assert detected_type("audio/mpeg", longer) == "audio/mpeg"
    with pytest.raises(SyncError):
        TYPES.detected_type("audio/mpeg", longer, len(longer))
    assert UNKNOWN in refusal("audio/mpeg", b"ID3\x04\x00\x00\x00\x00\x00\x80" + bytes(9))


@pytest.mark.parametrize(
    ("header", "frame_bytes"),
    [
        ("fffb50c4", 208),  # version 1, layer III, 64 kbit/s, 44.1 kHz
        ("fffb52c4", 209),  # the same, padded
        ("fffbe8c4", 1440),  # 320 kbit/s, 32 kHz
        ("fff340c4", 104),  # version 2, layer III, 32 kbit/s, 22.05 kHz
        ("ffe318c4", 72),  # version 2.5, layer III, 8 kbit/s, 8 kHz
        ("fffd90c4", 522),  # version 1, layer II, 160 kbit/s, 44.1 kHz
        ("fff594c4", 480),  # version 2, layer II, 80 kbit/s, 24 kHz
    ],
)
def test_sniff_mpeg_frame_length_by_its_header(header: str, frame_bytes: int) -> None:
    frame = bytes.fromhex(header) + bytes(frame_bytes - 4)
    assert detected_type("audio/mpeg", frame * 2) == "audio/mpeg"
    assert UNKNOWN in refusal("audio/mpeg", frame + b"\0" + frame)
    assert UNKNOWN in refusal("audio/mpeg", frame[:-1] + frame)


@pytest.mark.parametrize("header", ["fffb5cc4", "ffff50c4", "fff950c4", "ffeb50c4", "fffbf0c4", "fffb00c4"])
def test_sniff_mpeg_reserved_values_refused(header: str) -> None:
    assert UNKNOWN in refusal("audio/mpeg", bytes.fromhex(header) + bytes(9))


def test_sniff_heif_by_any_brand() -> None:
    assert detected_type("image/png", HEADS["heif"]) == "image/heif"
    assert detected_type("image/png", HEADS["heif"].replace(b"miaf", b"heic")) == "image/heic"


@pytest.mark.parametrize(
    ("declared", "head", "second_at"), [("audio/mpeg", "mp3", 72), ("audio/aac", "aac", 263)]
)
def test_sniff_audio_frames_need_a_second_one(declared: str, head: str, second_at: int) -> None:
    broken = bytearray(HEADS[head])
    assert broken[second_at] == 0xFF
    broken[second_at] = 0xFE
    assert UNKNOWN in refusal(declared, bytes(broken))
    assert detected_type(declared, HEADS[head][:second_at]) == declared


def test_sniff_jpeg_needs_a_second_segment() -> None:
    broken = HEADS["jpeg"].replace(b"\xff\xdb", b"\xfe\xdb")
    assert UNKNOWN in refusal("image/jpeg", broken)


@given(st.binary(min_size=1, max_size=64), st.sampled_from(IMAGES))
def test_sniff_random_bytes_are_no_image(head: bytes, declared: str) -> None:
    for size_bytes in (len(head), len(head) + 1):
        with pytest.raises(SyncError, match=f"not {declared}"):
            TYPES.detected_type(declared, head, size_bytes)


@given(st.sampled_from(IMAGES), st.integers(0, 3), st.integers(1, 255))
def test_sniff_image_with_a_broken_head_refused(declared: str, at: int, flipped: int) -> None:
    head = bytearray(HEADS[CONTENT[declared][0]])
    at += 4 if head[4:8] == b"ftyp" else 0
    if declared == "image/jpeg":
        at = min(at, 2)
    head[at] ^= flipped
    refusal(declared, bytes(head))


@given(st.binary(max_size=64), st.sampled_from(sorted(HEADS)), st.sampled_from(sorted(CONTENT)))
def test_detected_type_any_content_decided_or_refused(tail: bytes, head: str, declared: str) -> None:
    for cut in range(1, 40, 3):
        try:
            outcome = detected_type(declared, HEADS[head][:cut] + tail)
        except SyncError as refused:
            outcome = refused.code
        assert outcome in {*CONTENT, "unsupported_type"}


@pytest.mark.parametrize(
    ("said", "listed"),
    [
        ("image/jpg", "image/jpeg"),
        ("audio/x-m4a", "audio/mp4"),
        ("audio/x-wav", "audio/wav"),
        ("audio/mp3", "audio/mpeg"),
        ("text/comma-separated-values", "text/csv"),
        ("image/png", "image/png"),
    ],
)
def test_listed_other_names_of_a_type_known(said: str, listed: str) -> None:
    assert TYPES.listed(said) == listed
    assert TYPES.max_bytes(said) == TYPES.max_bytes(listed)
    assert detected_type(said, HEADS[CONTENT[listed][0]]) == listed


def test_listed_returns_the_name_of_the_settings() -> None:
    types = taking(voice_types=("audio/x-wav", "audio/wave", "audio/x-m4a"))
    assert types.listed("audio/wave") == "audio/wave"
    assert types.listed("audio/wav") == "audio/x-wav"
    assert detected_type("audio/wav", HEADS["wav"], types) == "audio/x-wav"
    assert detected_type("audio/wav", HEADS["m4a"], types) == "audio/x-m4a"


@pytest.mark.parametrize(
    ("declared", "head"),
    [
        ("image/tiff", b"II*\x00\x08\x00\x00\x00"),
        ("image/svg+xml", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("image/avif", HEADS["heif"].replace(b"miaf", b"avif")),
    ],
)
def test_listed_added_types_known(declared: str, head: bytes) -> None:
    types = taking(image_types=(*UPLOADS.image_types, declared))
    assert detected_type(declared, head, types) == declared
    assert detected_type("image/png", head, types) == declared
    assert declared in refusal("image/png", head)


@pytest.mark.parametrize("said", ["*/*", "application/zip", "video/mp4", "image/*", "x" * 1000])
def test_listed_unlisted_type_refused_naming_the_listed(said: str) -> None:
    for ask in (TYPES.listed, TYPES.max_bytes, lambda one: detected_type(one, HEADS["png"])):
        with pytest.raises(SyncError) as refused:
            ask(said)
        assert refused.value.code == "unsupported_type"
        assert repr(said[:64]) in refused.value.message
        assert "image/heic, image/heif, application/pdf, text/plain" in refused.value.message
        assert len(refused.value.message) < 1000


def test_max_bytes_by_group() -> None:
    types = taking(image_bytes=3, document_bytes=5, voice_bytes=4)
    assert [types.max_bytes(one) for one in ("image/gif", "text/csv", "audio/amr")] == [3, 5, 4]
    assert types.largest_bytes == 5


def test_max_bytes_group_without_types_ignored() -> None:
    types = taking(document_types=(), document_bytes=1 << 40)
    assert types.largest_bytes == UPLOADS.voice_bytes
    assert taking(image_types=(), document_types=(), voice_types=()).largest_bytes == 0
