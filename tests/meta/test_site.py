"""The site that ``make docs`` builds: complete, searched and looked at without a network."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.harness.browser import IN_CHROMIUM, browser_page

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


async def built(site: Path) -> Path:
    """Build the site as ``make docs`` does, somewhere else."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-c", "docs"),
        *("-d", str(site / "pages"), ".", str(site / "html")),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    return site / "html"


@pytest.mark.slow
@IN_CHROMIUM
async def test_site_is_complete_and_found_without_a_network(tmp_path: Path) -> None:
    site = await built(tmp_path)
    asked: list[str] = []
    async with browser_page() as page:
        page.on("request", lambda request: asked.append(request.url))
        await page.goto((site / "index.html").as_uri())
        await page.wait_for_url("**/docs/index.html")
        linked = await page.locator(".sidebar-tree a").evaluate_all("all => all.map(one => one.href)")
        for path in PAGES:
            built_page = site / path.relative_to(ROOT).with_suffix(".html")
            assert built_page.as_uri() in {*linked, (site / "docs" / "index.html").as_uri()}, path

        await page.goto(f"{(site / 'search.html').as_uri()}?q=quarantine")
        await page.wait_for_selector("#search-results a")

        await page.goto((site / "docs" / "concepts.html").as_uri())
        widths = await page.locator(".content img").evaluate_all("all => all.map(one => one.naturalWidth)")
        assert len(widths) == 6
        assert all(widths)
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
