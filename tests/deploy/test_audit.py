"""``make audit`` and ``make sbom``: judged by what the tools say, also where they could not ask."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.audit import tools, verdict
from deploy.audit.__main__ import main
from deploy.audit.sbom import of_server

_SHA = "0" * 64
_LOCK = json.dumps(
    {
        "packages": {
            "": {"name": "ours"},
            "node_modules/good": {"license": "MIT", "integrity": "sha512-x"},
            "node_modules/a/node_modules/bad": {"license": "GPL-3.0", "integrity": "sha1-x"},
        }
    }
)


def pip_audit(*packages: dict[str, Any]) -> verdict.Verdict:
    return verdict.of_pip_audit(json.dumps({"dependencies": packages}), "No known vulnerabilities found")


def test_pip_audit_skipped_package_is_not_asked() -> None:
    good = {"name": "a", "version": "1", "vulns": []}
    skipped = {"name": "b", "skip_reason": "not found"}
    judged = pip_audit(good, skipped)
    assert (judged.looked_at, judged.findings) == ("1 packages", ())
    assert judged.unasked == ("the advisories of 1 of 2 packages: not found",)
    assert verdict.exit_status([judged]) == 3
    assert verdict.exit_status([pip_audit(good)]) == 0


def test_pip_audit_advisory_is_found_before_what_was_not_asked() -> None:
    bad = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    judged = pip_audit(bad, {"name": "b", "skip_reason": "not found"})
    assert judged.findings == ("a 1: PYSEC-1, repaired in 2",)
    assert verdict.exit_status([judged]) == 1


def test_npm_audit_error_of_the_registry_is_not_asked() -> None:
    error = json.dumps({"message": "405 Method Not Allowed", "error": {}})
    judged = verdict.of_npm_audit(
        error, "npm error audit endpoint returned an error\nnpm error A complete log"
    )
    assert judged.unasked == ("the advisories of npm: npm error audit endpoint returned an error",)


def test_npm_audit_vulnerable_package_is_found() -> None:
    report = {
        "metadata": {"dependencies": {"total": 3}},
        "vulnerabilities": {"x": {"severity": "high", "range": "<2"}},
    }
    assert verdict.of_npm_audit(json.dumps(report), "").findings == ("x: high, in <2",)


@pytest.mark.parametrize(
    ("line", "rule", "text", "found"),
    [
        ("_SHORT = '/tmp'", "B108", "a temp directory", True),
        ("_SHORT = '/tmp'  # noqa: S108", "B108", "a temp directory", False),
        ("_SHORT = '/tmp'  # noqa: E501, S108  # why", "B108", "a temp directory", False),
        ("_SHORT = '/tmp'  # noqa: S104", "B108", "a temp directory", True),
        ("assert x", "B101", "assert used", False),
        ("def f(password=''):", "B107", "Possible hardcoded password: ''", False),
        ("def f(password='x'):", "B107", "Possible hardcoded password: 'x'", True),
    ],
)
def test_bandit_line_that_ruff_judged_is_accepted(line: str, rule: str, text: str, found: bool) -> None:
    result = {
        "filename": "a.py",
        "line_number": 2,
        "test_id": rule,
        "issue_text": text,
        "code": f"1 \n2 {line}\n3 ",
    }
    said = json.dumps({"metrics": {"_totals": {}, "a.py": {}}, "results": [result], "errors": []})
    judged = verdict.of_bandit(said, "", tools._accepted())
    assert bool(judged.findings) is found
    assert judged.looked_at == "1 files"


@pytest.mark.parametrize(
    ("licence", "may"),
    [
        ("MIT", True),
        ("Apache-2.0 AND MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND (GPL-3.0-only OR AGPL-3.0-only)", False),
        ("Apache Software License; MIT License", True),
        ("UNKNOWN", False),
        ("", False),
    ],
)
def test_licence_expression_is_allowed_by_its_parts(licence: str, may: bool) -> None:
    assert verdict.allowed(licence) is may


def test_licences_of_npm_are_judged_with_the_others() -> None:
    judged = verdict.of_licences({"ours": "MIT"} | verdict.npm_licences(_LOCK))
    assert judged.findings == ("bad: GPL-3.0 is not among those that a dependency may have",)


def test_hashes_missing_one_is_found() -> None:
    text = f"a==1 \\\n    --hash=sha256:{_SHA}\n    # via b\nb==2\nc>=3\n"
    judged = verdict.of_hashes({"r.txt": text}, _LOCK)
    assert judged.findings == (
        "r.txt: b has no hash",
        "r.txt: c>=3: not an exact version",
        "package-lock.json: bad has no integrity of sha512",
    )


def test_hashes_of_this_repository_are_complete() -> None:
    lock = (tools.ROOT / "tests" / "clients" / "node" / "package-lock.json").read_text("utf-8")
    judged = verdict.of_hashes(
        {path: (tools.ROOT / path).read_text("utf-8") for path in tools.REQUIREMENTS}, lock
    )
    assert judged.findings == ()
    assert len(verdict.pinned((tools.ROOT / "deploy/requirements.txt").read_text("utf-8"))) > 30


def test_requirements_all_files_are_audited() -> None:
    made = {str(path.relative_to(tools.ROOT)) for room in ("deploy", "tests") for path in _found(room)}
    assert made == set(tools.REQUIREMENTS)


def _found(room: str) -> list[Path]:
    return [
        path for path in (tools.ROOT / room).rglob("requirements*.txt") if "node_modules" not in path.parts
    ]


def test_audit_without_tools_says_what_was_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    assert main(["audit", str(tmp_path), sys.executable]) == 3
    said = capsys.readouterr().out
    assert said.count("NOT ASKED") == len(tools.REQUIREMENTS) + 3
    assert "No such file or directory: 'npm'" in said
    assert "the advisories of PostgreSQL 18." in said
    assert ", Valkey 9." in said


def environment(version: str) -> dict[str, Any]:
    return {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [
            {"bom-ref": "a", "name": "A_b", "version": version},
            {"bom-ref": "t", "name": "pytest", "version": "9"},
        ],
        "dependencies": [{"ref": "root", "dependsOn": ["a", "t"]}, {"ref": "a"}, {"ref": "t"}],
    }


def test_sbom_lists_pinned_packages_and_servers_with_hashes() -> None:
    made = of_server(environment("1"), f"a-b==1 --hash=sha256:{_SHA}\n", {"Valkey": "9.1.2"})
    package, server = made["components"]
    assert package["externalReferences"][0]["hashes"] == [{"alg": "SHA-256", "content": _SHA}]
    assert server["cpe"] == "cpe:2.3:a:lfprojects:valkey:9.1.2:*:*:*:*:*:*:*"
    assert made["dependencies"] == [
        {"ref": "root", "dependsOn": ["a", "valkey==9.1.2"]},
        {"ref": "a", "dependsOn": []},
        {"ref": "valkey==9.1.2", "dependsOn": []},
    ]


def test_sbom_has_the_scripts_of_the_repository() -> None:
    assert tools.scripts() == {"rapidoc": "9.3.8"}
    made = of_server(environment("1"), f"a-b==1 --hash=sha256:{_SHA}\n", {}, {"rapidoc": "9.3.8"})
    assert made["components"][1]["purl"] == "pkg:npm/rapidoc@9.3.8"
    assert made["dependencies"][0]["dependsOn"] == ["a", "pkg:npm/rapidoc@9.3.8"]


def test_sbom_of_another_version_than_pinned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 packages of .* are not installed as pinned: run make install"):
        of_server(environment("2"), f"a-b==1 --hash=sha256:{_SHA}\n", {})


@pytest.mark.parametrize("path", ["deploy/requirements-dev.txt", "tests/fuzz/requirements.txt"])
def test_requirements_are_those_that_serve_and_more(path: str) -> None:
    serving, others = (
        verdict.pinned((tools.ROOT / one).read_text("utf-8")) for one in ("deploy/requirements.txt", path)
    )
    told = {name: pin.split()[0] for name, pin in serving.items()}
    assert {name: others.get(name, "none").split()[0] for name in told} == told, f"compile {path} again"
