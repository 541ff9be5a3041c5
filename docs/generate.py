"""Write the pages that are made of tables in the code: ``python -m docs.generate``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from docs.api.asyncapi import asyncapi
from docs.api.components import Schema
from docs.api.errors import errors_page
from docs.api.inventory import with_routes
from docs.api.openapi import openapi
from docs.api.typescript import typescript
from docs.checklist import with_checklist
from docs.costs.page import with_costs
from docs.figures import has_figures, with_figures
from docs.migrations import migrations_page
from docs.pictures.errors import errors
from docs.pictures.flows import conflict, upload
from docs.pictures.policies import policies
from docs.pictures.upload_states import upload_states
from engine.model.audit import EVENTS, EventName, EventRule
from engine.model.uploads import STATES, State, StateRule
from handlers.reference.documents import STATIC
from storage.stores.upload_states import STATE_TEXTS

DOCS: Final = Path(__file__).parent
PICTURES: Final = {
    "conflict": conflict,
    "errors": errors,
    "policies": policies,
    "upload": upload,
    "upload-states": upload_states,
}

_STATES_HEAD: Final = """\
# States of an upload

`python -m docs.generate` makes this page from the table in `engine/model/uploads.py`. To change the page,
change the table.

An upload is always in one of these states. The column `state` of
[upload_session](data-dictionary.md#upload_session) stores the state, two of them under an older name.

![The states of an upload, and the steps from one to another](pictures/upload-states.svg)
"""
_COLUMNS: Final = {
    "has_bytes": "has bytes",
    "counts_for_quota": "counts for the quota",
    "is_file": "is a file",
    "in_entry": "in the feed",
    "is_finished": "finished",
    "ended": "ended",
}
_COLUMNS_TEXT: Final = """\
- **has bytes**: the server keeps a draft or a file under the upload's own id.
- **counts for the quota**: the bytes that the upload reserved count against its tenant's quota.
- **is a file**: the bytes are a file. In the other states with bytes the bytes are a draft.
- **in the feed**: the record's entry in the feed shows the file.
- **finished**: the server told the device that its file is safe, and the device has not deleted the file.
- **ended**: the state does not change again. The row is deleted after a week.
"""


def upload_states_page() -> str:
    """Make docs/upload-states.md."""
    lines = [
        _STATES_HEAD,
        f"| state | in the row | meaning | {' | '.join(_COLUMNS.values())} |",
        "|---|---|---|" + "---|" * len(_COLUMNS),
        *(_state_row(state, rule) for state, rule in STATES.items()),
        "",
        _COLUMNS_TEXT,
        "## Transitions",
        "",
        "| from | to |",
        "|---|---|",
        *(
            f"| `{state}` | {', '.join(f'`{after}`' for after in STATES if after in rule.successors)} |"
            for state, rule in STATES.items()
            if rule.successors
        ),
    ]
    return "\n".join(lines) + "\n"


def _state_row(state: State, rule: StateRule) -> str:
    marks = ["yes" if getattr(rule, column) else "" for column in _COLUMNS]
    return " | ".join((f"| `{state}`", f"`{STATE_TEXTS[state]}`", rule.meaning, *marks)) + " |"


_EVENTS_HEAD: Final = """\
# Audit events

`python -m docs.generate` makes this page from the table in `engine/model/audit.py`. To change the page,
change the table.

The [audit log](operations.md#audit) has a row for each security event: `run.py audit` lists them. A row names
the event, its actor, its tenant, its target and details:

| kind of actor | who it is |
|---|---|
| `account` | the system's account and host that ran a command or a server, such as `root@host-1` |
| `user` | the `sub` of a verified token, which `--user` sets |
| `device` | the device of a verified token without a `sub` |
| `address` | the address of a client whose token was not verified |
| `server` | a server process, for what no client is known for |
"""


def audit_events_page() -> str:
    """Make docs/audit-events.md."""
    lines = [
        _EVENTS_HEAD,
        "| event | target | details | meaning |",
        "|---|---|---|---|",
        *(_event_row(name, rule) for name, rule in EVENTS.items()),
    ]
    return "\n".join(lines) + "\n"


def _event_row(name: EventName, rule: EventRule) -> str:
    return f"| `{name}` | {rule.target} | {rule.details} | {rule.meaning} |"


def _document(document: Schema) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def pages() -> Iterator[tuple[Path, str]]:
    """Give each generated page or file with its text."""
    yield DOCS / "audit-events.md", audit_events_page()
    for page in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))):
        text = page.read_text("utf-8")
        if has_figures(text):
            yield page, with_figures(text)
    yield DOCS / "checklist.md", with_checklist((DOCS / "checklist.md").read_text("utf-8"))
    yield DOCS / "errors.md", errors_page()
    yield from ((DOCS / "pictures" / f"{name}.svg", draw()) for name, draw in PICTURES.items())
    yield DOCS / "migrations.md", migrations_page()
    yield DOCS / "security.md", with_routes(with_costs((DOCS / "security.md").read_text("utf-8")))
    yield DOCS / "types" / "tidemark.d.ts", typescript()
    yield DOCS / "upload-states.md", upload_states_page()
    yield STATIC / "openapi.json", _document(openapi())
    yield STATIC / "asyncapi.json", _document(asyncapi())


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text, "utf-8")
