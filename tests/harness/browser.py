"""Pages in Debian's Chromium."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from playwright.async_api import Page, async_playwright

_CHROMIUM: Final = "/usr/bin/chromium"
_ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
IN_CHROMIUM: Final = pytest.mark.skipif(
    shutil.which(_CHROMIUM) is None, reason="chromium is not installed: install it (apt-get install chromium)"
)


@asynccontextmanager
async def browser_page(**options: Any) -> AsyncIterator[Page]:
    """Open a page, with ``options`` of a browser's ``new_page``."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=_CHROMIUM, args=_ARGUMENTS)
        try:
            yield await browser.new_page(**options)
        finally:
            await browser.close()
