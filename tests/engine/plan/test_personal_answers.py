"""Answers to items of sealed domains: which they are, and by what a retry is known again."""

import pytest

from engine.model.domains import Domains
from engine.model.rows import KEYED_CHARS
from engine.plan.context import PlanContext
from engine.plan.work import RejectedItem

SENT, OTHER = "5e" * 32, "6f" * 32


def _keyed(tenant_id: int, request_sha256: str, key: int = 1) -> str:
    return f"01{key:08x}{tenant_id:02}{request_sha256[:62]}"


def _context(unsealed: frozenset[str] | None, *, keys: bool = True) -> PlanContext:
    def keyed(tenant_id: int, stored: str, request_sha256: str) -> str | None:
        return _keyed(tenant_id, request_sha256, int(stored[2:10], 16)) if keys else None

    return PlanContext(
        Domains({}), lambda _: {}, str, 1, 1, unsealed_domains=lambda: unsealed, keyed_request=keyed
    )


@pytest.mark.parametrize(
    ("domains", "personal"),
    [
        (["task"], False),
        (["task", "note"], False),
        (["form"], True),
        (["task", "form"], True),
        ([None], True),
    ],
)
def test_is_personal_if_any_item_is_of_a_sealed_or_unknown_domain(
    domains: list[str | None], *, personal: bool
) -> None:
    items = [RejectedItem(domain, None, "", "") for domain in domains]
    assert _context(frozenset(["task", "note"])).is_personal(items) is personal
    assert not _context(None).is_personal(items), "nothing is sealed"


def test_is_same_request_by_a_plain_hash_and_by_one_made_with_a_key() -> None:
    context = _context(None)
    assert len(_keyed(1, SENT)) == KEYED_CHARS
    assert context.is_same_request(1, SENT, SENT)
    assert context.is_same_request(1, _keyed(1, SENT), SENT)
    assert context.is_same_request(1, _keyed(1, SENT, 2), SENT), "by another key of the tenant"
    assert not context.is_same_request(1, OTHER, SENT)
    assert not context.is_same_request(1, _keyed(1, OTHER), SENT)
    assert not context.is_same_request(1, _keyed(2, SENT), SENT), "another tenant's key"


def test_is_same_request_without_the_key_is_taken_for_a_retry() -> None:
    assert _context(None, keys=False).is_same_request(1, _keyed(1, OTHER), SENT)
    assert not _context(None, keys=False).is_same_request(1, OTHER, SENT)
