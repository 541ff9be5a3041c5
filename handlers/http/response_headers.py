"""What every answer to a request carries, noted while it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

#: Headers of the answer, whatever it is.
ANSWER: Final = web.RequestKey[dict[str, str]]("answer_headers")


def add_headers(request: web.Request, headers: Mapping[str, str]) -> None:
    """Have the answer carry headers, also if it will be a refusal."""
    request.setdefault(ANSWER, {}).update(headers)


async def with_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Give an answer the headers that were noted for it, and that it has not by itself."""
    for name, value in request.get(ANSWER, {}).items():
        response.headers.setdefault(name, value)
