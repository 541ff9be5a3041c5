"""What a benchmark found: one structure, printed as text, written as JSON or drawn as a page."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec
import psutil

from bench.harness.audit import Audit
from bench.load.plan import Loop
from bench.report.statistics import Histogram, Latency, median_of

#: The name of a row whose round was only there for a flame graph.
PROFILED: Final = "profiled"
#: The figure that each scenario has of the server with the most connections.
OPEN_CONNECTIONS: Final = "connections to PostgreSQL"
#: Below this part of the wanted rate a load counts as not offered.
OFFERED: Final = 0.95
#: What an idle, subscribed connection may hold of the server's memory, without compression.
IDLE_KIB: Final = 25.0
#: Above this many CPUs busy with something else, latencies and rates suffer from it.
BUSY_CPUS: Final = 0.2


class Window(msgspec.Struct, frozen=True, array_like=True):
    """What became of the syncs due in a tenth of a second; ``p95_ms`` is None where none was stored."""

    at_s: float
    stored: int
    refused: int
    unanswered: int
    p95_ms: float | None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a run. Rates are syncs a second, of what happened in the step.

    ``due`` is how many syncs were due in it, ``latency`` that of those of them that were stored, ``refusal``
    that of the refused ones, both from when they were due. ``times`` is the load over capacity. ``waiting``
    syncs had no answer at its end. ``late_*`` is how late syncs left and ``lag_p99_ms`` how late the
    generator's own timers were: it may have read answers as late. ``cpus`` is how many CPUs each process tree
    kept busy, ``cpu_ms`` the same in milliseconds a stored sync, ``worker_cpu_ms`` each worker's part of the
    server's; ``frame_us`` is the generator's CPU time a sync sent. ``other_cpus`` were busy with something
    else. ``sent``, ``errors`` and ``unanswered`` count the whole run. ``histogram`` has all latencies of
    stored syncs.
    """

    name: str
    loop: Loop
    asked: int
    connected: int
    connect_s: float
    refusals: dict[str, int]
    times: float | None = None
    due: int = 0
    wanted_per_s: float = 0.0
    offered_per_s: float = 0.0
    stored_per_s: float = 0.0
    refused_per_s: float = 0.0
    refused: dict[str, int] = {}
    latency: Latency = Latency()
    histogram: Histogram = Histogram()
    refusal: Latency = Latency()
    waiting: int = 0
    late_p50_ms: float = 0.0
    late_p99_ms: float = 0.0
    lag_p99_ms: float = 0.0
    frame_us: float = 0.0
    sent: int = 0
    unanswered: int = 0
    errors: dict[str, int] = {}
    cpus: dict[str, float] = {}
    cpu_ms: dict[str, float] = {}
    worker_cpu_ms: list[float] = []
    other_cpus: float | None = None
    rss_peak_mib: float | None = None
    rss_end_mib: float | None = None
    audit: Audit | None = None
    windows: list[Window] = []

    @property
    def offered(self) -> bool:
        """Whether it really was the load that was wanted."""
        return self.offered_per_s >= OFFERED * self.wanted_per_s

    @property
    def lost(self) -> int:
        """How many syncs of the run were refused or not answered, errors besides them included."""
        return sum(self.errors.values()) + self.unanswered


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """One run of uploads, many at once. A MB is 1,000,000 bytes.

    ``whole`` of the ``begun`` uploads were acknowledged chunk by chunk, downloaded and found to be as they
    were sent. ``chunk`` is how long a chunk took from the first byte to its acknowledgement, ``histogram``
    has all of these times. ``retries`` are requests that were sent again, by reason. ``other_cpus`` is None
    beside syncs, whose rows have it.
    """

    name: str
    begun: int
    whole: int
    chunks: int
    elapsed_s: float
    mb_per_s: float
    download_mb_per_s: float
    chunk: Latency
    histogram: Histogram = Histogram()
    retries: dict[str, int]
    cpus: dict[str, float]
    other_cpus: float | None
    rss_peak_mib: float
    fault_count: int
    faults: list[str]


class Felt(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies of another tenant's devices by kind of message, and their refusals by code."""

    heartbeat: Latency
    sync: Latency
    pull: Latency
    refused: dict[str, int]


Phase = Literal["at rest", "one device", "ten devices", "sink of one", "sink of ten"]


class Abuse(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of an attack: others at rest, under attack, or beside the same bytes into a sink.

    ``before`` says that it was measured on the version to compare with. ``loop`` is the part of the time
    that the worker's event loop was on a core, ``queued`` the part that it was ready and had none,
    ``charged`` the part that the server charged to devices; ``share`` the part of a core that all threads of
    the worker used. ``window_s`` is the time until others had their last answer.

    ``grown_mib`` is the worker's memory at most above what it had before the phase, ``stretch_ms`` the
    longest for which its loop was held. ``fullest`` is the part of a bound that the attackers' tenant holds
    at most, ``photo_s`` how long a file waited for its record. Each is None where it could not be read.

    ``sent_bytes`` went to ``connections`` connections; ``ended`` says how those ended, and ``unprepared``
    what was refused before the attack began. ``disk_bytes`` is the database's growth, ``rows`` the growth of
    the attackers' tenant, ``generator`` the part of a core that the attackers used. ``after_s`` is how long
    the worker was busy after the last answer to others; ``renewed`` says that it was restarted then, for it
    was busy too long. ``load`` is the machine's load average before the phase.
    """

    attack: str
    phase: Phase
    others: Felt
    duration_s: float
    before: bool = False
    window_s: float = 0.0
    grown_mib: float | None = None
    share: float | None = None
    loop: float | None = None
    queued: float | None = None
    charged: float | None = None
    stretch_ms: float | None = None
    fullest: float | None = None
    photo_s: float | None = None
    disk_bytes: int = 0
    rows: int = 0
    sent_bytes: int = 0
    connections: int = 0
    ended: dict[str, int] = {}
    unprepared: dict[str, int] = {}
    generator: float = 0.0
    after_s: float = 0.0
    renewed: bool = False
    load: float = 0.0


class Figure(msgspec.Struct, frozen=True):
    """One number with its unit, and what to read beside it. JSON leaves out one that is not finite."""

    name: str
    value: float
    unit: str
    beside: str = ""


Bound = Literal["at most", "at least"]


class Bar(msgspec.Struct, frozen=True):
    """What is to hold: ``value`` at most or at least ``limit``. ``beside`` is to be read with it.

    A value that is None or not finite was not measured, and misses. ``must`` is of a bar of correctness,
    which a suite does not pass without.
    """

    name: str
    value: float | None
    bound: Bound
    limit: float
    unit: str
    beside: str = ""
    must: bool = False

    @property
    def met(self) -> bool:
        """Whether it was measured and holds."""
        if self.value is None or not math.isfinite(self.value):
            return False
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit


class Machine(msgspec.Struct, frozen=True):
    """What it ran on."""

    cpus: int
    cpu: str
    system: str
    python: str
    memory_gib: float = 0.0


def this_machine() -> Machine:
    """Read what machine this is."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
    system = f"{platform.system()} {platform.release()}"
    memory_gib = psutil.virtual_memory().total / 2**30
    return Machine(os.cpu_count() or 1, cpu, system, platform.python_version(), memory_gib)


class Report(msgspec.Struct, kw_only=True):
    """One scenario's report.

    ``flame_graph`` is the path of the SVG that --profile drew.
    ``failed`` says that the scenario could not go on; a remark has the reason.
    """

    scenario: str
    work: str
    machine: Machine = msgspec.field(default_factory=this_machine)
    rows: list[Row] = []
    transfers: list[Transfer] = []
    abuses: list[Abuse] = []
    audit: Audit | None = None
    figures: list[Figure] = []
    bars: list[Bar] = []
    remarks: list[str] = []
    logged: dict[str, int] = {}
    flame_graph: str = ""
    failed: bool = False

    @property
    def notes(self) -> list[str]:
        """The remarks, and notes where the server was not ours or other programs kept the machine busy."""
        notes = list(self.remarks)
        if self.rows and all(row.rss_peak_mib is None for row in self.rows):
            notes.append("CPU and memory of a server that was not started here are not measured")
        most = max(self.other_cpus, default=0.0)
        if most > BUSY_CPUS:
            busy = f"something else kept up to {most:.1f} of {self.machine.cpus} CPUs busy"
            notes.append(f"{busy}: figures are worse than this machine's alone")
        return notes

    @property
    def other_cpus(self) -> list[float]:
        """How many CPUs something else kept busy during each run."""
        found = [row.other_cpus for row in self.rows] + [one.other_cpus for one in self.transfers]
        return [cpus for cpus in found if cpus is not None]

    @property
    def passed(self) -> bool:
        """Whether every bar is met and no audit found a fault."""
        return all(bar.met for bar in self.bars) and not self.faulty

    @property
    def faulty(self) -> bool:
        """Whether the scenario could not go on, an audit found a fault, or a bar of correctness is missed."""
        audits = [self.audit, *(row.audit for row in self.rows)]
        found = any(audit is not None and audit.fault_count > 0 for audit in audits)
        return self.failed or found or any(bar.must and not bar.met for bar in self.bars)


def lost_bar(rows: Sequence[Row]) -> Bar:
    """Make the bar that no sync may be refused or stay without an answer."""
    lost, sent = sum(row.lost for row in rows), sum(row.sent for row in rows)
    return Bar(
        "syncs refused or not answered",
        lost,
        "at most",
        0,
        "",
        f"of {sent:,}, lost connections too",
        must=True,
    )


def connected_bar(rows: Sequence[Row]) -> Bar:
    """Make the bar that every device has to connect."""
    asked = f"of {max(row.asked for row in rows):,}"
    part = min(row.connected / row.asked for row in rows)
    return Bar("connected", 100 * part, "at least", 100, "%", asked)


def median_latency(rows: Sequence[Row]) -> Latency:
    """Return the median of each percentile over rounds of the same run."""
    return median_of([row.latency for row in rows])


def measured(report: Report, name: str) -> Figure | Bar | None:
    """Return a figure or a bar by its name, None without it."""
    every: list[Figure | Bar] = [*report.figures, *report.bars]
    return next((one for one in every if one.name == name), None)


def named(report: Report, name: str) -> float | None:
    """Return the value of a figure or a bar by its name, None without it."""
    found = measured(report, name)
    return None if found is None else found.value
