"""Each cause of an outage is found and mended by the commands of its section of ``docs/outages.md``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.outages.drill import drill
from tests.system.outages.page import PAGE, sections

CAUSES = sorted(path.stem for path in (Path(__file__).parent / "causes").glob("[a-z]*.py"))


async def test_outage_of_redis_is_found_and_mended_by_the_page(dsn: str) -> None:
    """The one that takes least, so that no landing breaks the others' ground."""
    await drill("redis_away", dsn=dsn, whole=False)


@pytest.mark.slow
@pytest.mark.parametrize("cause", CAUSES)
async def test_outage_is_found_and_mended_by_the_page(cause: str) -> None:
    await drill(cause)


def test_page_has_a_section_for_each_cause_and_leads_to_it() -> None:
    assert set(CAUSES) <= set(sections())
    first, _, _ = PAGE.read_text("utf-8").partition("\n## Causes\n")
    alerts = PAGE.with_name("runbook.md").read_text("utf-8").split("\n## ")
    for section in sections().values():
        assert section.diagnosis, section.title
        assert section.recovery, section.title
        anchor = f"#{section.title.lower().replace(' ', '-')})"
        assert anchor in first, f"{section.title} is not in the table of the first five minutes"
        linking = {text.partition("\n")[0] for text in alerts if f"(outages.md{anchor}" in text}
        assert set(section.alerts) <= linking, f"the runbook does not lead from these to {section.title}"
