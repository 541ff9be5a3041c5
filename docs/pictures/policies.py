"""Decides the same six conflicts under each policy, by ``decide`` of ``engine/plan/conflict.py``."""

from __future__ import annotations

from typing import Final, NamedTuple, get_args

from docs.pictures.canvas import Box, Canvas
from engine.model.domains import Domain, DomainPolicy, Policy
from engine.model.merge import Fields, FieldVersions
from engine.plan.conflict import ClientChange, Decision, ServerRecord, decide
from engine.wire.messages import Op

_BEFORE: Final[Fields] = {"title": "pump", "note": "", "status": "OPEN"}
#: The office made version 4 of version 3 at 10; the phone changed version 3 too, at 9 or at 11.
_EARLIER, _OFFICE, _LATER = 9, 10, 11


class Scene(NamedTuple):
    """A conflict: two lines that tell it, what the office changed, and what the phone did."""

    told: tuple[str, str]
    office: Fields
    phone: Fields
    op: Op = "patch"
    at: int = _LATER


_SCENES: Final = (
    Scene(("patch,", "another field"), {"note": "office"}, {"title": "phone"}),
    Scene(("whole record,", "another field"), {"note": "office"}, {"title": "phone"}, op="put"),
    Scene(("same field,", "phone later"), {"note": "office"}, {"note": "phone"}),
    Scene(("same field,", "phone earlier"), {"note": "office"}, {"note": "phone"}, at=_EARLIER),
    Scene(("status,", "phone later"), {"status": "office"}, {"status": "phone"}),
    Scene(("phone deletes,", "later"), {"note": "office"}, {}, op="delete"),
)
_SHOWN: Final = {
    "both": ("good", "both"),
    "phone": ("blue", "the phone's"),
    "office": ("plain", "the office's"),
    "person": ("warm", "a person"),
}
_COLUMN, _ROW, _FIRST = 116, 44, 186


def policies() -> str:
    """Draw the picture."""
    rows = [(policy, [_kept(policy, scene) for scene in _SCENES]) for policy in get_args(Policy)]
    said = ". ".join(
        f"{policy}: "
        + ", ".join(
            f"{' '.join(scene.told)} gives {_SHOWN[kept][1]}"
            for scene, kept in zip(_SCENES, row, strict=True)
        )
        for policy, row in rows
    )
    canvas = Canvas(900, 78 + _ROW * len(rows), "Whose change the record has after a conflict", said)
    canvas.text(16, 28, "The office changed the", "small")
    canvas.text(16, 45, "record; then comes, of a", "small")
    canvas.text(16, 62, "phone that did not know:", "small")
    for number, scene in enumerate(_SCENES):
        for line, words in enumerate(scene.told):
            canvas.text(_FIRST + _COLUMN * (number + 0.5), 36 + 18 * line, words, "name middle")
    for number, (policy, row) in enumerate(rows):
        y = 72 + _ROW * number
        canvas.text(16, y + (17 if policy == "field_merge" else 25), policy, "name")
        if policy == "field_merge":
            canvas.text(16, y + 33, f"else {DomainPolicy(policy).fallback}", "small")
        for column, kept in enumerate(row):
            kind, words = _SHOWN[kept]
            place = Box(_FIRST + _COLUMN * column + 3, y, _COLUMN - 6, _ROW - 6)
            canvas.box(place, words, kind=kind)
    return canvas.svg()


def _kept(policy: Policy, scene: Scene) -> str:
    server = ServerRecord(
        _BEFORE | scene.office,
        _OFFICE,
        FieldVersions(since=1, since_at_us=0, changed=dict.fromkeys(scene.office, (4, _OFFICE))),
    )
    change = ClientChange(
        scene.op,
        {"patch": scene.phone, "put": _BEFORE | scene.phone, "delete": None}[scene.op],
        base=3,
        at_us=scene.at,
        changed=tuple(scene.phone) if scene.op == "put" else None,
        device_id="phone",
        sent_at_us=scene.at,
    )
    return _whose(decide(DomainPolicy(policy), Domain(), server, change))


def _whose(decision: Decision | None) -> str:
    if decision is None:
        return "person"
    if decision.fields is None:
        return "phone"
    values = set(decision.fields.values())
    both = {"phone", "office"} <= values
    return "both" if both else "phone" if "phone" in values else "office"
