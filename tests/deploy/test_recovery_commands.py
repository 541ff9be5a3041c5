"""WAL, files, secrets and the site of nginx as pages write them: done twice or killed, it loses nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from deploy.recovery.postgres import archive_command
from tests.book.blocks import ROOT, block_with

COPY = ROOT / "deploy" / "recovery" / "copy_files.sh"
FILE = "uploads/files/7/ab/ab000000000000000000000000000001"
SECRETS = ("auth.secret", "master.key", "redis.url")


def archived(source: Path, archive: Path, segment: str) -> bool:
    """Run the command as PostgreSQL does. Returns whether the segment counts as archived."""
    command = archive_command(archive).replace("%p", str(source / segment)).replace("%f", segment)
    return subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.fixture
def wal(tmp_path: Path) -> tuple[Path, Path]:
    """A segment of WAL, and an empty archive."""
    source, archive = tmp_path / "pg_wal", tmp_path / "archive"
    source.mkdir()
    archive.mkdir()
    (source / "01").write_bytes(b"segment")
    return source, archive


def test_archive_command_same_segment_again_is_well(wal: tuple[Path, Path]) -> None:
    source, archive = wal
    assert archived(source, archive, "01")
    assert archived(source, archive, "01")
    assert {path.name: path.read_bytes() for path in archive.iterdir()} == {"01": b"segment"}


def test_archive_command_other_segment_of_the_name_is_refused(wal: tuple[Path, Path]) -> None:
    source, archive = wal
    (archive / "01").write_bytes(b"of another timeline")
    assert not archived(source, archive, "01")
    assert (archive / "01").read_bytes() == b"of another timeline"


def test_archive_command_without_a_source_or_an_archive_fails(wal: tuple[Path, Path]) -> None:
    source, archive = wal
    assert not archived(source, archive, "02")
    assert not archived(source, archive / "unmounted", "01")
    assert list(archive.iterdir()) == []


def test_archive_command_is_that_of_the_page() -> None:
    command = archive_command(Path("/var/backups/tidemark/archive"))
    assert f"archive_command = '{command}'\n" in (ROOT / "docs" / "recovery.md").read_text("utf-8")


def copied(source: Path, target: Path) -> dict[str, bytes]:
    """Copy files. Returns those of the copy by their path."""
    subprocess.run(["/bin/bash", str(COPY), str(source), str(target)], check=True)
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A ``data.dir`` of an installation and of a cell, with a draft and what is no file."""
    data = tmp_path / "data"
    for name, content in (
        (FILE, b"whole"),
        (f"cells/north/{FILE}", b"of a cell"),
        (f"{FILE}.part", b"sho"),
        ("uploads/drafts/7/ab.1", b"draft"),
    ):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    os.utime(data / FILE, (1, 1))
    return data


def test_copy_files_takes_those_of_all_cells_with_their_times(data: Path) -> None:
    copy = data.parent / "copy"
    assert copied(data, copy) == {FILE: b"whole", f"cells/north/{FILE}": b"of a cell"}
    assert (copy / FILE).stat().st_mtime == 1
    assert (copy / "uploads").stat().st_mode & 0o077 == 0
    restored = data.parent / "restored"
    assert copied(copy, restored) == copied(data, copy)


def test_copy_files_that_was_killed_is_completed(data: Path) -> None:
    copy = data.parent / "copy"
    (copy / FILE).parent.mkdir(parents=True)
    (copy / f"{FILE}.part").write_bytes(b"wh")
    assert copied(data, copy)[FILE] == b"whole"
    assert not (copy / f"{FILE}.part").exists()


def test_copy_files_leaves_what_is_there(data: Path) -> None:
    copy = data.parent / "copy"
    copied(data, copy)
    (copy / FILE).write_bytes(b"kept!")
    assert copied(data, copy)[FILE] == b"kept!"


def test_deployment_secrets_made_twice_stay(tmp_path: Path) -> None:
    text = block_with("docs/deployment.md", "openssl rand -base64 32").text
    text = text.replace("/etc/tidemark", str(tmp_path)).replace("/opt/tidemark", str(ROOT))
    command = ["/bin/bash", "-euc", text.replace("-g tidemark", f"-g {os.getgid()}")]
    made = []
    for _ in range(2):
        subprocess.run(command, cwd=ROOT, check=True)
        made.append([(tmp_path / name).read_bytes() for name in (*SECRETS, "config.toml")])
    assert made[0] == made[1]
    assert all(made[0])


@pytest.mark.parametrize("works", [True, False])
def test_weigh_without_a_site_leaves_that_of_before(tmp_path: Path, *, works: bool) -> None:
    text = block_with("docs/upgrades.md", "weigh() {").text.replace("/etc/nginx", str(tmp_path))
    text = text.replace(".venv/bin/python run.py nginx", "echo" if works else "false")
    (tmp_path / "conf.d").mkdir()
    site = tmp_path / "conf.d" / "tidemark.conf"
    site.write_text("of before")
    nginx = f'nginx() {{ echo "$@" >>{tmp_path}/told; }}\n'
    ended = subprocess.run(["/bin/bash", "-c", nginx + text], check=False)
    assert (ended.returncode == 0) is works
    assert ("--weight 10" in site.read_text(), site.read_text() == "of before") == (works, not works)
    assert (tmp_path / "told").exists() is works
