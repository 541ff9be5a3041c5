"""Judges a run with faults: the devices' history against the tables, by the contract alone.

Nothing here is shared with the engine: it knows what the contract promises and neither how a batch is planned
nor how a conflict is settled. Every function gives the faults that it finds, as sentences. The history has to
be a whole one, in which each device went on until its queue was empty.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from bench.faults.history import (
    Answered,
    Change,
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
    only,
)
from bench.faults.tables import Stored, Tables, Where
from bench.harness.audit import key_hash

#: What the data of every item names its tenant in.
MARK: Final = "tenant"
#: In place of the ``op`` of an item: a person's decision.
_BY_HAND: Final = "by hand"
#: No fault may lead to these: each says that the server lost track of a device that did nothing wrong.
_NEVER: Final = frozenset({"cursor_expired", "idempotency_key_reused", "invalid_message", "unknown_type"})


def check(history: Sequence[Event], tables: Tables, *, whole: bool = True) -> list[str]:
    """Find everything that is wrong with a run, whose devices pulled everything at the end if ``whole``."""
    account = Account(history)
    return [
        *_refusals(account),
        *_answers(account),
        *_order(account),
        *_versions(account, tables),
        *_seqs(account, tables),
        *_events(account, tables),
        *_counts(account, tables),
        *_pages(account),
        *_replicas(account, tables),
        *(_whole(account, tables) if whole else ()),
    ]


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
            item = Item(conflict.item.domain, conflict.item.id, _BY_HAND, "")
            result = Result("applied", item.domain, item.id, version=event.version, seq=event.seq)
            yield Told(conflict.tenant, event.device, f"settling {event.conflict_id}", item, result)

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


def _refusals(account: Account) -> Iterator[str]:
    for refused in account.refused:
        if refused.code in _NEVER or (refused.key is not None and not refused.retryable):
            yield f"{refused.device} at {refused.at_s:.2f} s: {refused.code} of {refused.key or 'its feed'}"


def _answers(account: Account) -> Iterator[str]:
    """Every message is answered, and always alike, in the order of its items."""
    for (device, key), items in account.sent.items():
        answers = account.answers.get((device, key), [])
        if not answers:
            yield f"{device}: {key} was never answered"
            continue
        first = answers[0]
        if [(item.domain, item.id) for item in items] != [(one.domain, one.id) for one in first.results]:
            yield f"{device}: {key} was answered with results of other items"
        for later in answers[1:]:
            if not _alike(first.results, later):
                yield f"{device}: {key} was answered differently at {first.at_s:.2f} s and {later.at_s:.2f} s"
    for device, key in account.answers.keys() - account.sent.keys():
        yield f"{device}: {key} was answered and never sent"


def _alike(results: Sequence[Result], later: Answered) -> bool:
    """Whether a later answer is the first one, but for ``data`` that a replayed one may leave out."""
    if later.replayed and len(results) == len(later.results):
        results = [
            msgspec.structs.replace(one, data=msgspec.UNSET) if again.data is msgspec.UNSET else one
            for one, again in zip(results, later.results, strict=True)
        ]
    return results == later.results


def _order(account: Account) -> Iterator[str]:
    """No message of a device overtakes another that was sent before it, however often both were sent.

    That holds as devices send again in order. Of messages that were refused, it holds only for those after
    ``unavailable``: what was on its way for longer than a back-off lasts may pass one after ``overloaded``.
    """
    passed = {(one.device, one.key) for one in account.refused if one.code != "unavailable"}
    newest: dict[str, tuple[int, str]] = {}
    for device, key in account.sent:
        answers = account.answers.get((device, key), [])[:1]
        pairs = [pair for answer in answers for pair in account.pairs(answer)]
        seqs = [result.seq or 0 for item, result in pairs if wrote(item, result)]
        if not seqs or (device, key) in passed:
            continue
        last_seq, last_key = newest.get(device, (0, ""))
        if min(seqs) < last_seq:
            yield f"{device}: {key} was applied before {last_key}, which was sent first"
        newest[device] = max((max(seqs), key), (last_seq, last_key))


def _versions(account: Account, tables: Tables) -> Iterator[str]:
    """Each version of a record was written by exactly one acknowledged item, and the last one stands."""
    for where in sorted(tables.records.keys() | account.claims.keys()):
        name, told = "/".join(where), account.claims.get(where, {})
        stored = tables.records.get(where)
        if stored is None:
            yield f"{name}: acknowledged at version {max(told)} and not there"
            continue
        for version in sorted(told.keys() | set(range(1, stored.version + 1))):
            claims = told.get(version, [])
            if version > stored.version:
                yield f"{name}: version {version} was acknowledged, the table has {stored.version}"
            elif not claims:
                yield f"{name}: version {version} was written by no acknowledged item"
            elif len(claims) > 1:
                authors = ", ".join(f"{claim.device} {claim.key}" for claim in claims)
                yield f"{name}: version {version} was acknowledged to {authors}"
        seqs = [claim.result.seq or 0 for version in sorted(told) for claim in told[version]]
        if seqs != sorted(set(seqs)):
            yield f"{name}: a later version has no later seq"
        for claim in told.get(stored.version, []):
            if claim.result.seq != stored.seq:
                yield f"{name}: acknowledged with seq {claim.result.seq}, the table has {stored.seq}"
            yield from _content(f"{name} in the table", claim, stored.data)
        if stored.data is not None and stored.data.get(MARK, where[0]) != where[0]:
            yield f"{name}: the table has data of {stored.data.get(MARK)}"


def _content(name: str, claim: Told, data: Data) -> Iterator[str]:
    """What stands at a version is what its item made of the record."""
    item, result = claim.item, claim.result
    if result.data is not msgspec.UNSET:
        right = data == result.data
    elif item.op == _BY_HAND or result.status != "applied":
        right = True  # a person's decision, or the answer was too large to say
    elif item.op == "delete":
        right = data is None
    elif data is None or item.data is None:
        right = False
    elif item.op == "put":
        right = data == item.data
    else:
        right = all(data.get(field) == value for field, value in item.data.items())
    if not right:
        yield f"{name}: version {result.version} is not what {claim.device} wrote with {claim.key}"


def _seqs(account: Account, tables: Tables) -> Iterator[str]:
    """A tenant's seqs are 1 to n, each taken by one version."""
    for tenant in sorted(tables.counters.keys() | account.seqs.keys()):
        counter, taken = tables.counters.get(tenant, 0), account.seqs.get(tenant, {})
        for seq, claims in sorted(taken.items()):
            if len(claims) > 1:
                yield f"{tenant}: seq {seq} was acknowledged {len(claims)} times"
            if not 1 <= seq <= counter:
                yield f"{tenant}: seq {seq} was acknowledged, the counter stands at {counter}"
        skipped = set(range(1, counter + 1)) - taken.keys()
        yield from (f"{tenant}: seq {seq} was acknowledged to nobody" for seq in sorted(skipped))


def _events(account: Account, tables: Tables) -> Iterator[str]:
    """Each event that was acknowledged is there once, applied once, and no other."""
    known: dict[Where, Data] = {}
    applied: Counter[Where] = Counter()
    for one in account.told:
        if one.item.op == "append" and one.result.status != "rejected":
            known[one.where] = one.item.data
            applied[one.where] += one.result.status == "applied"
    for where in sorted(known.keys() | tables.events.keys()):
        name, rows = "/".join(where), tables.events.get(where, [])
        if where not in known:
            yield f"{name}: an event that nobody was told of"
        elif applied[where] != 1:
            yield f"{name}: the event was applied {applied[where]} times"
        elif rows != [known[where]]:
            yield f"{name}: the event was acknowledged and stands {len(rows)} times, or with other data"


def _counts(account: Account, tables: Tables) -> Iterator[str]:
    """Each message, rejected item and conflict is stored once, as is what the conflict log has of them.

    That is each conflict that a policy settled, and each change that is held for a person; none besides.
    """
    keys: dict[tuple[str, ...], str] = {
        (account.tenants[device], key_hash(device, key)): f"{device} {key}" for device, key in account.sent
    }
    told: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter, {"keys": Counter(keys.keys())})
    for tenant, device, _, item, result in account.told:
        if result.status == "rejected":
            told["rejected items"][tenant, device] += 1
        elif result.status == "resolved":
            told["settled changes"][tenant, device, item.domain, item.id, result.winner or ""] += 1
        elif result.status == "conflict":
            told["held changes"][tenant, device, item.domain, item.id] += 1
            told["conflicts"][tenant, device, result.conflict_id or ""] = 1
    for what, stored in tables.counts.items():
        for one in sorted(told[what].keys() | stored.keys()):
            if told[what][one] != stored[one]:
                name = keys.get(one, "/".join(one))
                yield f"{name}: {told[what][one]} {what} as the device knows, {stored[one]} in the tables"


def _pages(account: Account) -> Iterator[str]:
    """No page goes back, shows another tenant's data, or shows what was not written."""
    for device, seen in account.seen.items():
        tenant = account.tenants[device]
        last = {"live": 0, "whole": 0}
        newest: dict[tuple[str, str], int] = {}
        for page in seen:
            if isinstance(page, Rewound):
                last["live"] = 0
                newest.clear()
            if not isinstance(page, Paged):
                continue
            for change in page.changes:
                name = f"{device} at {page.at_s:.2f} s: {change.domain}/{change.id} version {change.version}"
                if change.seq <= last[page.feed]:
                    yield f"{name}: seq {change.seq} came after {last[page.feed]}"
                last[page.feed] = max(change.seq, last[page.feed])
                known = newest.get((change.domain, change.id), 0)
                if page.feed == "live":
                    if change.version <= known:
                        yield f"{name}: came after version {known}"
                    newest[change.domain, change.id] = max(change.version, known)
                yield from _shown(name, tenant, change, account.seqs[tenant].get(change.seq, []))


def _shown(name: str, tenant: str, change: Change, claims: Sequence[Told]) -> Iterator[str]:
    """A change in a page is the tenant's, and the one that was acknowledged with its seq."""
    if change.data is not None and change.data.get(MARK, tenant) != tenant:
        yield f"{name}: is data of {change.data.get(MARK)}"
    if change.deleted is not (change.data is None):
        yield f"{name}: deleted with data, or not and without"
    written = [(one.result.domain, one.result.id, one.result.version) for one in claims[-1:]]
    if written != [(change.domain, change.id, change.version)]:
        yield f"{name}: seq {change.seq} was acknowledged for {written[0] if written else None}"
    else:
        yield from _content(name, claims[-1], change.data)


_UNKNOWN: Final[Any] = object()


def _replicas(account: Account, tables: Tables) -> Iterator[str]:
    """Pages and the device's own answers together lead every device to what the tables hold."""
    for device, tenant in account.tenants.items():
        held: dict[tuple[str, str], tuple[int, Any]] = {}
        for event in account.seen[device]:
            if isinstance(event, Answered):
                _take_answer(account, event, held)
            elif isinstance(event, Paged) and event.feed == "live":
                for change in event.changes:
                    where = (change.domain, change.id)
                    version, data = held.get(where, (0, None))
                    if change.version > version or (change.version == version and data is _UNKNOWN):
                        held[where] = (change.version, change.data)
        stored = {where[1:]: row for where, row in tables.records.items() if where[0] == tenant}
        for where in sorted(held.keys() | stored.keys()):
            name = f"{device}: {'/'.join(where)}"
            version, data = held.get(where, (0, None))
            row = stored.get(where)
            if row is None or version != row.version:
                yield f"{name} is known at version {version}, the table has {row.version if row else 'none'}"
            elif data is not _UNKNOWN and data != row.data:
                yield f"{name} is known with other data than the table's"


def _take_answer(account: Account, answer: Answered, held: dict[tuple[str, str], tuple[int, Any]]) -> None:
    for item, result in account.pairs(answer):
        version, data = held.get((item.domain, item.id), (0, None))
        if not wrote(item, result) or result.version is None or result.version <= version:
            continue
        after: Any = _UNKNOWN
        if result.data is not msgspec.UNSET:
            after = result.data
        elif item.op in {"put", "delete"} and result.status == "applied":
            after = item.data
        elif item.op == "patch" and result.status == "applied" and result.version == version + 1:
            after = _UNKNOWN if data is _UNKNOWN else _patched(data, item.data)
        held[item.domain, item.id] = (result.version, after)


def _patched(data: Data, patch: Data) -> Data:
    """Apply a merge patch whose values are plain."""
    merged = {**(data or {}), **(patch or {})}
    return {field: value for field, value in merged.items() if value is not None}


def _whole(account: Account, tables: Tables) -> Iterator[str]:
    """A pull from null at the end gives exactly the tenant's table."""
    for device, tenant in account.tenants.items():
        pulled = [page for page in account.seen[device] if isinstance(page, Paged) and page.feed == "whole"]
        if not pulled:
            yield f"{device}: did not pull from null at the end"
            continue
        changes = [change for page in pulled for change in page.changes]
        found = {(tenant, one.domain, one.id): Stored(one.version, one.seq, one.data) for one in changes}
        stored = {where: row for where, row in tables.records.items() if where[0] == tenant}
        for where in sorted(found.keys() | stored.keys()):
            if found.get(where) != stored.get(where):
                yield f"{device}: {'/'.join(where[1:])} is pulled otherwise than the table has it"
        if len(changes) != len(found):
            yield f"{device}: a record is in its pull from null more than once"
