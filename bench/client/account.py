"""After a crew's run: is every edit accounted for in the server's tables, once?

Read past the server. Names the faults that it finds, none if all is well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

from bench.client.crew import Member, State, outcome_of
from bench.client.edits import decode_item
from bench.client.messages import canonical
from storage.postgres.blocking import connected

#: What the log calls a conflict that a policy settled, by what the device was told.
_LOGGED: Final = {"won": "client", "merged": "merged", "superseded": "server"}
_WRITTEN: Final = ("applied", "won", "merged")


class Tables:
    """What the server keeps of one tenant. Raises StoreError."""

    def __init__(self, dsn: str, tenant: str) -> None:
        self._dsn = dsn
        self._tenant = tenant
        self.records: State = {
            (domain, name): (version, canonical(None if data is None else data.encode()))
            for domain, name, version, data in self._rows("domain, id, version, data::text", "records")
        }
        self.by_policy: Counter[Any] = Counter()
        self.held: dict[str, str] = {}
        self.waited: Counter[Any] = Counter()
        self.by_person: dict[Any, list[int]] = defaultdict(list)
        columns = "conflict_id, device_id, domain, record_id, outcome, settled_by, settled_version"
        for held_id, device, domain, name, outcome, person, version in self._rows(
            columns, "conflict_resolution_log"
        ):
            if outcome not in {"open", "held"} and person is None:
                self.by_policy[device, domain, name, outcome] += 1
                continue
            self.waited[device, domain, name] += 1
            if outcome != "held":
                self.held[held_id] = device
            if version is not None:
                self.by_person[domain, name].append(version)
        self.quarantined = Counter(self._rows("device_id, domain, record_id", "quarantine"))
        self.events = Counter(self._rows("device_id, domain, id", "events"))

    def _rows(self, columns: str, table: str) -> list[Any]:
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {columns} FROM {table}"
                " WHERE tenant_id = (SELECT tenant_id FROM tenants WHERE name = %s)",
                (self._tenant,),
            )
            return cursor.fetchall()


def faults(members: Iterable[Member], tables: Tables) -> Iterator[str]:
    """Compare what the devices hold and were told with the tables."""
    written: dict[Any, list[int]] = defaultdict(list)
    by_policy: Counter[Any] = Counter()
    rejected: Counter[Any] = Counter()
    events: Counter[Any] = Counter()
    held: dict[str, str] = {}
    waited: Counter[Any] = Counter()
    for member in members:
        if member.state() != tables.records:
            yield f"{member.name} holds other records than the server"
        numbers = [settled.edit for settled in member.settled]
        if member.waiting or len(set(numbers)) != member.made:
            yield f"{member.name} made {member.made} edits and was told of {len(set(numbers))}"
        for settled in member.settled:
            item, result = decode_item(settled.item), settled.result
            where, outcome = (item.domain, item.id), outcome_of(result)
            if outcome == "rejected":
                rejected[member.name, *where] += 1
            elif item.op == "append":
                events[member.name, *where] += outcome == "applied"
            elif outcome in _WRITTEN:
                assert result.version is not None
                written[where].append(result.version)
            if outcome in _LOGGED:
                by_policy[member.name, *where, _LOGGED[outcome]] += 1
            elif outcome == "held":
                assert result.conflict_id is not None
                held[result.conflict_id] = member.name
                waited[member.name, *where] += 1
    yield from _versions(written, tables)
    for what, told, kept in (
        ("conflicts settled by policy", by_policy, tables.by_policy),
        ("conflicts held", held, tables.held),
        ("changes held", waited, tables.waited),
        ("rejected items", rejected, tables.quarantined),
        ("events", events, tables.events),
    ):
        if told != kept:
            yield f"{what}: the devices were told of {told!r}, the server keeps {kept!r}"


def _versions(written: dict[Any, list[int]], tables: Tables) -> Iterator[str]:
    """Each version of a record was told to exactly one edit, or is a person's: none lost, none twice."""
    for where in tables.records.keys() | written.keys():
        told = sorted(written[where] + tables.by_person[where])
        version = tables.records[where][0] if where in tables.records else 0
        if told != list(range(1, version + 1)):
            yield f"{'/'.join(where)} stands at version {version}, the devices were told of {told}"
