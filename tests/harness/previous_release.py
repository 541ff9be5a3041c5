"""The release before this one, unpacked from the history, to be served on the schema of this one."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from bench.harness.clusters import role_variables
from bench.harness.environment import BenchError
from bench.harness.product import LIFTED, Version, checked_out
from tests.harness.scratch import scratch
from tests.harness.ws_device import SECRET

_ROOT: Final = Path(__file__).parents[2]
_NAMED: Final = re.compile(r"^([A-Za-z0-9_.-]+)==", re.MULTILINE)


class Release(NamedTuple):
    """``deploy/previous-release.toml``: version, commit, and the newest migration of a release."""

    version: str
    commit: str
    migration: str


PREVIOUS: Final = Release(**tomllib.loads((_ROOT / "deploy" / "previous-release.toml").read_text("utf-8")))


@pytest.fixture(scope="module")
def previous() -> Iterator[Version]:
    """The release before this one. It runs on the installation of this one.

    A shallow clone has no such commit, and an archive no history at all: the test is passed over.
    """
    with scratch("tidemark-previous-") as home:
        found = unpacked(PREVIOUS, home / "tree")
        missing = _requirements(found.root) - _requirements(_ROOT)
        assert not missing, f"{PREVIOUS.version} needs {missing}: give it an installation of its own"
        yield found


def unpacked(release: Release, place: Path) -> Version:
    """Unpack a release.

    A clone with all of its history has to have its commit. With less of it the test is passed over, with the
    reason in the summary: `.ci/run` brings the history where it can.
    """
    try:
        return checked_out(release.commit, place)
    except BenchError:
        if _history_is_whole():
            pytest.fail(f"deploy/previous-release.toml names no commit of this repository: {release.commit}")
        pytest.xfail(f"no history, so no release {release.version}: git fetch --unshallow brings it")


def _history_is_whole() -> bool:
    command = ("git", "-C", str(_ROOT), "rev-parse", "--is-shallow-repository")
    return subprocess.run(command, capture_output=True, check=False).stdout.strip() == b"false"


def _requirements(root: Path) -> set[str]:
    return set(_NAMED.findall((root / "deploy" / "requirements.txt").read_text("utf-8")))


def site(dsn: str, redis_url: str, home: Path) -> Mapping[str, str]:
    """Return the environment of a server of either version; ``dsn`` is the owner's."""
    return {
        **LIFTED,
        **role_variables(dsn),
        "TIDEMARK__REDIS__URL": redis_url,
        "TIDEMARK__AUTH__SECRET": SECRET.decode(),
        "TIDEMARK__DATA__DIR": str(home),
    }
