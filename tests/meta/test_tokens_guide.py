"""The page on tokens: what it has people run signs tokens that a server takes."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jwt
import pytest

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.ws_device import SECRET, connected

pytestmark = ON_SHARED

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


def printed(command: list[str]) -> str:
    """What a program prints."""
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


@pytest.mark.parametrize("language", PROGRAMS)
async def test_tokens_guide_signed_token_lets_a_device_in(
    language: str, shared: Running, tmp_path: Path
) -> None:
    command, behind = PROGRAMS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    secret_file = tmp_path / "token.secret"
    secret_file.write_bytes(b" " + SECRET + b"\r\n")
    code = "\n".join([imports_of(language), lines_of(language), behind])
    assert PLACE in code
    for written, given in ((PLACE, str(secret_file)), ("acme", shared.tenant())):
        code = code.replace(written, given)
    token = await asyncio.to_thread(printed, [*command, code])
    assert jwt.decode(token, options={"verify_signature": False})["sub"] == "ann"
    async with connected(shared.url, shared.http, signed=token) as device:
        [result] = await device.push({"domain": "journal", "id": "a", "op": "put", "data": {}})
        assert result["status"] == "applied"
        [change] = (await device.pull())["changes"]
    assert change["device_id"] == "phone-7"
