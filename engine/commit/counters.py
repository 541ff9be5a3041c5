"""What a committer counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, get_args

import msgspec

from engine.model.domains import Policy
from engine.plan.batch import Plan
from engine.runtime.metrics import SIZE_BOUNDS, Distribution, Metric, Value, counter
from engine.wire.messages import Choice, Status

#: What becomes of a new conflict: a side wins by policy, it waits for a person, or it joins one that waits.
_OUTCOMES: Final = ("server", "client", "merged", "open", "held")


class Counters(msgspec.Struct):
    """What the committer did since it started.

    Items and conflicts are those of messages that were answered. Messages that were sent again are not among
    them, also if their first answer never came because the outcome of its commit was unknown.
    """

    batch_sizes: Distribution = msgspec.field(default_factory=lambda: Distribution(SIZE_BOUNDS))
    batch_durations: Distribution = msgspec.field(default_factory=Distribution)
    commit_durations: Distribution = msgspec.field(default_factory=Distribution)
    messages: int = 0
    retries: int = 0
    unknown_outcomes: int = 0
    poisoned: int = 0
    failed: int = 0
    old_keys_reused: int = 0
    refused_at_limit: int = 0
    refused_queue_full: int = 0
    items: Counter[str] = msgspec.field(default_factory=lambda: Counter(dict.fromkeys(get_args(Status), 0)))
    conflicts: Counter[tuple[str, str]] = msgspec.field(
        default_factory=lambda: Counter(
            {(policy, outcome): 0 for policy in get_args(Policy) for outcome in _OUTCOMES}
        )
    )
    settled: Counter[str] = msgspec.field(default_factory=lambda: Counter(dict.fromkeys(get_args(Choice), 0)))

    @property
    def batches(self) -> int:
        """The number of committed batches."""
        return sum(self.batch_sizes.counts)

    def committed(self, messages: int, plan: Plan) -> None:
        """Count a batch that was committed.

        Args:
            messages: How many messages it had.
            plan: What was committed.
        """
        self.batch_sizes.add(messages)
        self.messages += messages
        self.items.update(plan.statuses)
        if plan.conflicts:
            self.conflicts.update(plan.conflicts)
        if plan.settled:
            self.settled.update(plan.settled)

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        yield self.batch_sizes.metric("tidemark_batch_size_messages", "Messages of a committed batch")
        yield self.batch_durations.metric(
            "tidemark_batch_duration_seconds", "From taking a batch out of the queue to its answers"
        )
        yield self.commit_durations.metric(
            "tidemark_commit_duration_seconds", "The writes of a batch with its COMMIT"
        )
        yield from (
            counter("tidemark_batch_retries", "Batches tried again", self.retries),
            counter("tidemark_commits_unknown", "Commits of unknown outcome", self.unknown_outcomes),
            counter("tidemark_messages_poisoned", "Messages refused by the database", self.poisoned),
            counter("tidemark_messages_failed", "Messages that could not be stored", self.failed),
            counter(
                "tidemark_messages_without_room", "Messages refused for a full tenant", self.refused_at_limit
            ),
            counter("tidemark_queue_full", "Messages refused for a full queue", self.refused_queue_full),
            counter(
                "tidemark_old_keys_reused", "Keys used again after more than a day", self.old_keys_reused
            ),
        )
        yield Value("counter", "tidemark_items", "Items of answered syncs, by status", self.items, "status")
        labels = ("policy", "outcome")
        yield Value(
            "counter", "tidemark_conflicts", "New conflicts, by policy and outcome", self.conflicts, labels
        )
        text = "Open conflicts that a person settled, by choice"
        yield Value("counter", "tidemark_conflicts_settled", text, self.settled, "choice")
