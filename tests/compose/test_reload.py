"""SIGHUP reads the settings again: what new workers get of them, what stays, and what is said."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from msgspec.structs import replace

from compose.configuration import layers
from compose.processes import reload
from compose.processes.reload import Reading, Reload
from engine.runtime.setting_layers import in_force, settings
from engine.runtime.settings import Settings
from storage.embedded.servers import Services
from storage.stores.audit import process_account
from tests.harness.services import rows
from tests.harness.supervised import Supervise
from tests.harness.ws_device import SECRET, Json, connected

_DSN = "host=db1 dbname=tidemark password="
_EMBEDDED = Services("host=/run/made", "unix:///run/made")


class Again:
    """A settings file and what reading it again gives; ``said`` are the lines of the log."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.said: list[tuple[str, Json]] = []
        for level in ("info", "warning", "error"):
            monkeypatch.setattr(
                reload._log, level, lambda event, **fields: self.said.append((event, fields)), raising=False
            )

    def read(self) -> Reading:
        """Read the file as it is now."""
        found = layers(self.path, {}, of_system=False)
        return Reading(settings(found), in_force(found))

    def over(self, first: str, then: str, at: Services = _EMBEDDED) -> tuple[Settings, Services] | None:
        """Start with one text, and read another again."""
        self.path.write_text(first)
        reloaded = Reload(self.read(), at, self.read)
        self.path.write_text(then)
        return reloaded()


@pytest.fixture
def again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Again:
    return Again(tmp_path / "own.toml", monkeypatch)


def test_reload_gives_what_changed_and_names_it(again: Again) -> None:
    found = again.over("", "[limits]\nitems = 7\n[domains.note]\n")
    assert found is not None
    assert (found[0].limits.items, "note" in found[0].domains, found[1]) == (7, True, _EMBEDDED)
    (event, fields), *more = again.said
    assert (event, more) == ("settings_reloaded", [])
    assert fields["changed"][-1] == "limits.items"
    assert all(key.startswith("domains.note.") for key in fields["changed"][:-1])


@pytest.mark.parametrize(
    ("text", "key"),
    [("[limits]\nitems = 0", "limits.items"), ("[limits", ""), ("[postgres]\ndsn_file = '/nowhere'", None)],
)
def test_reload_of_a_broken_file_gives_nothing_and_names_file_and_key(
    again: Again, text: str, key: str | None
) -> None:
    assert again.over("", text) is None
    ((event, fields),) = again.said
    assert event == "settings_not_reloaded"
    file = "/nowhere" if key is None else str(again.path)
    assert (fields["file"], fields["key"]) == (file, "postgres.dsn_file" if key is None else key)
    assert file in fields["reason"]


def test_reload_of_a_receiver_without_a_scheme_gives_nothing_and_names_the_key(again: Again) -> None:
    assert again.over("", "[alerts]\nwebhook_url = 'example.org/hook'") is None
    ((event, fields),) = again.said
    assert (event, fields["key"]) == ("settings_not_reloaded", "alerts.webhook_url")
    assert "https://" in fields["reason"]


def test_reload_keeps_and_names_what_takes_a_restart_each_time(again: Again) -> None:
    again.path.write_text("")
    old = again.read().settings
    reloaded = Reload(again.read(), _EMBEDDED, again.read)
    again.path.write_text(
        f"server = {{ port = 1, host = '::1', workers = 3, idle_s = 45 }}\ndata.dir = '/srv'\n"
        f"log = {{ format = 'console', level = 'debug' }}\npostgres.dsn = '{_DSN}'\nredis.url = 'redis://b'\n"
    )
    for changed in (["log.level", "server.idle_s"], []):
        again.said.clear()
        found = reloaded()
        assert found is not None
        chosen, at = found
        assert (chosen.server.host, chosen.server.port, chosen.server.workers) == (
            old.server.host,
            old.server.port,
            old.server.workers,
        )
        assert (chosen.data, chosen.log.format, chosen.log.level) == (old.data, old.log.format, "debug")
        assert (chosen.postgres, chosen.redis, at) == (old.postgres, old.redis, _EMBEDDED)
        assert chosen.server.idle_s == 45
        keys = ["server.host", "server.port", "server.workers", "data.dir", "log.format"]
        assert again.said == [
            ("settings_reloaded", {"changed": changed}),
            ("settings_take_restart", {"keys": [*keys, "postgres.dsn", "redis.url"]}),
        ]


@pytest.mark.parametrize(
    ("dsn", "taken"),
    [
        (_DSN + "new", True),
        (_DSN.replace("db1", "db2") + "new", False),
        (_DSN.replace("tidemark", "other") + "new", False),
        ("", False),
    ],
)
def test_reload_takes_another_password_but_no_other_database(again: Again, dsn: str, *, taken: bool) -> None:
    at = Services(_DSN + "old", "redis://b")
    text = "[redis]\nurl = 'redis://b'\n[postgres]\ndsn = '{}'"
    found = again.over(text.format(at.dsn), text.format(dsn), at)
    assert found is not None
    assert found[1] == (Services(dsn, "redis://b") if taken else at)
    assert found[0].postgres.dsn == found[1].dsn
    assert [event for event, _ in again.said][1:] == ([] if taken else ["settings_take_restart"])


@pytest.mark.parametrize("name", ["owner_dsn", "jobs_dsn"])
def test_reload_takes_another_password_of_a_role_but_no_other_role(again: Again, name: str) -> None:
    at = Services(_DSN + "old", "redis://b", _DSN + "one", _DSN + "two")
    text = "[redis]\nurl = 'redis://b'\n[postgres]\ndsn = '{}'\nowner_dsn = '{}'\njobs_dsn = '{}'"
    before = text.format(at.dsn, at.owner_dsn, at.jobs_dsn)
    for dsn, taken in ((_DSN + "new", True), (_DSN.replace("db1", "db2"), False), ("", False)):
        wanted = replace(at, **{name: dsn})
        found = again.over(before, text.format(wanted.dsn, wanted.owner_dsn, wanted.jobs_dsn), at)
        assert found is not None
        assert found[1] == (wanted if taken else at)
        assert getattr(found[0].postgres, name) == getattr(found[1], name)


def test_reload_names_the_key_of_a_file_whose_content_changed_and_of_no_other(
    again: Again, tmp_path: Path
) -> None:
    secret, dsn = tmp_path / "secret", tmp_path / "dsn"
    secret.write_text("one")
    dsn.write_text(_DSN + "old")
    again.path.write_text(f"auth.secret_file = '{secret}'\npostgres.dsn_file = '{dsn}'\n")
    reloaded = Reload(again.read(), Services(_DSN + "old", "redis://b"), again.read)
    for content, names in (
        ({secret: "two"}, ["auth.secret_file"]),
        ({dsn: _DSN + "new"}, ["postgres.dsn_file"]),
        ({}, []),
        ({dsn: _DSN.replace("db1", "db2")}, []),  # which takes a restart
    ):
        again.said.clear()
        for file, text in content.items():
            file.write_text(text)
        assert reloaded() is not None
        assert again.said[0] == ("settings_reloaded", {"changed": names})


# -- in a server ------------------------------------------------------------------------------


async def test_sighup_gives_new_connections_the_new_settings_and_a_broken_file_changes_nothing(
    supervise: Supervise, dsn: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[limits]\nitems = 7")
    server = await supervise(1, TIDEMARK_CONFIG=str(file))
    async with ClientSession() as http:

        async def items() -> Any:
            async with connected(server.url, http) as device:
                return device.welcome["limits"]["items"]

        assert await items() == 7
        file.write_text("[limits]\nitems = 8")
        server.process.send_signal(signal.SIGHUP)
        await server.until("workers_renewed")
        assert await items() == 8
        file.write_text("[limits]\nitems = false")
        server.process.send_signal(signal.SIGHUP)
        await server.until("settings_not_reloaded")
        assert await items() == 8
    (line,) = server.told("settings_not_reloaded")
    assert (line["file"], line["key"]) == (str(file), "limits.items")
    assert len(server.told("worker_started")) == 2
    assert await server.terminate() == 0
    audit = "SELECT event, actor, details->>'limits.items', details->'changed'->>0 FROM audit_log"
    audit += " WHERE event IN ('server_started', 'settings_reloaded') ORDER BY at"
    account = process_account().name
    assert rows(dsn, audit) == [
        ("server_started", account, "7", None),
        ("settings_reloaded", account, None, "limits.items"),
    ]
    details = str(rows(dsn, "SELECT details::text FROM audit_log"))
    assert "password=***" in details
    assert SECRET.decode() not in details
