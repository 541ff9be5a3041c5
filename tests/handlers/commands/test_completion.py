"""Bash and zsh complete the commands from every directory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from run import cli

_ROOT = Path(__file__).parents[3]
_ZSH = """
function compdef() {{ }}
function compadd() {{ print -l -- $completions }}
function _describe() {{ print -l -- ${{completions_with_descriptions%%:*}} }}
source {script}
words=({words}); CURRENT={place}
_tidemark_completion
"""
_BASH = """
source {script}
COMP_WORDS=({words}); COMP_CWORD={place}
_tidemark_completion
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@cache
def printed(shell: str) -> bytes:
    """The script, which is the same for all tests."""
    command = [sys.executable, str(_ROOT / "run.py"), "completion", shell]
    return subprocess.run(command, capture_output=True, check=True).stdout


def completed(shell: str, cwd: Path, *words: str) -> list[str]:
    """What the shell offers for the last word."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = cwd / "completion"
    script.write_bytes(printed(shell))
    text, first = (_BASH, 0) if shell == "bash" else (_ZSH, 1)
    quoted = " ".join(f"'{word}'" for word in words)
    ended = subprocess.run(
        [shell, "-c", text.format(script=script, words=quoted, place=first + len(words) - 1)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == ""
    return sorted(filter(None, ended.stdout.splitlines()))


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_of_commands_options_and_choices(shell: str, tmp_path: Path) -> None:
    assert completed(shell, tmp_path, "tidemark", "dev") == ["device"]
    assert completed(shell, tmp_path, "tidemark", "device", "re") == ["restore", "revoke"]
    assert completed(shell, tmp_path, "tidemark", "audit", "--si") == ["--since"]
    assert completed(shell, tmp_path, "tidemark", "conflicts", "resolve", "x", "--choice", "") == [
        *("client", "merged", "server"),
    ]


def test_completion_function_runs_the_commands_from_every_directory(tmp_path: Path) -> None:
    script = CliRunner().invoke(cli, ["completion", "bash", "--name", "tm"]).output
    ended = subprocess.run(
        ["/bin/bash", "-c", f"{script}\ntm --version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.startswith("tidemark ")


@pytest.mark.parametrize("name", ["", "a b", "$(x)", "1"])
def test_completion_name_that_no_function_may_have_is_refused(name: str) -> None:
    ended = CliRunner().invoke(cli, ["completion", "zsh", "--name", name])
    assert ended.exit_code == 2
    assert "a name of letters, digits, _ and - is required" in ended.output
