"""Response headers that are collected while a request is handled, so that refusals carry them as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

#: The headers collected so far.
ANSWER: Final = web.RequestKey[dict[str, str]]("answer_headers")


def add_headers(request: web.Request, headers: Mapping[str, str]) -> None:
    """Add headers to the answer, also if it becomes a refusal."""
    request.setdefault(ANSWER, {}).update(headers)


async def with_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Set the collected headers on an answer, except those that it has already."""
    for name, value in request.get(ANSWER, {}).items():
        response.headers.setdefault(name, value)
