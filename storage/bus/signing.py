"""Signatures of messages on the bus: a message from anybody else who reaches Redis is rejected.

The signature is the last field of a message, so that processes of an older version can still read it. It
covers the name of the channel too, which contains the database's name and epoch.
"""

from __future__ import annotations

import hmac
from typing import Final, Literal

#: Messages are accepted from hosts whose clocks differ by at most this much. ``run.py doctor`` accepts a host
#: whose clock is 60 s from the database's, so the clocks of two hosts may be 120 s apart.
MAX_CLOCK_SKEW_S: Final = 150

_BEGIN: Final = b',"mac":"'
_END: Final = b'"}'
_DIGITS: Final = 64
_TAIL_BYTES: Final = len(_BEGIN) + _DIGITS + len(_END)

Signature = Literal["right", "none", "wrong"]


def signed(body: bytes, key: bytes, channel: str) -> bytes:
    """Sign a message, which is a JSON object with at least one field."""
    return b"%b%b%b%b" % (body[:-1], _BEGIN, _mac(body, key, channel), _END)


def unsigned(message: bytes, key: bytes, channel: str) -> tuple[bytes, Signature]:
    """Return a message without its signature, and whether the signature is right."""
    head, tail = message[:-_TAIL_BYTES], message[-_TAIL_BYTES:]
    if not (tail.startswith(_BEGIN) and tail.endswith(_END)):
        return message, "none"
    body, said = head + b"}", tail[len(_BEGIN) : -len(_END)]
    return body, "right" if hmac.compare_digest(said, _mac(body, key, channel)) else "wrong"


def _mac(body: bytes, key: bytes, channel: str) -> bytes:
    return hmac.digest(key, b"%b\0%b" % (channel.encode(), body), "sha256").hex().encode()
