"""Response headers: those of every answer, and those that are collected while a request is handled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

#: The headers collected so far.
ANSWER: Final = web.RequestKey[dict[str, str]]("answer_headers")
#: For browsers, on every answer: it is of the type that it names, and if it is opened by itself it runs
#: nothing, loads nothing and stands in no frame. Answers that pages fetch are not concerned.
FOR_BROWSERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}


def add_headers(request: web.Request, headers: Mapping[str, str]) -> None:
    """Add headers to the answer, also if it becomes a refusal."""
    request.setdefault(ANSWER, {}).update(headers)


async def with_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Set the headers of every answer and the collected ones, except those that it has already."""
    for name, value in FOR_BROWSERS.items():
        response.headers.setdefault(name, value)
    for name, value in request.get(ANSWER, {}).items():
        response.headers.setdefault(name, value)
