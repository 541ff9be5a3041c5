"""The log of voice verifications: filled from events, and summed up by device and day.

Events are as devices sent them: a value may be of any type, and a ``verification_id`` may come twice. An
event that has no usable result is left out and counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from engine.cluster.jobs import JobRun
from engine.model.commit_counts import UNITS_US, Unit
from engine.model.minutes import Durations
from engine.runtime.batching import with_retries
from engine.wire.floats import json_decoder
from engine.wire.timestamps import to_text

#: The domain of these events.
VOICE: Final = "voice"
#: Events of one statement: to read and write them takes the event loop a millisecond or two.
_EVENTS: Final = 200
#: The most characters of an id: an index of PostgreSQL takes 2,700 bytes.
_ID_CHARS: Final = 500
_LONGEST_MS: Final = 86_400_000.0
#: What PostgreSQL takes in no text: NUL, and halves of characters.
_UNSTORABLE: Final = re.compile(r"[\x00\ud800-\udfff]")

_decode: Final = json_decoder(dict[str, Any]).decode


class VoiceEvent(NamedTuple):
    """A stored event of the domain. ``at_us`` is corrected by the error of the device's clock."""

    id: str
    sent_at_us: int
    received_us: int
    at_us: int
    device_id: str
    data: str


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """The biometric part of a verification, one value that can be sealed. None was not told."""

    verified: bool
    confidence_score: float | None = None
    quality_score: float | None = None
    processing_time_ms: float | None = None


class Verification(NamedTuple):
    """A row of the log."""

    verification_id: str
    device_id: str
    user_id: str | None
    occurred_at_us: int
    result: Result


class VoiceStore(Protocol):
    """Voice events, and their log. Every method raises StoreError."""

    async def hours(self, tenant_ids: Sequence[int], since_us: int, until_us: int) -> list[tuple[int, int]]:
        """Return the tenants and hours, by their beginning, in which such events were committed."""

    async def events(
        self, tenant_id: int, hour_us: int, after: VoiceEvent | None, limit: int
    ) -> list[VoiceEvent]:
        """Read events that were committed in an hour, from the one behind ``after`` on."""

    async def delete(self, before_us: int, limit: int) -> int:
        """Delete rows that happened and were written before an instant. Returns how many."""

    async def put(self, tenant_id: int, rows: Sequence[Verification]) -> int:
        """Add to the log what it does not have. Returns how many rows are new."""


async def fill(
    store: VoiceStore, run: JobRun, tenant_ids: Sequence[int], since_us: int, until_us: int
) -> None:
    """Log the verifications of some tenants' hours.

    Count ``verifications`` that are new and ``verifications_unusable``. To fill an hour again adds nothing.
    Raises StoreError.
    """
    for tenant_id, hour_us in await with_retries(partial(store.hours, tenant_ids, since_us, until_us)):
        after: VoiceEvent | None = None
        while True:
            events = await with_retries(partial(store.events, tenant_id, hour_us, after, _EVENTS))
            if not events:
                break
            after = events[-1]
            rows = [row for event in events if (row := verification(event)) is not None]
            run.count("verifications", await with_retries(partial(store.put, tenant_id, rows)))
            if len(rows) < len(events):
                run.count("verifications_unusable", len(events) - len(rows))
            await run.rest()


def verification(event: VoiceEvent) -> Verification | None:
    """Return the row of an event, None if it has no usable id or result."""
    try:
        data = _decode(event.data)
    except msgspec.DecodeError:  # such as a number that no float holds
        return None
    found, verified = _text(data.get("verification_id")), data.get("verified")
    if not found or not isinstance(verified, bool):
        return None
    scores = [_number(data.get(name)) for name in ("confidence_score", "quality_score", "processing_time_ms")]
    return Verification(
        found, event.device_id, _text(data.get("user_id")), event.at_us, Result(verified, *scores)
    )


def _text(value: object) -> str | None:
    """Return an id as text, None if it is none that a row can have."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or len(value) > _ID_CHARS or _UNSTORABLE.search(value):
        return None
    return value


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


class VoiceFigures(msgspec.Struct, frozen=True):
    """The verifications of a device in a period; ``device_id`` is None for those of all devices.

    Scores are means of those that were told, and None without any. ``verified_rate`` is of 1.
    """

    start: str | None
    device_id: str | None
    verifications: int
    verified: int
    verified_rate: float
    confidence_score: float | None
    quality_score: float | None
    avg_processing_ms: float | None
    p95_processing_ms: float | None


class LoggedResult(NamedTuple):
    """A row of the log as it is read."""

    device_id: str
    occurred_at_us: int
    result: Result


class VoiceReads(Protocol):
    """The log of a tenant. Raises RefusedError if there is no such tenant, StoreError."""

    async def voice(self, tenant: str, since_us: int, until_us: int) -> list[LoggedResult]:
        """Read the verifications that happened in a span, by time."""


class VoiceAnalytics(msgspec.Struct, frozen=True):
    """The verifications of a tenant: by period and device, by period, and all of them (None without any)."""

    tenant: str
    since: str
    until: str
    by: Unit
    rows: Sequence[VoiceFigures]
    periods: Sequence[VoiceFigures]
    total: VoiceFigures | None


async def voice_analytics(
    store: VoiceReads, tenant: str, since_us: int, until_us: int, by: Unit
) -> VoiceAnalytics:
    """Read and sum the verifications of a tenant, by device and period.

    Args:
        store: Where they are read.
        tenant: The name of the tenant.
        since_us: The beginning of the span.
        until_us: Its end.
        by: The unit of the periods, in UTC.

    Raises:
        RefusedError: There is no such tenant.
        StoreError: The database is away.
    """
    unit_us = UNITS_US[by]
    logged = await store.voice(tenant, since_us, until_us)
    groups: dict[tuple[int, str], list[Result]] = {}
    by_period: dict[int, list[Result]] = {}
    for row in logged:
        start_us = row.occurred_at_us // unit_us * unit_us
        groups.setdefault((start_us, row.device_id), []).append(row.result)
        by_period.setdefault(start_us, []).append(row.result)
    rows = [
        voice_figures(to_text(start_us), device_id, results)
        for (start_us, device_id), results in sorted(groups.items())
    ]
    periods = [
        voice_figures(to_text(start_us), None, results) for start_us, results in sorted(by_period.items())
    ]
    total = voice_figures(None, None, [row.result for row in logged]) if logged else None
    return VoiceAnalytics(tenant, to_text(since_us), to_text(until_us), by, rows, periods, total)


def voice_figures(start: str | None, device_id: str | None, results: Sequence[Result]) -> VoiceFigures:
    """Return the figures of one or more verifications."""
    durations = Durations()
    for result in results:
        if result.processing_time_ms is not None:
            durations.add(round(min(max(result.processing_time_ms, 0.0), _LONGEST_MS) * 1000))
    verified = sum(result.verified for result in results)
    return VoiceFigures(
        start,
        device_id,
        len(results),
        verified,
        verified / len(results),
        _mean(result.confidence_score for result in results),
        _mean(result.quality_score for result in results),
        durations.mean_ms(),
        durations.percentile_ms(0.95),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    if not told:
        return None
    # Devices may send the largest number that there is: the sum of thirds of it is more than a float holds.
    half = math.fsum(value / 2 / len(told) for value in told)
    return min(max(half * 2, min(told)), max(told))
