"""Every attack says what it is against, and docs/security.md has their number."""

from __future__ import annotations

from tests.security.page import PAGE, attacks_of, modules, page


def test_catalogue_every_test_of_an_attack_has_a_category_and_a_section() -> None:
    nameless = [
        one.name
        for module in modules()
        if module.__name__.startswith("tests.security.") and module.__name__ != __name__
        for one in attacks_of(module)
        if one.owasp is None or one.asvs is None
    ]
    assert nameless == [], "say what the attack is against: @against(owasp, asvs)"


def test_catalogue_page_has_the_number_of_attacks() -> None:
    text = PAGE.read_text("utf-8")
    assert page(text) == text, "stale: run python -m tests.security.page"
