"""/docs in Chromium: it shows operations and messages, loads nothing from elsewhere, has no authority."""

from __future__ import annotations

import os

from playwright.async_api import Page, Request

from tests.harness.browser import IN_CHROMIUM, browser_page
from tests.harness.in_process_server import ON_SHARED, Running

pytestmark = [ON_SHARED, IN_CHROMIUM]

_AUTHORITY = """() => {
  const tries = { cookies: () => document.cookie, storage: () => localStorage.length }
  return Object.entries(tries).map(([name, attempt]) => {
    try { return `${name}: ${attempt()}` } catch (error) { return `${name}: ${error.name}` }
  }).concat(`origin: ${self.origin}`)
}"""


class Watched:
    """What a page complains of, and what it asks for."""

    def __init__(self, page: Page) -> None:
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda said: self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(f"{error.stack}"))
        page.on("request", self._request)

    def _request(self, request: Request) -> None:
        self.asked.append(request.url)

    def elsewhere(self, server: Running) -> list[str]:
        """List the requests to others than the server."""
        return [url for url in self.asked if not url.startswith((server.url + "/", "data:"))]


async def shot(page: Page, name: str) -> None:
    """Keep a picture for a person to look at, where one asks for it."""
    if folder := os.environ.get("TIDEMARK_SHOTS"):
        for width in (1280, 390):
            await page.set_viewport_size({"width": width, "height": 900})
            await page.screenshot(path=f"{folder}/{name}-{width}.png")


async def test_docs_page_shows_an_operation_and_a_message_and_asks_nobody_else(shared: Running) -> None:
    async with browser_page() as page:
        watched = Watched(page)
        answer = await page.goto(shared.url + "/docs#post-/v1/sync")
        assert answer is not None
        assert answer.status == 200
        await page.get_by_text("sends the same message again under the same").first.wait_for()
        await page.get_by_text("One result for each item, in order.").first.wait_for()
        await shot(page, "requests")
        await page.goto(shared.url + "/docs/messages#device_sync")
        await page.wait_for_selector("section#device_sync")
        section = await page.inner_text("section#device_sync")
        assert "Push changes." in section
        assert "6f1c2a94c0d84f5f9d43b7b1d7b0a6e2" in section
        await shot(page, "messages")
        authority = await page.evaluate(_AUTHORITY)
    assert watched.complaints == []
    assert watched.elsewhere(shared) == []
    assert authority == ["cookies: SecurityError", "storage: SecurityError", "origin: null"]
