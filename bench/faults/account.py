"""The history of a run with faults, sorted: who sent what and was told what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from bench.faults.history import (
    Answered,
    Event,
    Item,
    Joined,
    Paged,
    Refused,
    Result,
    Rewound,
    Sent,
    SettledByHand,
    only,
)
from bench.faults.tables import Where

#: In place of the ``op`` of an item: a person's decision.
BY_HAND: Final = "by hand"


class Told(NamedTuple):
    """What a device was told of one of its items; a version that a person wrote has an item of its own."""

    tenant: str
    device: str
    key: str
    item: Item
    result: Result

    @property
    def where(self) -> Where:
        """The record or event."""
        return self.tenant, self.item.domain, self.item.id


class Account:
    """The history sorted: who sent what and was told what. ``told`` has the first answers, item by item.

    ``claims`` are the versions of a record that were told as written, ``seqs`` the same of a tenant.
    """

    def __init__(self, history: Sequence[Event]) -> None:
        self.tenants = {one.device: one.tenant for one in only(Joined, history)}
        self.sent = {(one.device, one.key): one.items for one in only(Sent, history) if one.attempt == 1}
        self.refused = only(Refused, history)
        #: Messages without an answer, by the records and events that they have.
        self.unanswered: dict[Where, list[str]] = defaultdict(list)
        self.answers: dict[tuple[str, str], list[Answered]] = defaultdict(list)
        self.seen: dict[str, list[Answered | Paged | Rewound]] = defaultdict(list)
        for event in history:
            if isinstance(event, Answered):
                self.answers[event.device, event.key].append(event)
            if isinstance(event, Answered | Paged | Rewound):
                self.seen[event.device].append(event)
        self.told = [
            Told(self.tenants[device], device, key, item, result)
            for (device, key), answers in self.answers.items()
            for item, result in self.pairs(answers[0])
        ]
        for (device, key), items in self.sent.items():
            for item in items if (device, key) not in self.answers else ():
                where = (self.tenants[device], item.domain, item.id)
                self.unanswered[where].append(f"{device} {key} ({item.op})")
        self.claims: dict[Where, dict[int, list[Told]]] = defaultdict(lambda: defaultdict(list))
        self.seqs: dict[str, dict[int, list[Told]]] = defaultdict(lambda: defaultdict(list))
        for one in [*self.told, *self._by_hand(only(SettledByHand, history))]:
            if wrote(one.item, one.result):
                self.claims[one.where][one.result.version or 0].append(one)
                self.seqs[one.tenant][one.result.seq or 0].append(one)

    def _by_hand(self, events: Sequence[SettledByHand]) -> Iterator[Told]:
        """Say what persons wrote, each on the record of the conflict that it settled."""
        held = {(one.device, one.result.conflict_id): one for one in self.told}
        for event in events:
            conflict = held[event.device, event.conflict_id]
            item = Item(conflict.item.domain, conflict.item.id, BY_HAND, "")
            result = Result("applied", item.domain, item.id, version=event.version, seq=event.seq)
            yield Told(conflict.tenant, event.device, f"settling {event.conflict_id}", item, result)

    def authors(self, where: Where) -> str:
        """Say which messages without an answer may have written a record or event."""
        devices = ", ".join(self.unanswered.get(where, ()))
        return f"; without an answer is {devices}" if devices else "; no message without an answer has it"

    def pairs(self, answer: Answered) -> Iterable[tuple[Item, Result]]:
        """Pair items with what was told of them; an answer that fits nothing pairs none."""
        items = self.sent.get((answer.device, answer.key), [])
        return zip(items, answer.results, strict=True) if len(items) == len(answer.results) else ()


def wrote(item: Item, result: Result) -> bool:
    """Whether an item became a version of its record."""
    if item.op == "append" or result.version is None or result.seq is None:
        return False
    return result.status == "applied" or (
        result.status == "resolved" and result.winner in {"client", "merged"}
    )
