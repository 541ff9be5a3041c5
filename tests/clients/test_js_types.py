"""The TypeScript types of the messages, and the example device that is checked against them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from docs.api.schema import message_schemas
from docs.api.typescript import typescript

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tsc(node_packages: Path) -> Path:
    return node_packages / "node_modules" / ".bin" / "tsc"


def test_types_and_example_device_pass_strict(tsc: Path, node_packages: Path) -> None:
    options = json.loads((node_packages / "tsconfig.json").read_text("utf-8"))["compilerOptions"]
    assert options["strict"]
    assert options["checkJs"]
    run = subprocess.run(
        [tsc, "--project", node_packages, "--listFiles"], capture_output=True, check=False, text=True
    )
    assert run.returncode == 0, run.stdout
    for example in (ROOT / "docs" / "examples").glob("*.js"):
        assert str(example) in run.stdout


def test_example_device_own_tests_pass(node_packages: Path) -> None:
    command = "node", "--test", *map(str, sorted(node_packages.glob("*.test.mjs")))
    run = subprocess.run(command, capture_output=True, check=False, text=True, timeout=120)
    assert run.returncode == 0, run.stdout


def test_types_every_message_and_field_is_there() -> None:
    text = typescript()
    for transport in ("socket", "http"):
        schemas = message_schemas(transport)
        for name in (*schemas.requests.values(), *schemas.answers.values()):
            assert f"export interface {'ErrorMessage' if name == 'Error' else name} {{" in text, name
        for schema in schemas.components.values():
            for field in schema.get("properties", {}):
                assert f"  {field}: " in text or f"  {field}?: " in text or f"  {field}:\n" in text, field


def test_types_each_request_has_its_answer() -> None:
    text = typescript()
    for tag in message_schemas("socket").requests:
        assert re.search(rf"^  {tag}: (never|\w+ \| ErrorMessage)$", text, re.MULTILINE), tag
