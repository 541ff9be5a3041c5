"""CPU time and memory of process trees, from one mark to the next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Final, Self

import msgspec
import psutil

#: How often memory is read: some runs take a few seconds.
_SAMPLE_S: Final = 0.1
_SERVER: Final = "server"


class Trees:
    """Process trees by a name of their root; a tree inside another one does not count there."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        self._roots = {name: psutil.Process(pid) for name, pid in roots.items()}
        self._pids = set(roots.values())

    def cpu_ms(self) -> dict[str, float]:
        """Sum up the CPU time of each tree since it began; ended children count."""
        return {name: sum(map(_cpu_ms, self._members(root))) for name, root in self._roots.items()}

    def rss_bytes(self, name: str) -> int:
        """Sum up the resident memory of one tree; 0 of one that is not known."""
        return sum(map(_rss_bytes, self._members(self._roots[name]))) if name in self._roots else 0

    def _members(self, root: psutil.Process) -> list[psutil.Process]:
        members = [root]
        for process in members:  # it grows meanwhile
            with contextlib.suppress(psutil.NoSuchProcess):
                members += [child for child in process.children() if child.pid not in self._pids]
        return members


def _cpu_ms(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(1000 * (times.user + times.system + times.children_user + times.children_system))
    return 0.0


def _rss_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0


def _machine_cpu_ms() -> float:
    """Sum up the CPU time that all processes and the kernel used since the machine started."""
    times = psutil.cpu_times()
    kinds = ("user", "system", "nice", "irq", "softirq")
    return 1000 * sum(getattr(times, kind, 0.0) for kind in kinds)


class Usage(msgspec.Struct, frozen=True):
    """What was used between two marks: CPU by name of a process tree, and of the whole machine.

    Memory is the server's: at the second mark, and at most between both; None of a server that was not
    started here. ``worker_cpu_ms`` is what each of several workers used.
    """

    cpu_ms: dict[str, float]
    machine_cpu_ms: float
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
        self._peak_bytes = self._trees.rss_bytes(_SERVER)
        self._last = self._now()

    async def __aenter__(self) -> Self:
        """Begin to look for the peak of memory."""
        self._sampling = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop looking."""
        self._sampling.cancel()

    def _now(self) -> tuple[dict[str, float], float, list[float]]:
        return self._trees.cpu_ms(), _machine_cpu_ms(), list(self._workers.cpu_ms().values())

    def mark(self) -> Usage:
        """Return what was used since the last mark, or since this was made."""
        before, self._last = self._last, self._now()
        end_bytes = self._trees.rss_bytes(_SERVER)
        peak_bytes, self._peak_bytes = max(self._peak_bytes, end_bytes), end_bytes
        spent_ms = {name: used_ms - before[0][name] for name, used_ms in self._last[0].items()}
        machine_ms = self._last[1] - before[1]
        each_ms = [after - earlier for after, earlier in zip(self._last[2], before[2], strict=True)]
        if not self._has_server:
            return Usage(spent_ms, machine_ms)
        return Usage(spent_ms, machine_ms, end_bytes, peak_bytes, each_ms)

    async def _sample(self) -> None:
        while True:
            self._peak_bytes = max(self._peak_bytes, self._trees.rss_bytes(_SERVER))
            await asyncio.sleep(_SAMPLE_S)
