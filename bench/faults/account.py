"""The history of a run with faults, sorted by who sent and was told it, and what the tables hold of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from bench.faults.history import (
    Answered,
    Data,
    Event,
    Item,
    Joined,
    Paged,
    Refused,
    Result,
    Rewound,
    Sent,
    SettledByHand,
)

#: What the data of every item names its tenant in.
MARK: Final = "tenant"
#: Tenant, domain, id.
Where = tuple[str, str, str]


class Stored(NamedTuple):
    """A record as the table has it."""

    version: int
    seq: int
    data: Data


class Tables(NamedTuple):
    """What PostgreSQL holds at the end. ``keys`` are (tenant, key hash), ``rejected`` (tenant, device).

    ``settled`` are the conflicts that a policy settled, by tenant, device, domain, id and winner; ``waiting``
    the changes that were held for a person, also those that joined another one.
    """

    records: dict[Where, Stored]
    counters: dict[str, int]
    events: dict[tuple[str, str, str], list[Data]]
    keys: Counter[tuple[str, str]]
    rejected: Counter[tuple[str, str]]
    conflicts: Counter[tuple[str, str, str]]
    settled: Counter[tuple[str, str, str, str, str]]
    waiting: Counter[tuple[str, str, str, str]]


class Claim(NamedTuple):
    """A version that a device was told its item wrote; one that a person wrote has no ``item``."""

    device: str
    key: str
    seq: int
    item: Item | None
    result: Result


class Account:
    """The history sorted: who sent what and was told what."""

    def __init__(self, history: Sequence[Event]) -> None:
        self.tenants: dict[str, str] = {}
        self.sent: dict[tuple[str, str], list[Item]] = {}
        self.answers: dict[tuple[str, str], list[Answered]] = defaultdict(list)
        self.pages: dict[str, list[Paged | Rewound]] = defaultdict(list)
        self.refused: list[Refused] = []
        self.by_hand: list[SettledByHand] = []
        self.heard: dict[str, list[Answered | Paged]] = defaultdict(list)
        for event in history:
            match event:
                case Joined():
                    self.tenants[event.device] = event.tenant
                case Sent(attempt=1):
                    self.sent[event.device, event.key] = event.items
                case Answered():
                    self.answers[event.device, event.key].append(event)
                    self.heard[event.device].append(event)
                case Paged():
                    self.pages[event.device].append(event)
                    self.heard[event.device].append(event)
                case Rewound():
                    self.pages[event.device].append(event)
                case SettledByHand():
                    self.by_hand.append(event)
                case Refused():
                    self.refused.append(event)
                case _:
                    pass
        self.claims: dict[Where, dict[int, list[Claim]]] = defaultdict(lambda: defaultdict(list))
        for (device, key), answers in self.answers.items():
            for item, result in self.told(device, answers[0]):
                if wrote(item, result):
                    assert result.version is not None
                    assert result.seq is not None
                    claim = Claim(device, key, result.seq, item, result)
                    self.claims[self.tenants[device], item.domain, item.id][result.version].append(claim)

        self._add_by_hand()

    def _add_by_hand(self) -> None:
        """Count the versions that persons wrote, each on the record of the conflict that it settled."""
        records = {
            (device, result.conflict_id): (item.domain, item.id)
            for (device, _), answers in self.answers.items()
            for item, result in self.told(device, answers[0])
        }
        for one in self.by_hand:
            domain, record_id = records[one.device, one.conflict_id]
            result = Result("resolved", domain, record_id, version=one.version, seq=one.seq)
            claim = Claim(one.device, f"settling {one.conflict_id}", one.seq, None, result)
            self.claims[self.tenants[one.device], domain, record_id][one.version].append(claim)

    def told(self, device: str, answer: Answered) -> Iterator[tuple[Item, Result]]:
        """Pair items with what was told of them; an answer that fits nothing pairs none."""
        items = self.sent.get((device, answer.key), [])
        if len(items) == len(answer.results):
            yield from zip(items, answer.results, strict=True)


def wrote(item: Item, result: Result) -> bool:
    """Whether an item became a version of its record."""
    if item.op == "append" or result.version is None or result.seq is None:
        return False
    return result.status == "applied" or (
        result.status == "resolved" and result.winner in {"client", "merged"}
    )
