"""A database and a Redis are named so that a person knows them, and no password is shown."""

from __future__ import annotations

import psycopg2.extensions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.postgres.display_names import database_name, dsn_without_secrets, url_without_secrets
from tests.harness.services import place_of

HUSH = "hUsH"


def test_database_name_server_answers_gives_host_port_and_name(dsn: str) -> None:
    assert database_name(dsn) == place_of(dsn)


def test_database_name_role_that_may_not_come_in_gives_the_name_by_another(dsn: str) -> None:
    refused = psycopg2.extensions.make_dsn(dsn, user="nobody_here")
    assert database_name(refused, dsn) == place_of(dsn)
    assert "user=nobody_here" in database_name(refused)


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{HUSH}@127.0.0.1:1/x",
        f"postgresql://u@127.0.0.1:1/x?password={HUSH}",
        f"host=127.0.0.1 port=1 dbname=x password='{HUSH} {HUSH}'",
        f"host=127.0.0.1 port=1 dbname=x sslpassword={HUSH}",
        f"postgresql://u:{HUSH}@127.0.0.1:1,127.0.0.1:2/x?target_session_attrs=read-write",
    ],
)
def test_database_name_server_away_gives_dsn_without_password(dsn: str) -> None:
    shown = database_name(dsn)
    assert HUSH not in shown
    assert "127.0.0.1" in shown
    assert "dbname=x" in shown


@pytest.mark.parametrize("dsn", [f"postgresql://u:{HUSH}@[h/x", f"{HUSH}"])
def test_dsn_without_secrets_unreadable_nothing_shown(dsn: str) -> None:
    assert HUSH not in dsn_without_secrets(dsn)


#: What people write unescaped into a URL.
PASSWORDS = st.text(st.sampled_from("ab:/@?#&=% \n"), max_size=6).map(lambda odd: odd + HUSH + odd[::-1])


@given(PASSWORDS, st.sampled_from(["redis", "rediss", "redis+cluster"]), st.sampled_from(["", "user"]))
def test_url_without_secrets_any_password_hidden(password: str, scheme: str, user: str) -> None:
    shown = url_without_secrets(f"{scheme}://{user}:{password}@cache:6379/0")
    assert HUSH not in shown
    assert shown.startswith(f"{scheme}://{user}:")
    assert shown.endswith("@cache:6379/0")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("redis+cluster://a:1,b:2", "redis+cluster://a:1,b:2"),
        (f"redis://cache/0?password={HUSH}&db=1", "redis://cache/0?password=***&db=1"),
        (f"rediss://cache/0?ssl_password={HUSH}", "rediss://cache/0?ssl_password=***"),
        (f"unix:///run/redis.sock?password={HUSH}", "unix:///run/redis.sock?password=***"),
        (HUSH, "***"),
    ],
)
def test_url_without_secrets_the_rest_stays(url: str, shown: str) -> None:
    assert url_without_secrets(url) == shown
