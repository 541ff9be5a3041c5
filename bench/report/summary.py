"""Sums up the outcome of a run: rates, latencies and what it used, step by step."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, Final

from bench.harness.audit import Audit, Auditor
from bench.harness.load_run import Run, Target, run_tasks
from bench.load.plan import CODES, Loop
from bench.report.results import Row, Window
from bench.report.statistics import Latency, histogram_of, latency_of, percentile

UNANSWERED, STORED = (CODES.index(name) for name in ("unanswered", "synced"))
MIB: Final = 1 << 20
#: Of one window of a row.
WINDOW_US: Final = 100_000


async def audited(
    name: str, target: Target, loop: Loop, connections: int, duration_s: float, **more: Any
) -> tuple[Run, Row]:
    """Do as ``run_tasks``, sum up, and audit the database if there is one. Raises BenchError, StoreError."""
    auditor = Auditor(target.dsn) if target.dsn else None
    run = await run_tasks(name, target, loop, connections, duration_s, **more)
    return run, row_of(run, auditor.audit(run) if auditor is not None else None)


def row_of(run: Run, audit: Audit | None = None, place: int = -1, times: float | None = None) -> Row:
    """Sum up one step of a run, the last one unless told otherwise."""
    plan, outcome = run.plan, run.outcome
    step, (begin_us, end_us) = plan.steps[place], plan.bounds_us[place]
    stored_us: list[int] = []
    refused_us: list[int] = []
    windows: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
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
            windows[(due_us - begin_us) // WINDOW_US].append((code, done_us - due_us))
            if code == STORED:
                stored_us.append(done_us - due_us)
            elif code != UNANSWERED:
                refused_us.append(done_us - due_us)
    late_us.sort()
    usage = run.usage[place] if run.usage else None
    cpu_ms = usage.cpu_ms if usage is not None else {}
    workers_ms = usage.worker_cpu_ms if usage is not None else ()
    peak_bytes = usage.rss_peak_bytes if usage is not None else None
    spent_s, stored = step.duration_s, done[STORED]
    return Row(
        name=step.name,
        loop=plan.loop,
        asked=len(plan.devices),
        connected=run.ready.connected,
        connect_s=run.ready.connect_s,
        refusals=run.ready.refusals,
        times=times,
        due=due,
        wanted_per_s=due / spent_s,
        offered_per_s=sent / spent_s,
        stored_per_s=stored / spent_s,
        refused_per_s=(done.total() - stored) / spent_s,
        refused={outcome.codes[code]: count for code, count in done.items() if code != STORED},
        latency=latency_of(stored_us),
        histogram=histogram_of(stored_us),
        refusal=latency_of(refused_us),
        waiting=waiting,
        late_p50_ms=percentile(late_us, 50) / 1000,
        late_p99_ms=percentile(late_us, 99) / 1000,
        lag_p99_ms=percentile(sorted(outcome.lag_us), 99) / 1000,
        frame_us=1000 * cpu_ms.get("generator", 0.0) / sent if sent else 0.0,
        sent=sum(sent_us >= 0 for sent_us in outcome.sent_us),
        unanswered=unanswered(run),
        errors=_errors(run),
        cpus={tree: used_ms / 1000 / spent_s for tree, used_ms in cpu_ms.items()},
        cpu_ms={tree: used_ms / stored for tree, used_ms in cpu_ms.items() if stored},
        worker_cpu_ms=[used_ms / stored for used_ms in workers_ms if stored],
        other_cpus=None
        if usage is None or peak_bytes is None
        else max(0.0, usage.machine_cpu_ms - sum(cpu_ms.values())) / 1000 / spent_s,
        rss_peak_mib=None if peak_bytes is None else peak_bytes / MIB,
        rss_end_mib=None if usage is None or usage.rss_end_bytes is None else usage.rss_end_bytes / MIB,
        audit=audit,
        windows=[_window(index, windows[index]) for index in sorted(windows)],
    )


def unanswered(run: Run) -> int:
    """Count the syncs of a run that left and have no answer."""
    sent = zip(run.outcome.sent_us, run.outcome.code, strict=True)
    return sum(sent_us >= 0 and code == UNANSWERED for sent_us, code in sent)


def latencies_beside(run: Run, began_s: float, ended_s: float, *, warmup_s: float) -> tuple[Latency, Latency]:
    """Return the latency of syncs that were due outside of a time, and of those within it.

    Args:
        run: A run of an open loop.
        began_s: When the time begins, on the clock of ``perf_counter``.
        ended_s: When it ends.
        warmup_s: Syncs that were due before do not count.
    """
    begin_us, end_us = ((at_s - run.began_s) * 1e6 for at_s in (began_s, ended_s))
    found: dict[bool, list[int]] = {False: [], True: []}
    outcome = run.outcome
    for due_us, done_us, code in zip(outcome.due_us, outcome.done_us, outcome.code, strict=True):
        if code == STORED and due_us >= warmup_s * 1e6:
            found[begin_us <= due_us < end_us].append(done_us - due_us)
    return latency_of(found[False]), latency_of(found[True])


def _errors(run: Run) -> dict[str, int]:
    errors = Counter(run.codes)
    del errors["synced"], errors["unanswered"]
    errors.update(run.outcome.ended)
    errors["not_connected"] = sum(sent_us < 0 for sent_us in run.outcome.sent_us)
    return dict(+errors)


def _window(index: int, syncs: list[tuple[int, int]]) -> Window:
    stored_us = sorted(latency_us for code, latency_us in syncs if code == STORED)
    silent = sum(code == UNANSWERED for code, _ in syncs)
    p95_ms = percentile(stored_us, 95) / 1000 if stored_us else None
    refused = len(syncs) - len(stored_us) - silent
    return Window(index * WINDOW_US / 1e6, len(stored_us), refused, silent, p95_ms)
