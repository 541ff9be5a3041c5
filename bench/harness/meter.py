"""CPU time and memory that processes use, from one mark to the next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Final, Self

import msgspec

from bench.harness.processes import Trees, machine_cpu_ms

#: How often memory is read: some runs take a few seconds.
_SAMPLE_S: Final = 0.1
_SERVER: Final = "server"


class Usage(msgspec.Struct, frozen=True):
    """What was used between two marks: CPU by name of a process tree, and of the whole machine.

    Memory is the server's: before the first mark, at the second one, and at most between them; None of a
    server that was not started here. ``worker_cpu_ms`` is what each of several workers used.
    """

    cpu_ms: dict[str, float]
    machine_cpu_ms: float
    rss_before_bytes: int | None = None
    rss_end_bytes: int | None = None
    rss_peak_bytes: int | None = None
    worker_cpu_ms: Sequence[float] = ()


class Meter:
    """Reads process trees by the names of their roots, ``server`` among them if it can be read."""

    def __init__(self, roots: Mapping[str, int], workers: Sequence[int] = ()) -> None:
        self._trees = Trees(roots)
        # Apart, since a tree inside another one does not count there.
        self._workers = Trees({str(place): pid for place, pid in enumerate(workers)})
        self._has_server = _SERVER in roots
        self._before_bytes = self._peak_bytes = self._rss_bytes()
        self._last: tuple[dict[str, float], float, dict[str, float]] | None = None
        self._sampling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to look for the peak of memory."""
        self._sampling = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop looking."""
        assert self._sampling is not None
        self._sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sampling

    def mark(self) -> Usage:
        """Return what was used since the last mark, which is nothing at the first one."""
        now = self._trees.cpu_ms(), machine_cpu_ms(), self._workers.cpu_ms()
        (cpu_ms, machine_ms, workers_ms), self._last = self._last or now, now
        end_bytes = self._rss_bytes()
        peak_bytes, self._peak_bytes = max(self._peak_bytes, end_bytes), end_bytes
        spent_ms = {name: now[0][name] - cpu_ms[name] for name in now[0]}
        each_ms = [now[2][worker] - workers_ms[worker] for worker in now[2]]
        if not self._has_server:
            return Usage(spent_ms, now[1] - machine_ms)
        return Usage(spent_ms, now[1] - machine_ms, self._before_bytes, end_bytes, peak_bytes, each_ms)

    def _rss_bytes(self) -> int:
        return self._trees.rss_bytes(_SERVER) if self._has_server else 0

    async def _sample(self) -> None:
        while True:
            self._peak_bytes = max(self._peak_bytes, self._rss_bytes())
            await asyncio.sleep(_SAMPLE_S)
