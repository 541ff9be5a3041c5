"""Master keys: where they come from, and what is refused with one sentence."""

from __future__ import annotations

import stat
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compose.configuration import layers
from compose.sealing import master_key
from compose.sealing.admin import KeyAdmin
from compose.sealing.master_key import (
    MasterKeySource,
    file_alone,
    made_master_key,
    make_master_key,
    master_keys,
    put_in_front,
)
from engine.operate.ports import RefusedError
from engine.runtime.setting_layers import settings
from engine.runtime.settings import Settings
from engine.seal.master_keys import MasterKeyError, master_key_id

ONE, TWO = b"1" * 32, b"2" * 32
TEXT = b64encode(ONE).decode()


def given(dsn: str = "host=db", data_dir: str = ".", **sealing: object) -> Settings:
    chosen = settings(layers(None, {}))
    replace = msgspec.structs.replace
    return replace(
        chosen,
        sealing=replace(chosen.sealing, **sealing),
        postgres=replace(chosen.postgres, dsn=dsn),
        data=replace(chosen.data, dir=data_dir),
    )


def key_file(place: Path, *keys: bytes, mode: int = 0o600) -> Path:
    place.write_bytes(b"\n".join(map(b64encode, keys)))
    place.chmod(mode)
    return place


def test_master_key_from_value_file_and_command_is_the_same(tmp_path: Path) -> None:
    place = key_file(tmp_path / "key", ONE)
    script = f"import sys; print({TEXT!r} if sys.argv[1:] == ['--name', 'a b; $(c)'] else sys.argv)"
    command = (sys.executable, "-c", script, "--name", "a b; $(c)")
    for chosen in (
        given(master_key=TEXT),
        given(master_key_file=str(place)),
        given(master_key_command=command),
    ):
        assert master_keys(chosen).ids == [master_key_id(ONE)]


@pytest.mark.parametrize(("mode", "taken"), [(0o600, True), (0o640, True), (0o644, False), (0o660, False)])
def test_master_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int, taken: bool) -> None:
    chosen = given(master_key_file=str(key_file(tmp_path / "key", ONE, mode=mode)))
    if taken:
        assert master_keys(chosen).active == master_key_id(ONE)
    else:
        with pytest.raises(MasterKeyError, match=rf"may read or write it \(mode 0{mode:o}\): chmod 0600"):
            master_keys(chosen)


#: The command, and the sentence.
COMMANDS = {
    "missing": (("/nowhere/kms",), "/nowhere/kms: No such file or directory: name a program that exists"),
    "failing": (("sh", "-c", "echo no >&2; exit 7"), r"sh ended with status 7 \(no\): run it by hand"),
    "silent": (("sh", "-c", "exit 7"), r"sh ended with status 7 \(it said nothing\)"),
    "empty": (("true",), "sealing.master_key_command: there is no master key in it"),
    "binary": (("printf", r"\377"), "not a text in UTF-8"),
    "slow": (("sleep", "60"), "sleep did not end within 0.01 s"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_master_key_command_that_fails_is_said_in_one_sentence(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, sentence = COMMANDS[case]
    monkeypatch.setattr(master_key, "_COMMAND_S", 0.01 if case == "slow" else 20.0)
    with pytest.raises(MasterKeyError, match=sentence) as refused:
        master_keys(given(master_key_command=command))
    assert "\n" not in str(refused.value)


def test_master_key_missing_or_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MasterKeyError, match=f"{tmp_path}/no: No such file or directory: put the master key"):
        master_keys(given(master_key_file=str(tmp_path / "no")))
    place = tmp_path / "key"
    place.write_text("hush")
    place.chmod(0o600)
    with pytest.raises(MasterKeyError, match=r"sealing\.master_key_file: a master key") as refused:
        master_keys(given(master_key_file=str(place)))
    assert "hush" not in str(refused.value)


def test_master_key_none_set_is_refused_with_a_database_of_ones_own() -> None:
    assert made_master_key(given()) is None
    with pytest.raises(MasterKeyError, match=r"there is no master key: set sealing\.master_key_file"):
        master_keys(given())


async def test_master_key_of_the_embedded_default_is_made_once_and_private(tmp_path: Path) -> None:
    chosen = given(dsn="", data_dir=str(tmp_path))
    place = made_master_key(chosen)
    assert place == tmp_path / "master.key"
    make_master_key(place)
    made = place.read_bytes()
    make_master_key(place)
    assert place.read_bytes() == made
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    source = MasterKeySource(chosen)
    (first,) = await source.ids()
    put_in_front(place)
    second, before = await source.ids()
    assert (before, stat.S_IMODE(place.stat().st_mode)) == (first, 0o600)
    assert second != first
    assert [path.name for path in tmp_path.iterdir()] == ["master.key"]


async def test_source_reads_again_what_changed_or_lacks_a_wanted_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Settings] = []
    read = master_keys

    def counted(chosen: Settings) -> object:
        reads.append(chosen)
        return read(chosen)

    monkeypatch.setattr(master_key, "master_keys", counted)
    monkeypatch.setattr(master_key, "_AGAIN_S", 0.0)
    place = key_file(tmp_path / "key", ONE)
    source = MasterKeySource(given(master_key_file=str(place)))
    await source.keys()
    await source.keys(master_key_id(ONE))
    assert len(reads) == 1
    await source.keys(master_key_id(TWO))
    assert len(reads) == 2
    key_file(tmp_path / "new", TWO, ONE).rename(place)
    assert (await source.keys()).active == master_key_id(TWO)
    assert len(reads) == 3


async def test_source_that_can_no_longer_be_read_keeps_its_keys_and_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master_key, "_AGAIN_S", 0.0)
    place = key_file(tmp_path / "key", ONE)
    source = MasterKeySource(given(master_key_file=str(place)))
    await source.keys()
    key_file(tmp_path / "new", TWO, ONE, mode=0o644).rename(place)
    assert (await source.keys()).ids == await source.ids() == [master_key_id(ONE)]
    place.chmod(0o600)  # neither its time nor its size changes
    assert (await source.keys()).active == master_key_id(TWO)
    place.unlink()
    assert await source.ids() == [master_key_id(TWO), master_key_id(ONE)]


async def test_rotate_master_beside_another_one_is_refused_and_leaves_the_file(tmp_path: Path) -> None:
    chosen = given(dsn="", data_dir=str(tmp_path))
    place = tmp_path / "master.key"
    make_master_key(place)
    before = place.read_bytes()
    database: Any = None  # it is not asked
    with file_alone(place) as alone:
        assert alone
        with pytest.raises(RefusedError, match="another `keys rotate-master` is at work here: wait"):
            await KeyAdmin(chosen, database).rotate_master(lambda _: None)
    assert place.read_bytes() == before
    with file_alone(place) as alone:
        assert alone, "the lock ends with its holder"


async def test_source_command_that_failed_is_run_again_only_if_a_key_is_needed_and_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    script = f"echo run >>{runs}; test -e {tmp_path}/up && echo {TEXT}"
    source = MasterKeySource(given(master_key_command=("sh", "-c", script)))
    for _ in range(3):
        assert await source.ids() == []
    assert runs.read_text() == "run\n"
    (tmp_path / "up").touch()
    with pytest.raises(MasterKeyError, match="status 1"):
        await source.keys()
    monkeypatch.setattr("compose.sealing.master_key.time.monotonic", lambda: float("inf"))
    assert (await source.keys()).ids == await source.ids() == [master_key_id(ONE)]
    assert runs.read_text() == "run\nrun\n"


def test_master_key_is_in_no_repr() -> None:
    assert TEXT not in repr(given(master_key=TEXT))
