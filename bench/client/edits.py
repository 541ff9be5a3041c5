"""What a store keeps and gives, and what an edit does to a record."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from bench.client.messages import Result
from engine.model.merge import Fields, apply_patch
from engine.wire.floats import json_decoder
from engine.wire.messages import Op


class Message(NamedTuple):
    """A ``sync`` message: the same items under the same key, as often as it is sent. ``last`` is an edit."""

    key: str
    last: int
    items: list[bytes]


class Record(NamedTuple):
    """A record as the device shows it; ``version`` is the server's, None for one it does not know of.

    ``data`` is None for a record that is deleted. ``pending`` counts own edits that are not answered.
    """

    version: int | None
    data: Fields | None
    pending: int


class Rejected(NamedTuple):
    """An edit that the server refused."""

    edit: int
    item: bytes
    code: str
    message: str


class Held(NamedTuple):
    """Own edits that wait for a person beside the server's record; None stands for a deleted one.

    ``client`` is the record as it would stand with all the ``changes`` of them.
    """

    conflict_id: str
    domain: str
    record_id: str
    version: int
    server: bytes | None
    client: bytes | None
    changes: int


class Settled(NamedTuple):
    """An edit and what became of it."""

    edit: int
    item: bytes
    result: Result


class Item(msgspec.Struct):
    """An item as it is sent, as far as the device reads it again."""

    domain: str
    id: str
    op: Op
    data: Raw = Raw(b"null")


decode_item = json_decoder(Item).decode
decode_fields = json_decoder(dict[str, Any]).decode


def after(item: Item, fields: Fields | None) -> Fields | None:
    """Return a record with an edit applied to it."""
    if item.op == "delete":
        return None
    if item.op == "append":
        return fields
    data = decode_fields(item.data)
    return apply_patch(fields or {}, data) if item.op == "patch" else data


def outcome(item: Item, version: int, held: tuple[int, bytes | None] | None) -> Raw | None:
    """Return the record that an item left as ``version``, None if the device cannot know it."""
    if item.op != "patch":
        return item.data
    held_version, held_data = held or (0, None)
    if held_version != version - 1:
        return None
    fields = None if held_data is None else decode_fields(held_data)
    return Raw(msgspec.json.encode(after(item, fields)))
