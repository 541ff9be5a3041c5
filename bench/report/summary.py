"""Sums up the outcome of a run: rates, latencies and what it used, step by step."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

from bench.harness.audit import Audit
from bench.harness.load_run import Run
from bench.harness.meter import Usage
from bench.load.plan import CODES
from bench.report.results import Row, Second
from bench.report.statistics import latency_of, percentile

UNANSWERED, STORED = (CODES.index(name) for name in ("unanswered", "synced"))
#: Where the percentile curve is read.
_CURVE: Final = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)
MIB: Final = 1 << 20


def row_of(run: Run, audit: Audit | None = None, place: int = -1, times: float | None = None) -> Row:
    """Sum up one step of a run, the last one unless told otherwise."""
    plan, outcome, ready = run.plan, run.outcome, run.ready
    step, (begin_us, end_us) = plan.steps[place], plan.bounds_us[place]
    latencies: dict[bool, list[int]] = {True: [], False: []}
    seconds: defaultdict[int, list[int]] = defaultdict(list)
    late_us: list[int] = []
    done: Counter[int] = Counter()
    due = sent = waiting = 0
    for due_us, sent_us, done_us, code in zip(
        outcome.due_us, outcome.sent_us, outcome.done_us, outcome.code, strict=True
    ):
        sent += begin_us <= sent_us < end_us
        if begin_us <= done_us < end_us:
            done[code] += 1
        if 0 <= sent_us < end_us and not 0 <= done_us < end_us:
            waiting += 1
        if not begin_us <= due_us < end_us:
            continue
        due += 1
        if sent_us >= 0:
            late_us.append(sent_us - due_us)
            if code != UNANSWERED:
                latencies[code == STORED].append(done_us - due_us)
            if code == STORED:
                seconds[(due_us - begin_us) // 1_000_000].append(done_us - due_us)
    late_us.sort()
    stored = sorted(latencies[True])
    usage = run.usage[place] if run.usage else None
    cpu_ms = usage.cpu_ms if usage is not None else {}
    spent_s = step.duration_s
    return Row(
        name=step.name,
        loop=plan.loop,
        asked=len(plan.devices),
        connected=ready.connected,
        connect_s=ready.connect_s,
        refusals=ready.refusals,
        times=times,
        wanted_per_s=due / spent_s,
        offered_per_s=sent / spent_s,
        stored_per_s=done[STORED] / spent_s,
        refused_per_s=(done.total() - done[STORED]) / spent_s,
        refused={outcome.codes[code]: count for code, count in done.items() if code != STORED},
        latency=latency_of(stored),
        refusal=latency_of(latencies[False]),
        waiting=waiting,
        late_p50_ms=percentile(late_us, 50) / 1000,
        late_p99_ms=percentile(late_us, 99) / 1000,
        lag_p99_ms=percentile(sorted(outcome.lag_us), 99) / 1000,
        frame_us=1000 * cpu_ms.get("generator", 0.0) / sent if sent else 0.0,
        sent=sum(sent_us >= 0 for sent_us in outcome.sent_us),
        answered=len(stored),
        unanswered=unanswered(run),
        errors=_errors(run),
        new_records=_new_records(run),
        cpus={tree: used_ms / 1000 / spent_s for tree, used_ms in cpu_ms.items()},
        cpu_ms={tree: used_ms / done[STORED] for tree, used_ms in cpu_ms.items() if done[STORED]},
        worker_cpu_ms=[
            used_ms / done[STORED] for used_ms in (usage.worker_cpu_ms if usage else ()) if done[STORED]
        ],
        other_cpus=_other_cpus(usage, spent_s),
        rss_peak_mib=None if usage is None or usage.rss_peak_bytes is None else usage.rss_peak_bytes / MIB,
        audit=audit,
        curve=[(percent, percentile(stored, percent) / 1000) for percent in _CURVE],
        seconds=[_second(seconds[index]) for index in range(int(spent_s))],
    )


def unanswered(run: Run) -> int:
    """Count the syncs of a run that left and have no answer."""
    outcome = run.outcome
    return sum(
        sent_us >= 0 and code == UNANSWERED
        for sent_us, code in zip(outcome.sent_us, outcome.code, strict=True)
    )


def _errors(run: Run) -> dict[str, int]:
    outcome = run.outcome
    errors = Counter(run.codes)
    del errors["synced"], errors["unanswered"]
    errors.update(outcome.ended)
    errors["not_connected"] = sum(sent_us < 0 for sent_us in outcome.sent_us)
    return dict(+errors)


def _new_records(run: Run) -> int:
    bases = zip(run.outcome.code, run.outcome.base, strict=False)
    return sum(code == STORED and base == 0 for code, base in bases)


def _other_cpus(usage: Usage | None, spent_s: float) -> float | None:
    if usage is None or usage.rss_peak_bytes is None:
        return None
    return max(0.0, usage.machine_cpu_ms - sum(usage.cpu_ms.values())) / 1000 / spent_s


def _second(latencies_us: list[int]) -> Second:
    latencies_us.sort()
    p50_ms, p99_ms = (percentile(latencies_us, percent) / 1000 for percent in (50, 99))
    return Second(len(latencies_us), p50_ms, p99_ms)
