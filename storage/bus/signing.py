"""Signatures of messages on the bus: what reaches Redis otherwise is not believed.

A signature stands at the end of a message, as its last field, so that processes of an older version read
the message as ever. The channel is signed along: it names the database and its epoch.
"""

from __future__ import annotations

import hmac
from typing import Final, Literal

#: How far the clocks of two hosts may be apart that believe each other. ``run.py doctor`` lets a host pass
#: whose clock is 60 s from the database's, so that two may be 120 s apart.
BELIEVED_APART_S: Final = 150

_BEGIN: Final = b',"mac":"'
_END: Final = b'"}'
_DIGITS: Final = 64
_TAIL_BYTES: Final = len(_BEGIN) + _DIGITS + len(_END)

Signature = Literal["right", "none", "wrong"]


def signed(body: bytes, key: bytes, channel: str) -> bytes:
    """Sign a message, which is a JSON object with one field at least."""
    return b"%b%b%b%b" % (body[:-1], _BEGIN, _mac(body, key, channel), _END)


def unsigned(message: bytes, key: bytes, channel: str) -> tuple[bytes, Signature]:
    """Return a message without its signature, and whether that is right."""
    head, tail = message[:-_TAIL_BYTES], message[-_TAIL_BYTES:]
    if not (tail.startswith(_BEGIN) and tail.endswith(_END)):
        return message, "none"
    body, said = head + b"}", tail[len(_BEGIN) : -len(_END)]
    return body, "right" if hmac.compare_digest(said, _mac(body, key, channel)) else "wrong"


def _mac(body: bytes, key: bytes, channel: str) -> bytes:
    return hmac.digest(key, b"%b\0%b" % (channel.encode(), body), "sha256").hex().encode()
