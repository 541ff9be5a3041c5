"""Judges what the tools of the audit answered. Pure: texts in, verdicts out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

#: Licences of dependencies. LGPL and MPL ask nothing of a program that imports the package unchanged.
ALLOWED: Final = frozenset(
    {
        "0BSD",
        "Apache Software License",
        "Apache-2.0",
        "BSD License",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BlueOak-1.0.0",
        "GNU Lesser General Public License v3 or later (LGPLv3+)",
        "GNU Library or Lesser General Public License (LGPL)",
        "ISC",
        "MIT",
        "MIT License",
        "MIT-0",
        "MPL-2.0",
        "Mozilla Public License 2.0 (MPL 2.0)",
        "PSF-2.0",
        "Python-2.0",
        "Python Software Foundation License",
    }
)
#: Packages whose metadata do not tell the licence of what is installed, and where it was read.
READ_BY_HAND: Final = {
    "combine-errors": "MIT, in the README of its repository",
    "docutils": "public domain and BSD-2-Clause, in its COPYING; the GPL is of a mode for Emacs",
}
_NOQA: Final = re.compile(r"noqa:[^#]*\bS(\d{3})\b")
_PIN: Final = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+) ?(?P<rest>.*)$", re.MULTILINE)


class Verdict(NamedTuple):
    """What one check says: ``findings`` are to be put right, ``unasked`` is what it could not find out."""

    check: str
    looked_at: str
    findings: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()


def of_pip_audit(said: str, complaint: str) -> Verdict:
    """Judge ``pip-audit -f json``, whose text calls a package that it skipped free of vulnerabilities."""
    check = "pip-audit"
    try:
        packages = json.loads(said)["dependencies"]
    except (ValueError, KeyError):
        return Verdict(check, "no package", (), (f"the advisories of all packages: {_last_line(complaint)}",))
    skipped = [one for one in packages if "skip_reason" in one]
    findings = [
        f"{one['name']} {one['version']}: {bad['id']}, repaired in {', '.join(bad['fix_versions']) or 'none'}"
        for one in packages
        for bad in one.get("vulns", ())
    ]
    unasked = [
        f"the advisories of {len(skipped)} of {len(packages)} packages: {one['skip_reason']}"
        for one in skipped[:1]
    ]
    return Verdict(check, f"{len(packages) - len(skipped)} packages", tuple(findings), tuple(unasked))


def of_npm_audit(said: str, complaint: str) -> Verdict:
    """Judge ``npm audit --json``."""
    check = "npm audit"
    try:
        report = json.loads(said)
        total = report["metadata"]["dependencies"]["total"]
        bad = report["vulnerabilities"]
    except (ValueError, KeyError, TypeError):
        return Verdict(check, "no package", (), (f"the advisories of npm: {_last_line(complaint)}",))
    findings = [f"{name}: {one['severity']}, in {one['range']}" for name, one in sorted(bad.items())]
    return Verdict(check, f"{total} packages", tuple(findings))


def of_bandit(said: str, complaint: str, accepted: Mapping[str, str]) -> Verdict:
    """Judge ``bandit -f json``. ``accepted`` has a reason for each rule that ruff's configuration turns off.

    A line whose ``noqa`` names the same rule of ruff has been judged there.
    """
    check = "bandit"
    try:
        report = json.loads(said)
        files = len(report["metrics"]) - 1
        results = report["results"]
        errors = [f"{one['filename']}: {one['reason']}" for one in report["errors"]]
    except (ValueError, KeyError):
        return Verdict(check, "no file", (), (f"all of our code: {_last_line(complaint)}",))
    findings = [
        f"{one['filename']}:{one['line_number']}: {one['test_id']} {one['issue_text'].splitlines()[0]}"
        for one in results
        if one["test_id"] not in accepted and not _judged(one)
    ]
    return Verdict(check, f"{files} files", tuple(findings), tuple(errors))


def _judged(result: Mapping[str, Any]) -> bool:
    if result["test_id"] in {"B105", "B107"} and result["issue_text"].endswith("password: ''"):
        return True  # an empty default is no password
    lines = dict(line.split(" ", 1) for line in result["code"].splitlines() if " " in line)
    return result["test_id"][1:] in _NOQA.findall(lines.get(str(result["line_number"]), ""))


def of_licences(licences: Mapping[str, str], complaint: str = "") -> Verdict:
    """Judge the licences of packages. "A OR B" needs one that is allowed, "A AND B" all."""
    if not licences:
        return Verdict("licences", "no package", (), (f"the licences: {_last_line(complaint)}",))
    findings = [
        f"{name}: {licence or 'no licence'} is not among those that a dependency may have"
        for name, licence in sorted(licences.items())
        if name not in READ_BY_HAND and not allowed(licence)
    ]
    return Verdict("licences", f"{len(licences)} packages", tuple(findings))


def allowed(licence: str) -> bool:
    """Return whether a package under ``licence``, an SPDX expression or old names, may be used."""
    if licence in ALLOWED:
        return True
    inner = re.search(r"\(([^()]* (?:OR|AND) [^()]*)\)", licence)
    if inner is not None:
        plain = "MIT" if allowed(inner[1]) else "refused"
        return allowed(licence.replace(inner[0], plain))
    if " AND " in licence:
        return all(map(allowed, licence.split(" AND ")))
    if " OR " in licence:
        return any(map(allowed, licence.split(" OR ")))
    return "; " in licence and all(map(allowed, licence.split("; ")))


def npm_licences(lock: str) -> dict[str, str]:
    """Read the licences in a ``package-lock.json``."""
    return {name: one.get("license", "") for name, one in _locked(lock)}


def of_hashes(requirements: Mapping[str, str], lock: str) -> Verdict:
    """Judge whether each package in files of requirements and in a ``package-lock.json`` has a hash."""
    findings = []
    total = 0
    for path, text in requirements.items():
        for name, pin in pinned(text).items():
            total += 1
            if "--hash=sha256:" not in pin:
                findings.append(f"{path}: {name} has no hash")
        findings += [f"{path}: {line}: not an exact version" for line in _loose(text)]
    for name, one in _locked(lock):
        total += 1
        if not str(one.get("integrity", "")).startswith("sha512-"):
            findings.append(f"package-lock.json: {name} has no integrity of sha512")
    return Verdict("hashes", f"{total} pins", tuple(findings))


def pinned(requirements: str) -> dict[str, str]:
    """Return each pinned package with the text of its pin, from its version on."""
    joined = requirements.replace("\\\n", " ")
    return {match["name"]: f"{match['version']} {match['rest']}" for match in _PIN.finditer(joined)}


def _loose(requirements: str) -> Iterable[str]:
    for line in requirements.replace("\\\n", " ").splitlines():
        if line and line[0] not in "# " and not _PIN.match(line):
            yield line


def _locked(lock: str) -> list[tuple[str, dict[str, Any]]]:
    packages = json.loads(lock)["packages"]
    return [(path.rpartition("node_modules/")[2], one) for path, one in packages.items() if path]


def _last_line(complaint: str) -> str:
    lines = [line for line in complaint.splitlines() if line.strip() and "complete log" not in line]
    return lines[-1].strip() if lines else "the tool said nothing"


def exit_status(verdicts: Iterable[Verdict]) -> int:
    """Return 1 for a finding, else 3 if something could not be asked, else 0."""
    listed = list(verdicts)
    if any(one.findings for one in listed):
        return 1
    return 3 if any(one.unasked for one in listed) else 0


def page(verdicts: Iterable[Verdict]) -> str:
    """Write the verdicts as text."""
    lines = []
    for one in verdicts:
        state = "FOUND" if one.findings else "NOT ASKED" if one.unasked else "ok"
        lines.append(f"{one.check:<10} {state:<10} {one.looked_at} looked at")
        lines += [f"    found: {finding}" for finding in one.findings]
        lines += [f"    not asked: {unasked}" for unasked in one.unasked]
    return "\n".join(lines)
