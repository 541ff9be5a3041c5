"""How long opening sealed values holds the event loop at a time: ``python -m bench.tools.opening_slices``.

Values are sealed by a key of this process and opened as a server opens them: a page of a pull, an open
conflict, a kept answer. (Items of the quarantine are opened by commands alone.) Between two moments at which
the loop is given back lies a slice. The longest of each round counts, in milliseconds of a core. The bar is
1 ms for the median round.
"""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Collection, Coroutine
from time import thread_time
from typing import Any, Final, NamedTuple

import click
import msgspec

from bench.report.text import table
from engine.model.rows import Conflict, HeldChange, IdempotencyKey
from engine.seal.ports import KeysMissingError
from engine.seal.sealer import TenantKeys
from storage.stores.commit.sealed_values import changes, side
from storage.stores.feed import record_of_row
from storage.stores.sealed.answers import open_answer
from storage.stores.sealed.sealing import ANSWER, ANY_DOMAIN, RECORD_DATA, Sealing
from storage.stores.stored_conflict import conflict_in_steps

#: A slice is to be no longer.
BAR_MS: Final = 1.0
_RECORD_BYTES: Final = 262_144
_PAGE_BYTES: Final = 1_048_576
_DOMAIN: Final = "task"


class _Ring:
    """``engine.seal.ports.KeyRing`` of one tenant."""

    def __init__(self) -> None:
        self._keys = TenantKeys(os.urandom(16), {1: os.urandom(32)}, 1, os.urandom)

    def keys_of(self, tenant_id: int) -> TenantKeys:
        """Return the keys of tenant 1."""
        if tenant_id != 1:
            raise KeysMissingError(tenant_id)
        return self._keys

    sealing_keys_of = keys_of

    async def load(self, tenant_ids: Collection[int]) -> None:
        """Do nothing: the keys are there."""

    load_to_seal = load


class Kind(NamedTuple):
    """One kind of work: its name, and what begins a round of it."""

    name: str
    begin: Callable[[], Coroutine[Any, Any, object]]


def slices_ms(work: Coroutine[Any, Any, object]) -> list[float]:
    """Run work to its end, and return how long it ran each time until it gave the loop back."""
    found: list[float] = []
    while True:
        began_s = thread_time()
        try:
            work.send(None)
        except StopIteration:
            found.append((thread_time() - began_s) * 1000)
            return found
        found.append((thread_time() - began_s) * 1000)


def kinds(sealing: Sealing) -> list[Kind]:
    """Return the kinds of work."""

    def page(count: int, data_bytes: int) -> Callable[[], Coroutine[Any, Any, object]]:
        data = _json(data_bytes)
        rows = [
            (*(1, count, _DOMAIN, f"r{n}", n, n, 0, "phone", 1), _sealed(sealing, f"r{n}", n, data), None)
            for n in range(count)
        ]
        return lambda: sealing.opened(rows, lambda row: record_of_row(sealing, 1, row))

    def one(text: str, make: Callable[[str], object]) -> Callable[[], Coroutine[Any, Any, object]]:
        return lambda: sealing.opened([text], make)

    conflict = _conflict(sealing)
    answer = sealing.seal(ANSWER, 1, ANY_DOMAIN, "k", 0, bytes(32) + b"[" + _json(_PAGE_BYTES) + b"]")
    assert answer is not None
    return [
        Kind("page of 500 records of 200 bytes", page(500, 200)),
        Kind("page of 500 records of 2,000 bytes", page(500, 2000)),
        Kind("page of 1 MiB of the largest records", page(_PAGE_BYTES // _RECORD_BYTES, _RECORD_BYTES)),
        Kind("20 largest records, as a batch reads", page(20, _RECORD_BYTES)),
        Kind(
            "largest open conflict",
            lambda: sealing.opened([conflict], lambda text: conflict_in_steps(text, sealing)),
        ),
        Kind(
            "largest kept answer",
            one(answer.decode(), lambda text: open_answer(sealing, IdempotencyKey(1, "k"), text)),
        ),
    ]


def _json(size_bytes: int) -> bytes:
    return b'{"text":"' + b"x" * (size_bytes - 11) + b'"}'


def _sealed(sealing: Sealing, record_id: str, version: int, data: bytes) -> str:
    stored = sealing.seal(RECORD_DATA, 1, _DOMAIN, record_id, version, data)
    assert stored is not None
    return stored.decode()


def _conflict(sealing: Sealing) -> str:
    """Return a row with both sides and 128 changes, all together as large as each may be."""
    data, part = _json(_RECORD_BYTES), _json(_RECORD_BYTES // 128)
    conflict = Conflict(
        tenant_id=1,
        conflict_id="c",
        domain=_DOMAIN,
        record_id="r",
        device_id="phone",
        policy="manual",
        outcome="open",
        server_version=2,
        server_data=data,
        client_base=1,
        client_op="put",
        client_at_us=0,
        client_data=data,
        client_changes=(HeldChange("patch", 1, 0, 0, part),) * 128,
        client_count=128,
        opened_at_us=0,
    )
    fields = msgspec.structs.asdict(conflict)
    for name in ("server_data", "client_data"):
        fields[name] = msgspec.Raw(side(name, conflict, sealing) or b"null")
    fields["client_changes"] = msgspec.Raw((changes(conflict, sealing) or "null").encode())
    return msgspec.json.encode(fields).decode()


@click.command()
@click.option("--rounds", metavar="N", type=int, default=200, show_default=True, help="Rounds of each kind.")
def main(rounds: int) -> None:
    """Print the longest slice of each kind of work, and exit with 1 if one is over the bar."""
    sealing = Sealing(_Ring(), [_DOMAIN])
    sealing.follow([_DOMAIN])
    lines: list[tuple[str, ...]] = [("work", "slices", "longest ms, median", "longest ms, worst", "whole ms")]
    over = False
    for kind in kinds(sealing):
        gc.collect()
        found = [slices_ms(kind.begin()) for _ in range(rounds)]
        longest = [max(one) for one in found]
        median_ms = statistics.median(longest)
        over = over or median_ms > BAR_MS
        lines.append(
            (
                kind.name,
                str(len(found[0])),
                f"{median_ms:.2f}",
                f"{max(longest):.2f}",
                f"{sum(found[-1]):.2f}",
            )
        )
    for line in table(lines):
        click.echo(line)
    if over:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
