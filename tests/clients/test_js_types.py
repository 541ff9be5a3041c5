"""The TypeScript types of the messages, and the example device that is checked against them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from docs.api.schema import message_schemas
from docs.api.typescript import typescript
from tests.harness.uploads.tus_js import TusJs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tsc(tus_js: TusJs) -> Path:
    return tus_js.home / "node_modules" / ".bin" / "tsc"


def test_types_and_example_device_pass_strict(tsc: Path, tus_js: TusJs) -> None:
    options = json.loads((tus_js.home / "tsconfig.json").read_text("utf-8"))["compilerOptions"]
    assert options["strict"]
    assert options["checkJs"]
    run = subprocess.run(
        [tsc, "--project", tus_js.home, "--listFiles"], capture_output=True, check=False, text=True
    )
    assert run.returncode == 0, run.stdout
    for example in (ROOT / "docs" / "examples").glob("*.js"):
        assert str(example) in run.stdout


def test_example_device_own_tests_pass(tus_js: TusJs) -> None:
    command = "node", "--test", str(tus_js.home / "state.test.mjs")
    run = subprocess.run(command, capture_output=True, check=False, text=True)
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
