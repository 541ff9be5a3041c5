"""Pages of rows that are past their time, some of them locked."""

from __future__ import annotations

from engine.operate import retention
from engine.operate.retention import KeptFor, Page, Position, Retention
from tests.harness.uploads.upload_stack import job_run


class Store:
    """Answers with the given pages of conflicts, and then without end with the last one."""

    def __init__(self, *pages: Page) -> None:
        self.pages = list(pages)
        self.asked: list[Position] = []

    async def drop_last_data(self, before_us: int, after: Position, limit: int) -> Page:
        """Find none."""
        assert (before_us, after, limit) == (990_000_000, Position(0, 0), retention._PAGE)
        return Page(0, 0, after)

    async def delete_conflicts(self, before_us: int, after: Position, limit: int) -> Page:
        """Give the next page."""
        assert (before_us, limit) == (980_000_000, retention._PAGE)
        self.asked.append(after)
        return self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]

    async def delete_quarantined(self, before_us: int, after: Position, limit: int) -> Page:
        """Be asked nothing: rejected items are kept for ever."""
        raise AssertionError(before_us, after, limit)


async def _cleaned(store: Store) -> dict[str, float | None]:
    run = job_run(1_000_000_000)
    await Retention(store, KeptFor(10, 20, 0))(run)
    return run.counts


async def test_retention_page_that_is_locked_is_asked_for_again() -> None:
    begin, first, last = Position(0, 0), Position(1, 7), Position(2, 5)
    store = Store(
        Page(500, 500, first), Page(500, 0, last), Page(500, 200, last), Page(3, 3, last), Page(0, 0, last)
    )
    assert await _cleaned(store) == {"conflicts": 703}
    assert store.asked == [begin, first, first, first, last]


async def test_retention_pages_that_stay_locked_are_left_for_the_next_run() -> None:
    store = Store(Page(500, 0, Position(1, 7)))
    assert await _cleaned(store) == {}
    assert len(store.asked) == 20
