"""Each statement that changes an upload's state is a transition of the table, and so is every real run."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Iterator
from types import ModuleType
from typing import get_args, get_type_hints

import pytest

from engine.model.uploads import FINISHED, STATES, Append, State, Upload
from engine.uploads.metadata import Described
from engine.uploads.service import Creation
from engine.wire.errors import SyncError
from storage.postgres.connection import Statement
from storage.stores import upload_reads, upload_states, uploads
from storage.stores.commit import reads as commit_reads
from storage.stores.commit import writes as commit_writes
from storage.stores.jobs import upload_cleanup
from storage.stores.upload_states import STATE_TEXTS, STATES_BY_TEXT
from tests.engine.uploads.test_service import FakeBody
from tests.harness.services import execute, rows
from tests.harness.uploads.upload_stack import UploadStack, session, stack, text

__all__ = ["stack"]

Transition = tuple[State, State]

LISTED = {(state, after) for state, rule in STATES.items() for after in rule.successors}
#: The engine plans transitions of finished uploads, as tests/engine/plan/test_attachment_states.py shows; the
#: statement that writes them takes the state as a parameter.
PLANNED = {(state, after) for state, after in LISTED if state != "open"}
#: What the contract may answer to a request for an upload in any state.
REFUSALS = {
    *("not_found", "upload_gone", "upload_complete", "forbidden", "locked"),
    *("invalid_message", "unsupported_type", "offset_mismatch"),
}
_UPDATE = re.compile(r"UPDATE upload_session(?: AS \w+)? SET (?P<set>.*?)(?= FROM | WHERE )(?P<rest>.*)")
_TARGET = re.compile(r"(?<![\w.])state = ('\w+'|%\(state\)s|w\.s)")


def statements(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Each SQL text of a module by its name."""
    for name, value in vars(module).items():
        if isinstance(value, Statement):
            yield name, value.text
        elif isinstance(value, str) and value.startswith(("WITH ", "UPDATE ", "INSERT ", "SELECT ")):
            yield name, value


def changes(sql: str) -> Iterator[tuple[str, str]]:
    """For each UPDATE of a state in a statement: what the state becomes, and the rest of the statement."""
    for start in [found.start() for found in re.finditer("UPDATE upload_session", sql)]:
        update = _UPDATE.match(sql, start)
        assert update is not None, sql
        target = _TARGET.search(update["set"])
        if target is not None:
            yield target[1], update["rest"].partition("RETURNING")[0].partition(" freed AS")[0]


def test_upload_state_table_columns_agree() -> None:
    assert set(STATES) == set(get_args(State))
    for state, rule in STATES.items():
        assert rule.ended is (not rule.successors), state
        assert rule.counts_for_quota is rule.has_bytes, f"{state}: the quota is returned with the bytes"
        assert rule.has_bytes or not rule.is_file, state
        assert rule.is_file or not rule.in_entry, state
        assert not (rule.ended and (rule.has_bytes or rule.is_finished)), state
    reachable = {"open"} | {after for _, after in LISTED}
    assert reachable == set(STATES), "every state is reached"


def test_upload_state_texts_are_those_of_the_schema(stack: UploadStack) -> None:
    ((check,),) = rows(
        stack.dsn,
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'upload_session_state_check'"
        " AND connamespace = current_schema()::regnamespace",
    )
    assert set(re.findall(r"'(\w+)'", str(check))) == set(STATE_TEXTS.values())
    assert len(STATES_BY_TEXT) == len(STATES)


def test_upload_state_update_each_is_a_listed_transition() -> None:
    found: set[Transition] = set()
    discarded = get_args(get_type_hints(uploads.PostgresUploads.discard)["state"])
    for module in (uploads, upload_cleanup, upload_reads, commit_reads, commit_writes):
        for name, sql in statements(module):
            for target, rest in changes(sql):
                if target == "w.s":
                    assert module is commit_writes
                    found |= PLANNED
                    continue
                assert "state = 'open'" in rest, f"{name} changes uploads in any state"
                into = discarded if target.startswith("%") else [STATES_BY_TEXT[target.strip("'")]]
                found |= {("open", state) for state in into}
    assert found == LISTED


def test_upload_state_lists_in_sql_are_formatted_from_the_table() -> None:
    """No statement spells a state: one that is added to the table is in every list where it belongs."""
    source = "".join(
        (module.__spec__.loader.get_source(module.__name__))  # type: ignore[union-attr]
        for module in (uploads, upload_cleanup, upload_reads, commit_reads, commit_writes)
    )
    written_out = re.findall(rf"state (?:=|IN|<>) \(?'(?:{'|'.join(STATE_TEXTS.values())})'", source)
    assert written_out == []
    assert upload_states.IS_FINISHED == "('stored', 'attached', 'duplicate')"
    assert upload_states.ENDED == "('refused', 'cancelled', 'expired', 'joined', 'freed')"


# -- uploads at random, on a real database that refuses every other transition -------------------


def guarded(dsn: str) -> None:
    """Make the database refuse every transition that the table does not list, and note those that it does."""
    listed = ", ".join(f"('{STATE_TEXTS[a]}', '{STATE_TEXTS[b]}')" for a, b in sorted(LISTED))
    execute(
        dsn,
        "CREATE TABLE seen (old text, new text)",
        "GRANT ALL ON seen TO PUBLIC",
        "CREATE FUNCTION check_state() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$"
        f" BEGIN IF OLD.state <> NEW.state AND (OLD.state, NEW.state) NOT IN ({listed}) THEN"
        " RAISE EXCEPTION 'no transition from % to %', OLD.state, NEW.state; END IF;"
        " INSERT INTO seen SELECT OLD.state, NEW.state WHERE OLD.state <> NEW.state; RETURN NEW; END $$",
        "CREATE TRIGGER check_state BEFORE UPDATE OF state ON upload_session"
        " FOR EACH ROW EXECUTE FUNCTION check_state()",
    )


class RandomUploads:
    """Creates, sends, concatenates, cancels and cleans up at random, for two records of one tenant."""

    def __init__(self, stack: UploadStack, chance: random.Random) -> None:
        self.stack = stack
        self.chance = chance
        self.made: list[Upload] = []
        #: One content for most uploads, so that duplicates are frequent.
        self.content = text(300)
        self.contents: dict[str, bytes] = {}

    async def step(self) -> None:
        """Do one thing; a refusal by the contract is fine."""
        do = self.chance.choice(
            (
                *(self.create, self.create, self.send, self.send, self.send, self.cancel, self.concatenate),
                *(self.change_record, self.change_record, self.clean_up),
            )
        )
        try:
            await do()
        except SyncError as error:
            if error.code not in REFUSALS:
                raise

    def described(self) -> Described:
        """A file for one of the records, now and then one whose content is refused."""
        kind = "application/pdf" if self.chance.random() < 0.15 else "text/plain"
        return Described("a.txt", kind, "task", self.chance.choice("ab"), None)

    async def create(self) -> None:
        """Begin an upload, one in four as a part."""
        partial = self.chance.random() < 0.25
        creation = Creation(
            "partial" if partial else "single", 300, None if partial else self.described(), ""
        )
        upload = await self.stack.service.create(session(), creation)
        self.made.append(upload)
        self.contents[upload.ref.upload_id] = self.content if self.chance.random() < 0.8 else text(300)

    async def send(self) -> None:
        """Send some or all of what is missing."""
        if not self.made:
            return
        upload = self.chance.choice(self.made[-8:])
        found = await self.stack.service.find(session(), upload.ref.upload_id)
        content = self.contents.get(upload.ref.upload_id, b"")[found.offset_bytes :]
        if self.chance.random() < 0.2:
            content = content[: len(content) // 2]
        await self.stack.service.append(
            session(), upload.ref.upload_id, Append(found.offset_bytes, len(content)), FakeBody(content)
        )

    async def cancel(self) -> None:
        """Give up or delete any upload."""
        if self.made:
            upload = self.chance.choice(self.made)
            await self.stack.service.cancel(session(), upload.ref.upload_id)

    async def concatenate(self) -> None:
        """Put complete parts together."""
        parts = [one.ref.upload_id for one in self.made if one.kind == "partial"]
        chosen = self.chance.sample(parts, min(len(parts), 2))
        if chosen:
            self.made.append(await self.stack.service.concatenate(session(), self.described(), "", chosen))

    async def change_record(self) -> None:
        """Put or delete a record."""
        record = self.chance.choice("ab")
        found = rows(self.stack.dsn, f"SELECT version, data IS NULL FROM records WHERE id = '{record}'")
        version, is_deleted = found[0] if found else (None, True)
        assert version is None or isinstance(version, int)
        if is_deleted or self.chance.random() < 0.3:
            await self.stack.push("put" if is_deleted else "delete", version, record=record)

    async def clean_up(self) -> None:
        """Run the clean-up now, or when open uploads have expired, or after the grace period."""
        hours = self.chance.choice((0, 2, 2, 102))
        if hours == 2 and self.made:
            due = self.chance.choice(self.made[-8:]).ref.upload_id
            execute(
                self.stack.dsn,
                "UPDATE upload_session SET expires_at = now() - interval '1 h'"
                f" WHERE state = 'open' AND upload_id = '{due}'",
            )
        await self.stack.clean_rows(0 if hours == 2 else hours)

    async def duplicates(self) -> None:
        """Send the same file twice for one record, and delete both uploads."""
        about = Described("a.txt", "text/plain", "task", "z", None)
        same = [await self.stack.service.create(session(), Creation("single", 300, about, "")) for _ in "12"]
        await self.stack.push("put", None, record="z")
        for upload in same:
            await self.stack.sent(upload, self.content)
        await self.stack.service.append(session(), same[1].ref.upload_id, Append(300, 0), FakeBody(b""))
        for upload in same:
            self.check()
            await self.stack.service.cancel(session(), upload.ref.upload_id)

    def check(self) -> None:
        """Hold bytes and the quota against the table."""
        found = rows(self.stack.dsn, "SELECT upload_id::text, state, reserved_bytes FROM upload_session")
        stored = self.stack.stored_blobs()
        reserved = 0
        for upload_id, state_text, reserved_bytes in found:
            state, ref_id = STATES_BY_TEXT[str(state_text)], uuid.UUID(str(upload_id)).hex
            rule = STATES[state]
            assert (("files", ref_id) in stored) is rule.is_file, (state, ref_id)
            assert ("drafts", ref_id) not in stored or state == "open", (state, ref_id)
            assert isinstance(reserved_bytes, int)
            reserved += reserved_bytes if rule.counts_for_quota else 0
        assert not found or self.stack.reserved() == reserved


@pytest.mark.parametrize("seed", range(2))
async def test_upload_states_random_uploads_never_leave_the_table(stack: UploadStack, seed: int) -> None:
    guarded(stack.dsn)
    run = RandomUploads(stack, random.Random(seed))
    await run.duplicates()
    for _ in range(80):
        await run.step()
    run.check()
    seen = {
        (STATES_BY_TEXT[str(old)], STATES_BY_TEXT[str(new)])
        for old, new in rows(stack.dsn, "SELECT DISTINCT old, new FROM seen")
    }
    assert seen <= LISTED
    assert {after for _, after in seen} >= {*FINISHED, "retained", "freed"}
