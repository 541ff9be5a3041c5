"""What a resolved conflict costs the engine: ``python -m bench.tools.conflict_cost``.

Plans the same batch twice, once on the records' own versions and once on stale ones, so that each change
meets a conflict that its policy settles. What is planned needs no store: a conflict adds no round trip.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
import tomllib
from pathlib import Path
from typing import Final, get_args

import click
import msgspec

from engine.commit.validation import MessageValidator, Session
from engine.model.domains import Domain, DomainPolicy, Domains, Policy
from engine.model.rows import Record, RecordKey, Snapshot
from engine.model.tenants import Tenant
from engine.plan.batch import plan, read_set
from engine.plan.context import PlanContext
from engine.plan.work import Work
from engine.wire.codec import JSON
from engine.wire.messages import Sync

JOBS: Final = 500
ROUNDS: Final = 25
BAR_US: Final = 20.0
_NOW_US: Final = 1_767_323_045_000_000
_CONFIG: Final = Path(__file__).parents[2] / "config.toml"


def main() -> None:
    """Print the cost for each policy, in microseconds; exit with 1 when one is over the bar."""
    configured = tomllib.loads(_CONFIG.read_text())["domains"]
    domains = Domains(msgspec.convert(configured, dict[str, Domain]))
    over = False
    for policy in get_args(Policy):
        cost_us = _cost_us(domains, policy)
        over = over or cost_us > BAR_US
        click.echo(f"{policy:20s} {cost_us:6.1f} us a conflict, at most {BAR_US:.0f}")
    raise SystemExit(over)


def _cost_us(domains: Domains, policy: Policy) -> float:
    ids = itertools.count()
    chosen = dict(domains.default_policies, task=DomainPolicy(policy))
    context = PlanContext(domains, lambda _: chosen, lambda: f"{next(ids):032x}", 1 << 18, 1 << 20)
    plain, stale = _jobs(domains, base=3), _jobs(domains, base=2)
    differences: list[float] = []
    for _ in range(ROUNDS):
        without = _planned_s(plain, context)
        differences.append((_planned_s(stale, context) - without) / JOBS * 1e6)
    return statistics.median(differences)


def _planned_s(batch: list[Work], context: PlanContext) -> float:
    state = Snapshot({1: 1000}, {}, {_key(number): _record(number) for number in range(JOBS)}, {}, {}, {})
    begun_s = time.perf_counter()
    read_set(batch, context)
    plan(batch, state, context)
    return time.perf_counter() - begun_s


def _jobs(domains: Domains, base: int) -> list[Work]:
    intake = MessageValidator(domains, JOBS)
    session = Session(tenant=Tenant(1, "acme"), device_id="phone", session_id="s")
    batch: list[Work] = []
    for number in range(JOBS):
        item = {
            "domain": "task",
            "id": f"task-{number}",
            "op": "patch",
            "base": base,
            "at": "2026-01-02T03:04:04Z",
            "data": {"note": f"checked {number}", "count": number},
        }
        frame = {"type": "sync", "id": "1", "key": f"key-{number}", "items": [item]}
        sync = JSON.decode(json.dumps(frame).encode())
        assert isinstance(sync, Sync)
        batch.append(intake.push(sync, session, _NOW_US))
    return batch


def _key(number: int) -> RecordKey:
    return RecordKey(1, "task", f"task-{number}")


def _record(number: int) -> Record:
    fields = {"title": "Check the north gate", "note": "x" * 100, "count": 1, "site": "Plant 7"}
    data = msgspec.json.encode(fields)
    changed = {"since": 1, "since_at_us": 0, "changed": {"note": [3, _NOW_US - 9_000_000], "count": [1, 0]}}
    at_us, versions = _NOW_US - 9_000_000, msgspec.json.encode(changed)
    return Record(1, "task", f"task-{number}", 3, number + 1, at_us, "tablet", 1, data, versions)


if __name__ == "__main__":
    main()
