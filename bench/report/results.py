"""What a benchmark found: one structure, printed as text, written as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final, Literal

import msgspec
from hdrh.histogram import HdrHistogram

from bench.harness.audit import Audit
from bench.harness.drive import Run, Usage
from bench.load.plan import Outcome, Second

#: Where the percentile curve is read.
_CURVE: Final = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)
_MIB: Final = 1 << 20


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds from the intended time of sending to the answer."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One run. CPU is milliseconds a sync by process tree; ``late_*`` is how late syncs were sent.

    ``worker_cpu_ms`` is each worker's part of the server's, also by all syncs of the run.

    ``other_cpus`` is how many CPUs were busy with something else, on average.
    """

    name: str
    loop: Literal["open", "closed", "idle"]
    asked: int
    connected: int
    connect_s: float
    refusals: dict[str, int]
    syncs_per_s: float
    latency: Latency
    late_p50_ms: float
    late_p99_ms: float
    sent: int
    answered: int
    unanswered: int
    errors: dict[str, int]
    new_records: int
    cpu_ms: dict[str, float]
    other_cpus: float | None
    rss_peak_mib: float | None
    audit: Audit | None
    curve: list[tuple[float, float]]
    seconds: list[Second]
    worker_cpu_ms: list[float] = []

    @property
    def faultless(self) -> bool:
        """Whether every sync was acknowledged, and what was acknowledged is stored."""
        return not (self.errors or self.unanswered or (self.audit is not None and self.audit.fault_count))


#: Below this part of the wanted rate a load counts as not offered.
OFFERED: Final = 0.95


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One load that was offered for a while. Rates are syncs a second, ``times`` is the load over capacity.

    Latencies are of the syncs that were due in that time, the stored ones' and the refused ones', from when
    they were due; rates count what happened in it. ``waiting`` is how many were unanswered at its end.
    ``late_p99_ms`` is how late syncs left and ``lag_p99_ms`` how late the generator's own timers were: by so
    much it may have been late with reading, too. ``cpus`` is how many CPUs each process tree kept busy,
    ``frame_us`` the generator's CPU time by syncs sent.
    """

    name: str
    times: float | None
    wanted_per_s: float
    offered_per_s: float
    stored_per_s: float
    refused_per_s: float
    refused: dict[str, int]
    stored: Latency
    refusal: Latency
    waiting: int
    late_p99_ms: float
    lag_p99_ms: float
    frame_us: float
    cpus: dict[str, float]
    other_cpus: float | None
    rss_peak_mib: float | None

    @property
    def offered(self) -> bool:
        """Whether it really was the load that was wanted."""
        return self.offered_per_s >= OFFERED * self.wanted_per_s


class Window(msgspec.Struct, frozen=True):
    """What became of the syncs due in a tenth of a second; ``p95_ms`` is None where none was stored."""

    at_s: float
    stored: int
    refused: int
    unanswered: int
    p95_ms: float | None


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """One run of uploads, many at once. A MB is 1,000,000 bytes.

    ``whole`` of the ``begun`` uploads were acknowledged chunk by chunk, downloaded and found to be as they
    were sent. ``chunk`` is how long a chunk took from the first byte to its acknowledgement, ``retries`` are
    requests that were sent again, by reason. ``cpus`` is how many CPUs each process tree kept busy;
    ``other_cpus`` is None beside syncs, whose rows have it.
    """

    name: str
    begun: int
    whole: int
    chunks: int
    elapsed_s: float
    mb_per_s: float
    download_mb_per_s: float
    chunk: Latency
    retries: dict[str, int]
    cpus: dict[str, float]
    other_cpus: float | None
    rss_peak_mib: float
    fault_count: int
    faults: list[str]


class Felt(msgspec.Struct, frozen=True, kw_only=True):
    """What devices of another tenant felt: latencies by kind of message, and refusals by code.

    ``late_p99_ms`` is how late they sent; it is in the latencies.
    """

    heartbeat: Latency
    sync: Latency
    pull: Latency
    refused: dict[str, int]
    late_p99_ms: float


Phase = Literal["at rest", "one device", "ten devices", "sink of one", "sink of ten"]


class Abuse(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of an attack: others at rest, under attack, or beside the same bytes into a sink.

    ``before`` says that it was measured on the version to compare with. ``loop`` is the part of the time
    that the worker's event loop was on a core, ``queued`` the part that it was ready and had none,
    ``charged`` the part that the server charged to devices; ``share`` the part of a core that all threads of
    the worker used. ``window_s`` is how long was looked at, which is until others had their last answer.

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
    """One number with its unit, and what it is beside."""

    name: str
    value: float
    unit: str
    beside: str = ""


class Bar(msgspec.Struct, frozen=True):
    """What must hold: ``value`` at most or at least ``limit``. ``beside`` is to be read with it."""

    name: str
    value: float
    bound: Literal["at most", "at least"]
    limit: float
    unit: str
    beside: str = ""

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit


class Machine(msgspec.Struct, frozen=True):
    """What it ran on."""

    cpus: int
    cpu: str
    system: str
    python: str


#: Above this many CPUs busy with something else, latencies and rates suffer from it.
_BUSY_CPUS: Final = 0.2


class Report(msgspec.Struct, kw_only=True):
    """One scenario's report. ``windows`` are the run's whose highest load is ``began_s`` to ``over_s``."""

    scenario: str
    work: str
    machine: Machine
    rows: list[Row] = []
    loads: list[Load] = []
    windows: list[Window] = []
    transfers: list[Transfer] = []
    abuses: list[Abuse] = []
    began_s: float = 0.0
    over_s: float = 0.0
    audit: Audit | None = None
    figures: list[Figure] = []
    bars: list[Bar] = []
    remarks: list[str] = []
    logged: dict[str, int] = {}

    @property
    def notes(self) -> list[str]:
        """The remarks, and where the machine was not ours alone."""
        seen = [row.other_cpus for row in self.rows] + [load.other_cpus for load in self.loads]
        seen += [transfer.other_cpus for transfer in self.transfers]
        others = [cpus for cpus in seen if cpus is not None]
        if not others or max(others) <= _BUSY_CPUS:
            return self.remarks
        most = f"something else kept up to {max(others):.1f} of {self.machine.cpus} CPUs busy meanwhile"
        return [*self.remarks, f"{most}: figures are worse than this machine's alone"]

    @property
    def passed(self) -> bool:
        """Whether every bar is met and no audit found a fault."""
        audits = [audit for audit in [self.audit, *(row.audit for row in self.rows)] if audit is not None]
        return all(bar.met for bar in self.bars) and not any(audit.fault_count for audit in audits)


def as_json(reports: Sequence[Report]) -> bytes:
    """Encode reports with their verdicts: ``{"passed", "reports"}``."""
    whole = {
        "passed": all(report.passed for report in reports),
        "reports": [
            {
                **msgspec.structs.asdict(report),
                "loads": [{**msgspec.structs.asdict(load), "offered": load.offered} for load in report.loads],
                "bars": [{**msgspec.structs.asdict(bar), "met": bar.met} for bar in report.bars],
                "remarks": report.notes,
                "passed": report.passed,
            }
            for report in reports
        ],
    }
    return msgspec.json.format(msgspec.json.encode(whole)) + b"\n"


def row_of(run: Run, audit: Audit | None) -> Row:
    """Sum up a run."""
    outcome, usage = run.outcome, run.usage
    latencies, lateness = (_histogram(text) for text in (outcome.histogram, outcome.lateness))
    cpu_ms = {"generator": outcome.cpu_ms, **(usage.cpu_ms if usage is not None else {})}
    return Row(
        name=run.name,
        loop=run.plan.mode,
        asked=outcome.asked,
        connected=outcome.connected,
        connect_s=outcome.connect_s,
        refusals=outcome.refusals,
        syncs_per_s=outcome.completed / outcome.duration_s if outcome.duration_s else 0.0,
        latency=latency_of(outcome.histogram),
        late_p50_ms=_ms(lateness, 50),
        late_p99_ms=_ms(lateness, 99),
        sent=outcome.sent,
        answered=outcome.answered,
        unanswered=outcome.unanswered,
        errors=outcome.errors,
        new_records=outcome.new_records,
        cpu_ms={tree: spent / outcome.completed for tree, spent in cpu_ms.items()}
        if outcome.completed
        else {},
        other_cpus=None if usage is None else _other_cpus(outcome, usage),
        rss_peak_mib=None if usage is None else usage.rss_peak_bytes / _MIB,
        audit=audit,
        curve=[(percentile, _ms(latencies, percentile)) for percentile in _CURVE],
        seconds=outcome.seconds,
        worker_cpu_ms=[spent / outcome.completed for spent in usage.worker_cpu_ms]
        if usage is not None and outcome.completed
        else [],
    )


def _other_cpus(outcome: Outcome, usage: Usage) -> float:
    others_ms = usage.machine_cpu_ms - outcome.cpu_ms - sum(usage.cpu_ms.values())
    return max(0.0, others_ms) / 1000 / outcome.duration_s


def latency_of(encoded: str) -> Latency:
    """Read the percentiles of a histogram of microseconds; zeros where nothing was counted."""
    counted = _histogram(encoded)
    return Latency(*(_ms(counted, percentile) for percentile in (50, 95, 99, 100)))


def _histogram(encoded: str) -> HdrHistogram | None:
    return HdrHistogram.decode(encoded) if encoded else None


def _ms(histogram: HdrHistogram | None, percentile: float) -> float:
    return 0.0 if histogram is None else histogram.get_value_at_percentile(percentile) / 1000


def median_latency(rows: Sequence[Row]) -> Latency:
    """Take the median of each percentile over rounds of the same run."""
    return median_of([row.latency for row in rows])


def median_of(latencies: Sequence[Latency]) -> Latency:
    """Take the median of each percentile."""
    return Latency(
        *(median(getattr(latency, field) for latency in latencies) for field in Latency.__struct_fields__)
    )


def this_machine() -> Machine:
    """Look at what we run on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(
        os.cpu_count() or 1,
        models[0] if models else cpu,
        f"{platform.system()} {platform.release()}",
        platform.python_version(),
    )
