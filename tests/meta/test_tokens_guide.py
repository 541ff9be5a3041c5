"""The page on tokens: what it has people run signs tokens that the server takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.runtime.settings import Auth
from handlers.http.keys import key_set
from handlers.http.tokens import Verifier

PAGE = (Path(__file__).parents[2] / "docs" / "tokens.md").read_text("utf-8")
PLACE = "/etc/tidemark/auth.secret"

#: By language: what runs a program given as text, and what prints the token.
PROGRAMS = {
    "js": (("node", "--input-type=module", "--eval"), "process.stdout.write(token)"),
    "python": ((sys.executable, "-c"), "print(token, end='')"),
    "php": (("php", "-r"), "echo $token;"),
}


def lines_of(language: str) -> str:
    """The page's lines of a language."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(code)


def imports_of(language: str) -> str:
    """The imports that the sentence behind the lines names."""
    behind = PAGE.split(f"```{language}\n")[1].split("```\n", 1)[1].split("\n\n")[0]
    return "\n".join(re.findall(r"`((?:import|from) [^`]+)`", behind))


@pytest.mark.parametrize("language", PROGRAMS)
def test_tokens_guide_signed_token_accepted(language: str, tmp_path: Path) -> None:
    command, behind = PROGRAMS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    secret_file = tmp_path / "token.secret"
    secret_file.write_bytes(b" c2VjcmV0IHdpdGggYSBuZXdsaW5lIGJlaGluZCBpdA==\r\n")
    code = "\n".join([imports_of(language), lines_of(language), behind])
    assert PLACE in code
    code = code.replace(PLACE, str(secret_file))
    token = subprocess.run([*command, code], capture_output=True, check=True, text=True).stdout
    unset = {"secret": "", "key_file": "", "jwks_file": ""}
    keys = key_set(
        Auth(audience="tidemark", secret_file=str(secret_file), token_ttl_s=60, leeway_s=0, **unset), None
    )
    claims = Verifier(keys, "tidemark", frozenset(), 0).verify(token)
    assert (claims.role, claims.tenant, claims.device_id, claims.user) == ("device", "acme", "phone-7", "ann")
