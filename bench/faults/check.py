"""Judges a run with faults: the devices' history against the tables, by the contract alone.

Nothing here is shared with the engine: it knows what the contract promises and neither how a batch is planned
nor how a conflict is settled. Every rule gives the faults of one kind that it finds, as sentences. The
history has to be a whole one, in which each device went on until its queue was empty. A device that stopped
before leads to faults of other kinds than the first: nobody was told what its messages without an answer
wrote.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgspec

from bench.faults.account import BY_HAND, Account, Told, wrote
from bench.faults.history import Answered, Change, Data, Event, Paged, Result, Rewound
from bench.faults.tables import Stored, Tables, Where
from bench.harness.audit import key_hash

#: What the data of every item names its tenant in.
MARK: Final = "tenant"
#: No fault may lead to these: each says that the server lost track of a device that did nothing wrong.
_NEVER: Final = frozenset({"cursor_expired", "idempotency_key_reused", "invalid_message", "unknown_type"})
#: Faults of a kind that a report names.
_NAMED: Final = 5
#: Characters of a record that a sentence has at most.
_SHOWN: Final = 160


class Found(NamedTuple):
    """A fault. Of each ``kind`` a report says how many there are."""

    kind: str
    sentence: str


def check(history: Sequence[Event], tables: Tables, *, whole: bool = True) -> list[Found]:
    """Find everything that is wrong with a run, whose devices pulled everything at the end if ``whole``."""
    account = Account(history)
    return [
        Found(kind, sentence)
        for kind, rule in RULES.items()
        if whole or rule is not _whole
        for sentence in rule(account, tables)
    ]


def summary(found: Sequence[Found]) -> Iterator[str]:
    """Write how many faults of each kind there are, and the first of them."""
    for kind, several in groupby(found, key=lambda one: one.kind):
        sentences = [one.sentence for one in several]
        yield f"{kind}: {len(sentences)}"
        yield from (f"  {sentence}" for sentence in sentences[:_NAMED])


def _refusals(account: Account, _: Tables) -> Iterator[str]:
    for refused in account.refused:
        if refused.code in _NEVER or (refused.key is not None and not refused.retryable):
            yield f"{refused.device} at {refused.at_s:.2f} s: {refused.code} of {refused.key or 'its feed'}"


def _unanswered(account: Account, tables: Tables) -> Iterator[str]:
    """Every message is answered."""
    for (device, key), items in account.sent.items():
        if (device, key) not in account.answers:
            tenant = account.tenants[device]
            stored = tables.counts["keys"][tenant, key_hash(device, key)]
            kept = "its key is stored" if stored else "its key is not stored"
            yield f"{device}: {key} of {tenant} with {len(items)} items was never answered; {kept}"


def _answers(account: Account, _: Tables) -> Iterator[str]:
    """Messages are always answered alike, in the order of their items."""
    for (device, key), items in account.sent.items():
        answers = account.answers.get((device, key), [])
        if not answers:
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


def _order(account: Account, _: Tables) -> Iterator[str]:
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


def _stored(account: Account, tables: Tables) -> Iterator[str]:
    """What was acknowledged of a record stands, and the last version as it was acknowledged."""
    for where, told in sorted(account.claims.items()):
        name, stored = "/".join(where), tables.records.get(where)
        if stored is None:
            yield f"{name}: acknowledged at version {max(told)} to {_claimed(told[max(told)])} and not there"
            continue
        for version in sorted(told):
            if version > stored.version:
                to = _claimed(told[version])
                yield f"{name}: version {version} was acknowledged to {to}, the table has {stored.version}"
        seqs = [claim.result.seq or 0 for version in sorted(told) for claim in told[version]]
        if seqs != sorted(set(seqs)):
            yield f"{name}: a later version has no later seq"
        for claim in told.get(stored.version, []):
            if claim.result.seq != stored.seq:
                yield f"{name}: acknowledged with seq {claim.result.seq}, the table has {stored.seq}"
            yield from _content(f"{name} in the table", claim, stored.data)


def _claimed(claims: Sequence[Told]) -> str:
    return ", ".join(f"{claim.device} for {claim.key}" for claim in claims)


def _versions(account: Account, _: Tables) -> Iterator[str]:
    """No version of a record was acknowledged twice."""
    for where, told in sorted(account.claims.items()):
        for version, claims in sorted(told.items()):
            if len(claims) > 1:
                yield f"{'/'.join(where)}: version {version} was acknowledged to {_claimed(claims)}"


def _unclaimed(account: Account, tables: Tables) -> Iterator[str]:
    """Each version of a record was written by an acknowledged item, and each seq is that of a version."""
    for where, stored in sorted(tables.records.items()):
        for version in sorted(set(range(1, stored.version + 1)) - account.claims.get(where, {}).keys()):
            name = f"{'/'.join(where)}: version {version} was written by no acknowledged item"
            yield name + account.authors(where)
    for tenant, counter in sorted(tables.counters.items()):
        skipped = set(range(1, counter + 1)) - account.seqs.get(tenant, {}).keys()
        yield from (f"{tenant}: seq {seq} was acknowledged to nobody" for seq in sorted(skipped))
    events = (one for one in account.told if one.item.op == "append")
    known = {one.where for one in events if one.result.status != "rejected"}
    for where in sorted(tables.events.keys() - known):
        yield f"{'/'.join(where)}: an event that nobody was told of{account.authors(where)}"


def _foreign(account: Account, tables: Tables) -> Iterator[str]:
    """A tenant has its own data alone, in the table and in pages."""
    for where, stored in sorted(tables.records.items()):
        if stored.data is not None and stored.data.get(MARK, where[0]) != where[0]:
            yield f"{'/'.join(where)}: the table has data of {stored.data.get(MARK)}"
    for device, seen in account.seen.items():
        tenant = account.tenants[device]
        for page in seen:
            for change in page.changes if isinstance(page, Paged) else ():
                if change.data is not None and change.data.get(MARK, tenant) != tenant:
                    name = f"{change.domain}/{change.id} version {change.version}"
                    yield f"{device} at {page.at_s:.2f} s: {name}: is data of {change.data.get(MARK)}"


def _content(name: str, claim: Told, data: Data) -> Iterator[str]:
    """What stands at a version is what its item made of the record."""
    item, result = claim.item, claim.result
    if result.data is not msgspec.UNSET:
        right = data == result.data
    elif item.op == BY_HAND or result.status != "applied":
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
        wanted = item.data if result.data is msgspec.UNSET else result.data
        by = f"{name}: version {result.version} is not what {claim.device} wrote with {claim.key} ({item.op})"
        yield f"{by}: {_short(wanted)} became {_short(data)}"


def _short(data: Any) -> str:
    text = msgspec.json.encode(data).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _seqs(account: Account, tables: Tables) -> Iterator[str]:
    """A tenant's seqs are taken by one version each, and its counter has reached them."""
    for tenant in sorted(tables.counters.keys() | account.seqs.keys()):
        counter, taken = tables.counters.get(tenant, 0), account.seqs.get(tenant, {})
        for seq, claims in sorted(taken.items()):
            if len(claims) > 1:
                yield f"{tenant}: seq {seq} was acknowledged {len(claims)} times: to {_claimed(claims)}"
            if not 1 <= seq <= counter:
                to = _claimed(claims)
                yield f"{tenant}: seq {seq} was acknowledged to {to}, the counter stands at {counter}"


def _events(account: Account, tables: Tables) -> Iterator[str]:
    """Each event that was acknowledged is there once, and was applied once."""
    known: dict[Where, list[Told]] = defaultdict(list)
    for one in account.told:
        if one.item.op == "append" and one.result.status != "rejected":
            known[one.where].append(one)
    for where, told in sorted(known.items()):
        name, rows = f"{'/'.join(where)} of {_claimed(told)}", tables.events.get(where, [])
        applied = sum(one.result.status == "applied" for one in told)
        if applied != 1:
            yield f"{name}: the event was applied {applied} times"
        elif rows != [told[-1].item.data]:
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


def _pages(account: Account, _: Tables) -> Iterator[str]:
    """No page goes back, or shows what was not written."""
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
                yield from _shown(name, change, account.seqs[tenant].get(change.seq, []))


def _shown(name: str, change: Change, claims: Sequence[Told]) -> Iterator[str]:
    """A change in a page is the one that was acknowledged with its seq."""
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
                yield f"{name} is known with other data than the table's: {_short(data)}, {_short(row.data)}"


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
                name = f"{device}: {'/'.join(where[1:])}"
                both = f"{_short(found.get(where))}, {_short(stored.get(where))}"
                yield f"{name} is pulled otherwise than the table has it: {both}"
        if len(changes) != len(found):
            yield f"{device}: a record is in its pull from null more than once"


#: The rules by the kind of fault that they find, the gravest first.
RULES: Final[Mapping[str, Callable[[Account, Tables], Iterator[str]]]] = {
    "acknowledged and not stored so": _stored,
    "acknowledged events not stored once": _events,
    "acknowledged twice": _versions,
    "seqs taken twice, or above the counter": _seqs,
    "data of another tenant": _foreign,
    "answered in two ways": _answers,
    "applied out of order": _order,
    "refused for good": _refusals,
    "never answered": _unanswered,
    "stored and acknowledged to nobody": _unclaimed,
    "keys, conflicts and rejected items": _counts,
    "pages": _pages,
    "replicas that differ": _replicas,
    "pulls from null that differ": _whole,
}
