"""Ways to break a promise by a few characters, each with the tests that have to notice."""

from __future__ import annotations

from typing import NamedTuple

_STORE = "tests/storage/stores/test_commit.py::"
_COMMITTER = "tests/engine/commit/test_committer.py::"
_ORDER = "tests/system/test_feed_order.py::"
_HAZARDS = "tests/storage/stores/test_commit_hazards.py::"
_ADMISSION = "tests/engine/commit/test_admission.py::"
_CONNECTION = "tests/handlers/sync/test_connection.py::"
_BACKOFF = "tests/handlers/sync/test_push_backoff.py::"
_HUB = "tests/engine/feed/test_hub.py::"
_CONNECTIONS = "tests/handlers/sync/test_connections.py::"
_STANDBY = "tests/storage/stores/test_standby.py::"
_EXPENSIVE = "tests/engine/commit/test_committer_expensive.py::"
_SELECTION = "tests/engine/plan/test_selection.py::"
_CAPACITY = "tests/engine/plan/bounds/test_capacity.py::"
_PLAN = "tests/engine/plan/test_batch.py::"
_QUEUE = "tests/engine/commit/test_queue_overload.py::"
_VALIDATION = "tests/engine/commit/test_validation.py::"
_STATES = "tests/storage/stores/test_upload_states.py::"
_PLANNED = "tests/engine/plan/test_attachment_states.py::"
_CLEANUP = "tests/engine/uploads/test_cleanup.py::"

_LOCKED_THEN_READ = (
    _STORE + "test_a_tenant_is_locked_until_the_transaction_ends_and_then_read_afresh[postgres]"
)
_MANY_WRITERS = _STORE + "test_many_writers_give_a_feed_without_gaps[postgres]"
_UNKNOWN_OUTCOME = _COMMITTER + "test_committer_unknown_outcome_is_resolved_by_running_again[True]"
_OUTLASTED = _HAZARDS + "test_a_commit_that_outlasts_the_clients_patience_is_settled_by_its_key"
_COMMITTED, _ROLLED_BACK = _OUTLASTED + "[it commits after all]", _OUTLASTED + "[it rolls back]"
_OF_TENANTS = "WHERE tenant_id = ANY(%(tenants)s::int[])"
_LOCK_ORDER = " ORDER BY tenant_id FOR UPDATE"
_LOCK = f"SELECT * FROM tenant_counters {_OF_TENANTS}{_LOCK_ORDER}"

#: The text of a program, and the text put in its place.
Change = tuple[str, str]


class Mutant(NamedTuple):
    """One fault: ``changes`` are (old, new) texts of one file, ``red`` the tests that must fail of it."""

    file: str
    changes: tuple[Change, ...]
    red: tuple[str, ...]


MUTANTS: dict[str, Mutant] = {
    "acknowledged before the commit": Mutant(
        "engine/commit/lane.py",
        (
            (
                "await metered(transaction.commit(plan.writes), clock_s, took)",
                "self._late = __import__('asyncio').create_task(transaction.commit(plan.writes))",
            ),
        ),
        (
            _HAZARDS + "test_nothing_is_answered_before_its_commit",
            _COMMITTER + "test_committer_messages_during_a_commit_are_one_batch",
        ),
    ),
    "acknowledged before it is on disk": Mutant(
        "storage/postgres/transactions.py",
        (("        synchronous_commit=synchronous_commit,\n", ""),),
        (_HAZARDS + "test_a_batch_is_durable_whatever_the_database_defaults_to",),
    ),
    "a sequence in place of the locked counter": Mutant(
        "storage/stores/commit/reads.py",
        (
            (_LOCK_ORDER, " ORDER BY tenant_id"),
            ('seq="seq",', "seq=\"nextval('tenants_tenant_id_seq')\","),
        ),
        (_MANY_WRITERS,),
    ),
    "counters read without a lock": Mutant(
        "storage/stores/commit/reads.py",
        ((_LOCK_ORDER, " ORDER BY tenant_id"),),
        (_LOCKED_THEN_READ, _MANY_WRITERS),
    ),
    "rows read in the snapshot from before the lock": Mutant(
        "storage/stores/commit/reads.py",
        (
            (_LOCK_ORDER, ""),
            (f'" FROM tenant_counters {_OF_TENANTS}"', f'" FROM ({_LOCK}) AS locked"'),
        ),
        (_LOCKED_THEN_READ,),
    ),
    "tenants locked in no order": Mutant(
        "storage/stores/commit/reads.py",
        ((_LOCK_ORDER, " ORDER BY random() FOR UPDATE"),),
        (_ORDER + "test_writers_of_the_same_tenants_in_any_order_never_deadlock",),
    ),
    "keys not looked up": Mutant(
        "storage/stores/commit/reads.py",
        ((" bool(read_set.keys),", " False,"),),
        (_STORE + "test_what_is_committed_is_found_again[postgres]", _COMMITTED),
    ),
    "kept answers ignored": Mutant(
        "engine/plan/push.py",
        (("known = unit.keys.get(ref)", "known = None"),),
        (_UNKNOWN_OUTCOME, _COMMITTED),
    ),
    "keys of one device taken for another's": Mutant(
        "engine/commit/validation.py",
        ((r'f"{session.device_id}\0{sync.key}"', 'f"{sync.key}"'),),
        ("tests/contract/test_idempotency_ws.py::test_key_belongs_to_its_device_and_its_tenant",),
    ),
    "a commit of unknown outcome taken for a success": Mutant(
        "storage/postgres/transactions.py",
        (("raise StoreUnknownError(str(error)) from None", "return"),),
        (_ROLLED_BACK,),
    ),
    "a commit of unknown outcome taken for a failure": Mutant(
        "storage/postgres/transactions.py",
        (("            raise StoreUnknownError(str(error)) from None", "            raise"),),
        (_COMMITTED,),
    ),
    "a failure told where the outcome is unknown": Mutant(
        "engine/commit/lane.py",
        (("                        unknown = True\n", "                        raise\n"),),
        (_UNKNOWN_OUTCOME, _COMMITTED),
    ),
    "subscribers not told of an unknown outcome": Mutant(
        "engine/commit/lane.py",
        (("            if unknown:\n", "            if False:\n"),),
        (_UNKNOWN_OUTCOME,),
    ),
    "a warning of COMMIT overheard": Mutant(
        "storage/postgres/connection.py",
        (("if self._take_warnings():", "if False:"),),
        (_STANDBY + "test_commit_unconfirmed_by_standby_is_answered_after_confirmation",),
    ),
    "a whole batch refused for one message": Mutant(
        "engine/commit/lane.py",
        (
            (
                "return self._requeue(batch[middle:]) + await self.run(batch[:middle])",
                "return sum([await self._fail_alone(one, error) for one in batch])",
            ),
        ),
        (_COMMITTER + "test_committer_refused_value_fails_its_message_alone[7]",),
    ),
    "quarantine forgotten": Mutant(
        "storage/stores/commit/writes.py",
        (("    if writes.quarantine:\n", "    if False:\n"),),
        (_HAZARDS + "test_a_value_that_the_database_would_refuse_rejects_its_item_alone",),
    ),
    "a cursor moved before its page was taken": Mutant(
        "engine/feed/subscription.py",
        (
            (
                "        if not self.sink.send(body, self.page_suffix):",
                "        self.position = position\n        if not self.sink.send(body, self.page_suffix):",
            ),
        ),
        (
            "tests/engine/feed/test_subscription.py::test_subscription_position_moves_only_when_the_sink_took_the_page",
        ),
    ),
    "a gap passed over": Mutant(
        "engine/feed/tail.py",
        (
            ("if head is None or record.seq > head + 1:", "if head is None:"),
            ("elif record.seq == head + 1:", "elif record.seq > head:"),
        ),
        (
            "tests/engine/feed/test_tail.py::test_tail_change_ahead_of_a_gap_waits",
            _ORDER + "test_feed_every_reader_gets_every_change_in_order",
        ),
    ),
    "a change missed before the first page forgotten": Mutant(
        "engine/feed/hub.py",
        (
            (
                "            self.tail.reset(high_seq)",
                "            self._may_have_missed = False\n            self.tail.reset(high_seq)",
            ),
        ),
        (_HUB + "test_hub_missed_change_while_fresh_makes_it_incomplete_at_the_first_page",),
    ),
    "a change missed during a read forgotten": Mutant(
        "engine/feed/hub.py",
        (("        if page.more:\n", "        self._may_have_missed = False\n        if page.more:\n"),),
        (_HUB + "test_hub_change_missed_during_a_read_needs_another_read",),
    ),
    "a gap wider than a page passed over": Mutant(
        "engine/feed/hub.py",
        (("        if page.more:\n", "        if False:\n"),),
        (_HUB + "test_hub_gap_wider_than_the_page_empties_the_tail",),
    ),
    "a reread for nobody": Mutant(
        "engine/feed/hub.py",
        ((" and bool(self.subscriptions)", ""),),
        (_HUB + "test_hub_without_subscriptions_stays_incomplete_and_is_not_reread",),
    ),
    "the commit of another process passed over": Mutant(
        "engine/feed/hub.py",
        (("head >= seq:", "head + 1 >= seq:"),),
        (_HUB + "test_hub_remote_commit_up_to_the_head_changes_nothing",),
    ),
    "two rereads of one tenant at once": Mutant(
        "engine/feed/hub.py",
        (("if self._is_rereading or not self.needs_reread:", "if not self.needs_reread:"),),
        (_HUB + "test_hub_reread_begins_once_and_ends_complete",),
    ),
    "pages of all tenants": Mutant(
        "storage/stores/feed.py",
        (("WHERE tenant_id = %(tenant)s AND seq > ", "WHERE seq > "),),
        (_STORE + "test_feed_pages_without_policies_are_of_their_tenant_alone",),
    ),
    "a cancelled statement taken for a cancelled task": Mutant(
        "storage/postgres/connection.py",
        (
            (
                "closed:\n            return StoreRetryError(sentence)",
                'closed:\n            raise __import__("asyncio").CancelledError',
            ),
        ),
        (_HAZARDS + "test_a_statement_that_the_server_cancels_is_no_cancelled_task",),
    ),
    "a cancellation forgotten that comes with an answer": Mutant(
        "storage/postgres/driver.py",
        (
            (
                "except (asyncio.CancelledError, TimeoutError):\n            self.close()",
                "except (asyncio.CancelledError, TimeoutError):\n            return []",
            ),
        ),
        (_HAZARDS + "test_a_cancellation_that_comes_with_the_answer_is_heeded",),
    ),
    "waiting that tires before a stalled holder is freed": Mutant(
        "storage/postgres/transactions.py",
        (("LOCK_WAIT_MS: Final = 3000", "LOCK_WAIT_MS: Final = 300"),),
        (_HAZARDS + "test_a_stopped_server_frees_its_tenants_before_others_tire_of_waiting",),
    ),
    "settings left behind on a connection": Mutant(
        "storage/postgres/transactions.py",
        (("'{value}', true)", "'{value}', false)"),),
        (_HAZARDS + "test_the_settings_of_a_batch_end_with_it",),
    ),
    "a drain that waits for no commit": Mutant(
        "handlers/server.py",
        ((" committer.run, committer.drain)", " committer.run)"),),
        ("tests/system/test_drain.py::test_drain_under_load_loses_nothing",),
    ),
    "a body that takes a second token": Mutant(
        "engine/commit/admission.py",
        (('        if kind != "body":\n', "        if kind:\n"),),
        (_ADMISSION + "test_admission_of_a_body_takes_no_second_token",),
    ),
    "an overload that refuses reads, too": Mutant(
        "engine/commit/admission.py",
        (("if kind in _PUSHES and self._load", "if self._load"),),
        (_ADMISSION + "test_admission_under_overload_refuses_pushes_and_nothing_else",),
    ),
    "a full tenant whose own devices cannot come back": Mutant(
        "engine/commit/admission.py",
        (("if not comes_back and self", "if self"),),
        (_ADMISSION + "test_admission_handshake_of_a_full_tenant_is_refused_unless_the_device_comes_back",),
    ),
    "a push that overtakes a refused one": Mutant(
        "handlers/sync/connection.py",
        (("if verdict is not ACCEPT or now_s < self._backoff.until_s:", "if verdict is not ACCEPT:"),),
        (
            _CONNECTION + "test_connection_push_behind_one_past_the_rate_is_refused_until_that_may_come_back",
            _CONNECTION + "test_connection_push_that_finds_the_queue_full_holds_back_those_behind_it",
        ),
    ),
    "a message that overtakes a large one": Mutant(
        "handlers/sync/connection.py",
        (("return self._large is None and (", "return ("),),
        (
            _CONNECTION
            + "test_connection_large_message_is_handled_in_steps_and_nothing_is_read_before_its_end",
        ),
    ),
    "a push that takes the place of the one refused in an outage": Mutant(
        "handlers/sync/push_backoff.py",
        (("if key != self.first_key and left_s > 0:", "if left_s < 0:"),),
        (
            _CONNECTION + "test_connection_push_refused_in_an_outage_comes_again_before_all_others",
            _BACKOFF + "test_push_backoff_after_an_outage_lets_the_first_refused_key_come_first",
        ),
    ),
    "an upload that expires in any state": Mutant(
        "storage/stores/jobs/upload_cleanup.py",
        (("ANY(%(ids)s::uuid[]) AND u.state = {OPEN} AND {_DUE}", "ANY(%(ids)s::uuid[]) AND {_DUE}"),),
        (_STATES + "test_upload_state_update_each_is_a_listed_transition",),
    ),
    "a file that is freed while a duplicate needs it": Mutant(
        "engine/plan/attachments.py",
        (('set_upload_state(ref, "retained")', 'set_upload_state(ref, "freed")'),),
        (
            _PLANNED + "test_attachment_states_every_planned_move_is_a_listed_transition",
            _CLEANUP + "test_free_file_with_a_duplicate_is_retained_with_its_reservation",
        ),
    ),
    "a retained file without bytes": Mutant(
        "engine/model/uploads.py",
        (
            (
                'because a duplicate needs it.",\n        "freed",\n        has_bytes=True,',
                'because a duplicate needs it.",\n        "freed",\n        has_bytes=False,',
            ),
        ),
        (
            _STATES + "test_upload_state_table_columns_agree",
            "tests/engine/uploads/test_orphans.py::test_orphans_bytes_without_a_row_deleted_after_a_day",
        ),
    ),
    "a transition that the table does not list": Mutant(
        "engine/model/uploads.py",
        (('*("retained", "freed"),', '*("freed",),'),),
        (_PLANNED + "test_attachment_states_every_planned_move_is_a_listed_transition",),
    ),
    "a freed file that still counts for the quota": Mutant(
        "storage/stores/commit/writes.py",
        (("THEN o.reserved_bytes ELSE 0 END", "THEN o.reserved_bytes ELSE o.reserved_bytes END"),),
        (
            "tests/storage/stores/test_uploads.py::test_freed_file_returns_its_reservation_once[alone]",
            _CLEANUP + "test_cleanup_deleted_record_files_freed_after_grace_period",
        ),
    ),
    "an open upload whose draft is an orphan": Mutant(
        "engine/uploads/cleanup.py",
        (('if blob.is_file else state != "open"', "if blob.is_file else True"),),
        ("tests/engine/uploads/test_orphans.py::test_orphans_bytes_without_a_row_deleted_after_a_day",),
    ),
    "a late statement that takes a released lock": Mutant(
        "storage/stores/uploads.py",
        ((" AND (u.held_until IS NOT NULL OR w.r AND u.offset_bytes = w.o)", ""),),
        ("tests/storage/stores/test_uploads.py::test_save_offsets_late_statement_changes_nothing[alone]",),
    ),
    "a device revoked during its handshake that stays": Mutant(
        "handlers/sync/connections.py",
        (("if self._refuses(socket):  # revoked since its token was verified", "if False:"),),
        (_CONNECTIONS + "test_connections_device_revoked_during_its_handshake_is_dismissed_when_added",),
    ),
    "an older connection elsewhere that replaces a newer one": Mutant(
        "handlers/sync/connections.py",
        (("(ours.opened_at_us, ours.session.session_id) < (at_us, session_id)", "True"),),
        (
            _CONNECTIONS + "test_connections_socket_elsewhere_replaces_an_older_one_only[4-told1-True]",
            _CONNECTIONS + "test_connections_socket_elsewhere_of_the_same_moment_is_decided_by_the_session",
        ),
    ),
    "a replaced connection whose end frees the newer one": Mutant(
        "handlers/sync/connections.py",
        (("if kept.get(socket.key) is socket:", "if socket.key in kept:"),),
        (_CONNECTIONS + "test_connections_newer_socket_of_a_device_replaces_the_older_which_is_still_read",),
    ),
    "an attempt that the device gave up, and that replaces the connection in use": Mutant(
        "handlers/sync/connections.py",
        (("self._unconfirmed[socket.key] = socket", "self.confirm(socket)"),),
        (_CONNECTIONS + "test_connections_socket_without_a_frame_replaces_none",),
    ),
    "a tenant in two batches at once": Mutant(
        "engine/commit/queue.py",
        (("            self._in_flight.add(tenant_id)\n", ""),),
        (_QUEUE + "test_queue_tenant_in_flight_is_not_taken_again",),
    ),
    "deferred work put behind what came later": Mutant(
        "engine/commit/queue.py",
        (("queue.queued.appendleft(queued)", "queue.queued.append(queued)"),),
        (_EXPENSIVE + "test_committer_batch_expensive_in_sum_is_cut_in_order",),
    ),
    "later work kept of a device whose earlier work was refused": Mutant(
        "engine/commit/queue.py",
        (("if queued.since_s > since_s and device not in devices:", "if queued.since_s > since_s:"),),
        (_COMMITTER + "test_committer_outage_keeps_later_work_of_other_devices",),
    ),
    "a tenant with little in the queue refused for another": Mutant(
        "engine/commit/queue.py",
        (("queue.size_bytes * len(self._queues) >= admit_bytes", "bool(queue.size_bytes)"),),
        (_QUEUE + "test_queue_overload_quiet_tenant_is_not_refused",),
    ),
    "answered before the feed is told": Mutant(
        "engine/commit/lane.py",
        (
            ("        self._on_committed(plan.changes)\n", ""),
            (
                "_answer(queued, outcome)\n\n    def _requeue",
                "_answer(queued, outcome)\n        self._on_committed(plan.changes)\n\n    def _requeue",
            ),
        ),
        (_COMMITTER + "test_committer_change_is_announced_before_the_answer",),
    ),
    "messages of one tenant planned out of order": Mutant(
        "engine/plan/weighing.py",
        (("if tenant_id in deferred_tenants or over or", "if over or"),),
        (_SELECTION + "test_select_keeps_the_order_of_each_tenant",),
    ),
    "later changes accepted of a record whose earlier one was refused": Mutant(
        "engine/plan/push.py",
        (("if capacity.blocked and capacity.is_blocked(push):", "if False:"),),
        (_CAPACITY + "test_capacity_too_many_blocked_records_block_the_device",),
    ),
    "a message kept that exceeds its tenant's limits": Mutant(
        "engine/plan/push.py",
        (("        if bound is not None:\n", "        if False:\n"),),
        (_CAPACITY + "test_capacity_is_never_exceeded_and_refusals_leave_nothing",),
    ),
    "an aborted message half applied": Mutant(
        "engine/plan/push.py",
        (("    unit.restore(push, savepoint)\n", ""),),
        (_PLAN + "test_push_aborted_leaves_no_record", _PLAN + "test_push_aborted_leaves_no_event"),
    ),
    "an atomic message taken for the same items apart": Mutant(
        "engine/commit/validation.py",
        (("    if sync.atomic:\n        digest", "    if False:\n        digest"),),
        (_VALIDATION + "test_validator_other_items_are_another_request",),
    ),
    "a frame decoded before its depth is known": Mutant(
        "engine/wire/codec.py",
        (
            (
                "        self.check_depth(frame)\n        return self._decoded(frame)",
                "        return self._decoded(frame)",
            ),
        ),
        (
            "tests/engine/wire/test_codec.py::test_nesting_depth_outside_of_items_counts[json]",
            "tests/engine/wire/test_codec.py::test_nesting_depth_outside_of_items_counts[msgpack]",
        ),
    ),
    "a decision made on an older version": Mutant(
        "engine/plan/resolve.py",
        (("    if row.version != work.version:\n", "    if False:\n"),),
        (
            "tests/contract/test_conflicts_ws.py::test_conflict_decision_on_a_version_that_has_passed_is_stale",
        ),
    ),
}
