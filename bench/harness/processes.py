"""CPU time and memory of process trees."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import psutil


class Trees:
    """Process trees by a name of their root; a tree inside another one does not count there."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        self._roots = {name: psutil.Process(pid) for name, pid in roots.items()}
        self._pids = set(roots.values())

    def cpu_ms(self) -> dict[str, float]:
        """Sum up the CPU time of each tree since it began; ended children count."""
        return {name: sum(map(_cpu_ms, self._members(root))) for name, root in self._roots.items()}

    def rss_bytes(self, name: str) -> int:
        """Sum up the resident memory of one tree."""
        return sum(map(_rss_bytes, self._members(self._roots[name])))

    def _members(self, root: psutil.Process) -> list[psutil.Process]:
        members: list[psutil.Process] = []
        todo = [root]
        while todo:
            process = todo.pop()
            members.append(process)
            with contextlib.suppress(psutil.NoSuchProcess):
                todo += [child for child in process.children() if child.pid not in self._pids]
        return members


def machine_cpu_ms() -> float:
    """Sum up the CPU time that all processes and the kernel used since the machine started."""
    times = psutil.cpu_times()
    busy_s = times.user + times.system + sum(getattr(times, kind, 0.0) for kind in ("nice", "irq", "softirq"))
    return 1000 * busy_s


def _cpu_ms(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(1000 * (times.user + times.system + times.children_user + times.children_system))


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
