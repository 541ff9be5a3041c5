"""What devices sent does nothing to the terminal of the person who looks at it."""

from __future__ import annotations

import json
import re

from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.clusters import role_variables
from compose.deployment import open_deployment
from handlers.operate.printing import json_text, plain
from run import cli
from tests.harness.services import execute
from tests.security.catalogue import against

HOSTILE = "\x1b[2J\x07a\nb\r\x85\x9b31m\u202eevil\u2066\u200f\u2028\u200b\ufeff\U000e0041"
#: What no line that is printed may hold.
ACTIVE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0041]"
)

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.text())
@against("A05:2025", "V1.3")
def test_plain_any_text_becomes_one_line_that_does_nothing(text: str) -> None:
    shown = plain(text)
    assert not ACTIVE.search(shown)
    assert "\n" not in shown
    shown.encode()


def test_plain_ordinary_text_stays_as_it_is() -> None:
    assert plain("Grüße, 東京 👩\u200d🔧 \\n") == "Grüße, 東京 👩\u200d🔧 \\n"
    assert plain(HOSTILE).startswith("\\u001b[2J\\u0007a\\u000ab\\u000d")
    assert plain("phone\u200b-\U000e0041") == "phone\\u200b-\\udb40\\udc41", "as JSON writes it"


@given(st.recursive(_TEXTS, lambda inner: st.dictionaries(_TEXTS, inner)))
def test_json_text_reads_back_as_the_same(value: object) -> None:
    shown = json_text(json.dumps(value, ensure_ascii=False).encode())
    assert json.loads(shown) == value
    assert not ACTIVE.search(shown)


@against("A05:2025", "V1.3")
def test_commands_show_what_devices_sent_escaped(dsn: str) -> None:
    item = json.dumps({"domain": "visit", "data": {HOSTILE: HOSTILE}}, ensure_ascii=False)
    data = json.dumps({HOSTILE: HOSTILE}, ensure_ascii=False)
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme')",
        f"INSERT INTO devices (tenant_id, device_id, app_version) VALUES (1, 'phone', '{HOSTILE}')",
        "INSERT INTO quarantine (tenant_id, quarantine_id, device_id, domain, record_id, at_us, code,"
        f" message, item) VALUES (1, 'q1', 'phone', '{HOSTILE}', '{HOSTILE}', 1, 'code', 'why', '{item}'),"
        f" (1, 'q2', 'phone', 'visit', 'v', 1, 'invalid_item', '{HOSTILE}', '{HOSTILE}')",
        "INSERT INTO conflict_resolution_log (tenant_id, conflict_id, domain, record_id, device_id, policy,"
        " outcome, server_version, server_data, client_op, client_at_us, client_data, opened_at_us)"
        f" VALUES (1, 'c1', 'note', '{HOSTILE}', 'phone', 'manual', 'open', 1, '{data}', 'put', 1,"
        f" '{data}', 1)",
    )
    for arguments in (
        "device list",
        "device show --tenant acme phone",
        "quarantine list",
        "quarantine show q1",
        "quarantine show q2",
        "conflicts list",
        "conflicts show c1",
    ):
        for more in ("", " --json"):
            shown = CliRunner().invoke(
                cli, (arguments + more).split(), obj=open_deployment, env=role_variables(dsn)
            )
            assert shown.exit_code == 0, shown.stderr
            assert not ACTIVE.search(shown.stdout), arguments + more
            assert "\\u202e" in shown.stdout
            if more:
                json.loads(shown.stdout)


@against("A05:2025", "V1.3")
def test_commands_refuse_in_sentences_that_do_nothing(dsn: str) -> None:
    refused = CliRunner().invoke(
        cli,
        ["device", "list", "--tenant", HOSTILE],
        obj=open_deployment,
        env=role_variables(dsn),
    )
    assert refused.exit_code == 1
    assert "there is no tenant \\u001b[2J" in refused.stderr
    assert not ACTIVE.search(refused.stderr)
