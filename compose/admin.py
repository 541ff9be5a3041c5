"""What a person settles and retries: read from the stores, and committed as a device's message is."""

from __future__ import annotations

from compose.command_commit import WorkCommitter
from engine.commit.ports import Store
from engine.model.rows import QuarantineRef
from engine.operate.conflicts import as_resolution
from engine.operate.ports import RefusedError
from engine.operate.quarantine_retry import RetryStore, decode_results, retry_push
from engine.operate.rows import ConflictCase, QuarantineCase, Recovered
from engine.plan.work import Outcome, PushAnswer, ResolveAnswer
from engine.runtime.ports import StoreError
from engine.wire.errors import SyncError
from engine.wire.messages import Choice
from storage.postgres.pool import Database
from storage.stores.audit import process_account
from storage.stores.conflicts import PostgresConflicts
from storage.stores.quarantine import PostgresQuarantine


class ConflictAdmin(PostgresConflicts):
    """``engine.operate.ports.ConflictAdmin``."""

    def __init__(self, database: Database, committer: WorkCommitter) -> None:
        super().__init__(database, committer.sealing)
        self._committer = committer

    async def settle(
        self,
        case: ConflictCase,
        choice: Choice,
        version: int,
        merged: bytes | None,
        changes: int | None = None,
    ) -> ResolveAnswer:
        """Settle a conflict by the rules of ``engine.plan.resolve``."""
        show = f"`run.py conflicts show {case.conflict.conflict_id}`"
        if case.record is None:
            raise RefusedError("the record of this conflict was erased: there is nothing left to settle")
        try:
            validator, now_us = self._committer.validator, self._committer.now_us()
            actor = process_account()
            work = as_resolution(case, choice, version, merged, validator, now_us, actor, changes)
        except SyncError as error:
            raise RefusedError(error.message) from None
        outcome = await self._committer.commit(case.tenant, work)
        if isinstance(outcome, ResolveAnswer):
            return outcome
        match outcome:
            case SyncError(code="conflict_stale"):
                raise RefusedError(f"{outcome.message}: look again with {show}")
            case SyncError(code="conflict_closed"):
                raise RefusedError(f"{outcome.message}: {show} says how")
        raise _refused(outcome)


class QuarantineAdmin(PostgresQuarantine):
    """``engine.operate.ports.QuarantineAdmin``."""

    def __init__(self, database: Database, committer: WorkCommitter) -> None:
        super().__init__(database, committer.sealing)
        self._committer = committer

    async def retry(self, case: QuarantineCase, data: bytes | None, *, hold: bool = False) -> Recovered:
        """Send an item again, and with it the items behind it."""
        row = case.row
        rows = [row, *await self.behind(row)]
        items = [QuarantineRef(one.tenant_id, one.quarantine_id) for one in rows]
        retries: list[RetryStore] = []

        def for_retry(store: Store) -> Store:
            retries.append(RetryStore(store, items, [len(one.item) for one in rows], process_account()))
            return retries[0]

        try:
            validator, now_us = self._committer.validator, self._committer.now_us()
            work = retry_push(rows, case.tenant, data, validator, now_us)
        except SyncError as error:
            drop = f"`run.py quarantine drop {row.quarantine_id}`"
            raise RefusedError(
                f"this cannot be sent, correct it with --data: {error.message} (what no data can correct,"
                f" {drop} gives up)"
            ) from None
        held = row.domain if hold else None
        outcome = await self._committer.commit(case.tenant, work, for_retry, held)
        if isinstance(outcome, SyncError) and outcome.code == "idempotency_key_reused":
            raise RefusedError("another retry stored this item, with other data")
        if not isinstance(outcome, PushAnswer):
            raise _refused(outcome)
        if retries[0].late:
            raise RefusedError(
                "some of these items were recovered at the same time:"
                " see with `run.py quarantine list` whether this one is left, and try again"
            )
        result, *behind = decode_results(outcome.results)
        if result.error is not None:
            await self.note_retry(items[0], result.error, corrected=data is not None)
        else:  # otherwise nothing was written, and the items behind it go on waiting
            for item, one in zip(items[1:], behind, strict=True):
                if one.error is not None:
                    await self.note_retry(item, one.error, corrected=False)
        lost = result.status == "resolved" and result.winner == "server"
        return Recovered(
            result,
            {item.quarantine_id: one for item, one in zip(items[1:], behind, strict=True)},
            await self.record(row) if lost else None,
        )


def _refused(outcome: Outcome) -> StoreError:
    assert isinstance(outcome, SyncError)
    if outcome.kind.retryable:
        return StoreError(f"{outcome.message}: run the command again")
    return RefusedError(outcome.message)
