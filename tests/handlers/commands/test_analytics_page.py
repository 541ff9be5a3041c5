"""``run.py analytics --html``: a page that draws the figures of the table, and loads nothing."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from engine.model.commit_counts import HOUR_US, CommitCounts
from engine.model.minutes import Durations, Minute
from engine.operate.figures.aggregation import snapshot
from engine.operate.figures.analytics import Analytics, HourFigures, Uniques, analytics
from engine.operate.figures.voice import LoggedResult, Result, VoiceAnalytics, voice_analytics
from handlers.commands.analytics.page import sync_page, voice_page
from tests.harness.browser import IN_CHROMIUM, browser_page
from tests.harness.commands import Run, command
from tests.harness.in_process_server import Serve, serve
from tests.harness.ws_device import put

__all__ = ["command", "serve"]

#: 2026-01-05T00:00:00Z
_START_US: Final = 1_767_571_200_000_000
_HOURS: Final = 72
#: In this hour nothing was counted.
_SILENT: Final = 30


class _Week:
    """Figures of hours of a working day and nights between, with an hour of which there are none."""

    def __init__(self) -> None:
        self._random = random.Random(7)

    async def hours(self, tenant: str, since_us: int, until_us: int) -> list[HourFigures]:
        """Make them."""
        del tenant, until_us
        return [self._hour(since_us + hour * HOUR_US, hour) for hour in range(_HOURS) if hour != _SILENT]

    async def uniques(self, tenant: str, since_us: int, until_us: int, by: str) -> dict[int, Uniques]:
        """Make as many devices as fit."""
        del tenant, until_us, by
        return {since_us + hour * HOUR_US: Uniques(40 + hour % 24, 30) for hour in range(_HOURS)}

    async def voice(self, tenant: str, since_us: int, until_us: int) -> list[LoggedResult]:
        """Make verifications of three devices."""
        del tenant, until_us
        chance = self._random
        return [
            LoggedResult(
                f"phone-<{number % 3}>",
                since_us + number * HOUR_US // 10,
                Result(chance.random() < 0.9, chance.uniform(0.6, 1), chance.random(), chance.gauss(400, 60)),
            )
            for number in range(_HOURS * 10)
        ]

    def _hour(self, start_us: int, hour: int) -> HourFigures:
        busy = 0.1 + math.sin(math.pi * (hour % 24) / 24) ** 2
        syncs = round(4000 * busy * self._random.uniform(0.8, 1.2))
        commits = CommitCounts(syncs, syncs * 700, syncs * 350)
        for domain, part in (("task", 1.4), ("attendance", 0.5), ("<b>", 0.1)):
            commits.items[domain] = [round(syncs * part * one) for one in (0.9, 0.06, 0.02, 0.005, 0.015)]
        durations = Durations()
        for _ in range(200):
            durations.add(round(self._random.lognormvariate(8.3 + busy, 0.5)))
        minute = Minute(syncs + 40, syncs // 300, syncs // 900, replayed=syncs // 50, durations=durations)
        minute.bytes_saved_compression = syncs * 120
        return HourFigures(start_us, snapshot(minute, commits), durations)


async def _figures() -> Analytics:
    return await analytics(_Week(), "acme & <sons>", _START_US, _START_US + _HOURS * HOUR_US, "hour")


async def _voice() -> VoiceAnalytics:
    return await voice_analytics(_Week(), "acme", _START_US, _START_US + _HOURS * HOUR_US, "day")


def _loads(page: str) -> Iterator[str]:
    """What a browser would fetch."""
    yield from re.findall(r"""(?:src|href)=["'](?!#)[^"']*""", page)
    yield from re.findall(r"@import[^;]*|url\((?!#)[^)]*", page)
    yield from re.findall(r"<(?:script|link|iframe|img|object)\b[^>]*", page)


def _titles(page: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", page)


async def test_page_has_each_figure_of_each_period_and_loads_nothing() -> None:
    found = await _figures()
    page = sync_page(found, "now")
    assert list(_loads(page)) == []
    assert _titles(page) == [
        "Syncs",
        "Duration of a sync",
        "Items by status",
        "Conflicts",
        "Bytes",
        "Devices and users that synced",
    ]
    assert "<b>x" not in page
    assert "acme &amp; &lt;sons&gt;" in page
    hour = found.periods[5]
    for told in (
        f"2026-01-05 05:00, succeeded: {hour.succeeded:,}",
        f"2026-01-05 05:00, failed: {hour.failed:,}",
        f"2026-01-05 05:00, p95: {hour.p95_duration_ms:,.1f} ms",
        f"2026-01-05 05:00, left to a person: {hour.conflicts_manual:,}",
        f"2026-01-05 05:00, resolved: {sum(one['resolved'] for one in hour.domains.values()):,}",
        "2026-01-06 06:00, succeeded: 0",
    ):
        assert f"<title>{told}</title>" in page
    assert "2026-01-06 06:00, p95" not in page, "a silent hour has no duration, which is not 0"
    assert page.count("<tr>") == 1 + len(found.periods) + 1 + 1 + 3 + 1


async def test_page_of_a_span_without_figures_says_so() -> None:
    class Nothing(_Week):
        async def hours(self, *_: object) -> list[HourFigures]:
            return []

        async def uniques(self, *_: object) -> dict[int, Uniques]:
            return {}

        async def voice(self, *_: object) -> list[LoggedResult]:
            return []

    until_us = _START_US + 3 * HOUR_US
    page = sync_page(await analytics(Nothing(), "acme", _START_US, until_us, "hour"), "now")
    assert page.count("<svg") == 6
    assert "There are none" in voice_page(await voice_analytics(Nothing(), "acme", 0, until_us, "day"), "now")


async def test_page_of_voice_has_days_and_devices() -> None:
    found = await _voice()
    page = voice_page(found, "now")
    assert list(_loads(page)) == []
    assert len(_titles(page)) == 4
    assert [day.verifications for day in found.periods] == [240, 240, 240]
    assert f"<title>2026-01-05, verified: {found.periods[0].verified}</title>" in page
    assert page.count("<td>phone-&lt;1&gt;</td>") == 3
    by_device = page.partition("<h2>By device</h2>")[2]
    assert 'class="summed"' not in by_device, "its last row is a device, no sum"


async def test_page_is_written_of_what_was_synced(command: Run, serve: Serve, tmp_path: Path) -> None:
    server = await serve()
    await (await server.device("phone")).push(put("a", None, n=1), put("b", None, n=1))
    await server.drained()
    file = tmp_path / "page.html"
    file.write_text("an older page")
    ended = await command("analytics", "--tenant", "acme", "--html", str(file))
    assert ended.out == f"wrote {file}\n"
    page = file.read_text("utf-8")
    assert "<tr><td>all</td><td>1</td>" in page
    assert "task</td><td>2</td>" in page
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]
    voice = await command("analytics", "--tenant", "acme", "--voice", "--html", str(file))
    assert voice.status == 0
    assert "There are none" in file.read_text("utf-8")


async def test_page_through_a_link_leaves_the_link(command: Run, serve: Serve, tmp_path: Path) -> None:
    await serve()
    page, link = tmp_path / "page.html", tmp_path / "link"
    link.symlink_to(page)
    assert (await command("analytics", "--tenant", "acme", "--html", str(link))).status == 0
    assert link.is_symlink()
    assert page.read_text("utf-8").endswith("</html>\n")
    assert {one.name for one in tmp_path.iterdir()} == {"page.html", "link"}


async def test_page_that_cannot_be_drawn_or_written_is_refused(command: Run, serve: Serve) -> None:
    await serve()
    analytics_of = ("analytics", "--tenant", "acme")
    for more, said in (
        (("--html", "/nowhere/page.html"), "/nowhere/page.html: No such file or directory: name another"),
        (("--html", "p.html", "--json"), "--json, --csv and --html: choose one"),
        (
            ("--html", "p.html", "--from", "40d"),
            "draws 744 hours at most: choose a shorter span, or --by day",
        ),
    ):
        assert said in (await command(*analytics_of, *more)).refusal()


@pytest.mark.slow
@IN_CHROMIUM
@pytest.mark.parametrize("kind", ["syncs", "voice"])
async def test_page_in_a_browser_is_drawn_without_a_request_or_an_error(kind: str, tmp_path: Path) -> None:
    text = sync_page(await _figures(), "now") if kind == "syncs" else voice_page(await _voice(), "now")
    file = tmp_path / f"{kind}.html"
    file.write_text(text, "utf-8")
    requests: list[str] = []
    said: list[str] = []
    async with browser_page(viewport={"width": 1280, "height": 900}) as page:
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        await page.goto(file.as_uri())
        sizes: list[Any] = await page.eval_on_selector_all(
            "svg", "all => all.map(one => [one.clientWidth, one.clientHeight])"
        )
        drawn = await page.eval_on_selector_all(
            "svg .series rect, svg .series path.line",
            "all => all.filter(one => one.getBBox().height > 1).length",
        )
        too_wide = await page.evaluate("document.documentElement.scrollWidth > innerWidth")
        await page.screenshot(path=str(tmp_path / f"{kind}.png"), full_page=True)
    assert requests == [file.as_uri()]
    assert said == []
    assert len(sizes) == (6 if kind == "syncs" else 4)
    assert min(width for width, _ in sizes) > 300
    assert min(height for _, height in sizes) > 150
    assert drawn > (_HOURS if kind == "syncs" else 8)
    assert not too_wide
