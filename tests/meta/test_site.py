"""The site that ``make docs`` builds: complete, searched and looked at without a network."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.harness.browser import IN_CHROMIUM, browser_page

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


async def build(root: Path, site: Path) -> str:
    """Build a site as ``make docs`` does, somewhere else. Return the warnings that make it fail."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-c", "docs"),
        *("-d", str(site / "pages"), ".", str(site / "html")),
        cwd=root,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert (process.returncode == 0) is (said == b""), said.decode()
    return said.decode()


@pytest.mark.slow
@IN_CHROMIUM
async def test_site_is_complete_and_found_without_a_network(tmp_path: Path) -> None:
    assert await build(ROOT, tmp_path) == ""
    site = tmp_path / "html"
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


@pytest.mark.slow
async def test_site_page_and_link_that_lead_nowhere_fail_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "static").mkdir(parents=True)
    (docs / "static" / "book.css").touch()
    for name in ("docs/conf.py", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"))
    links = ("gone.md", "concepts.md#gone", "#gone", "gone.json")
    listed = "".join(f"- [One]({link})\n" for link in ("concepts.md", *links))
    (docs / "index.md").write_text(f"# Start\n\n![A picture](gone.svg)\n\n## All\n\n{listed}")
    (docs / "concepts.md").write_text("# Concepts\n\n## Tenant\n")
    (docs / "not-listed.md").write_text("# Another page\n")
    said = await build(tmp_path, tmp_path / "site")
    for link in links:
        assert f"'{link.removeprefix('#')}'" in said or f"'{link.partition('#')[2]}'" in said, link
    assert "gone.svg" in said
    assert "not-listed.md: WARNING: document isn't included in any toctree" in said
