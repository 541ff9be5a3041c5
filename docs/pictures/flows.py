"""The ways of a conflict and of an upload, with the outcomes, choices and states of the tables."""

from __future__ import annotations

from typing import Final, get_args

from docs.pictures.canvas import Box, Canvas, wrapped
from docs.pictures.upload_states import kind_of_state
from engine.model.domains import DomainPolicy, Policy
from engine.model.uploads import STATES, State
from engine.plan.conflict import may_hold
from engine.wire.messages import Choice, Status, Winner

_QUESTIONS: Final[tuple[tuple[str, str, Status, str], ...]] = (
    ("Is its base the record's version?", "nobody else changed the record", "applied", "the next version"),
    ("Does it equal the record?", "whatever its base is", "unchanged", "nothing is written"),
    (
        "Did only this device change it since?",
        "a device has no conflict with itself",
        "applied",
        "the next version",
    ),
)
_LEFT, _MIDDLE, _RIGHT = 16, 400, 694


def conflict() -> str:
    """Draw how an item on a record becomes an answer, and how a person settles a conflict."""
    decides = [policy for policy in get_args(Policy) if not may_hold(DomainPolicy(policy))]
    holds = [policy for policy in get_args(Policy) if policy not in decides]
    canvas = Canvas(
        900,
        560,
        "From a change to its outcome",
        "An item on the present version is applied. One that equals the record changes nothing. Everything"
        " else on an older version is a conflict: its policy settles it, or a person does. Each outcome but"
        " unchanged and conflict is a new version, and reaches every device by the feed.",
    )
    canvas.lane(_RIGHT - 14, 12, 204, 536, "Every device")
    feed = canvas.box(Box(_RIGHT, 236, 176, 64), "feed", ("each new version", "reaches every device"), "blue")
    above = None
    for row, (question, why, status, outcome) in enumerate(_QUESTIONS):
        asked = canvas.box(Box(_LEFT, 14 + 84 * row, 310, 58), question, (why,))
        told = canvas.box(Box(_MIDDLE, 18 + 84 * row, 190, 50), status, (outcome,), "good")
        canvas.arrow(asked.right, told.left, label="yes")
        if above is not None:
            canvas.arrow(above.bottom, asked.top, label="no", at=(above.bottom[0] + 16, above.bottom[1] + 17))
        if outcome == "the next version":
            canvas.arrow(told.right, (feed.x, feed.y + (12 if row == 0 else 24)))
        above = asked
    assert above is not None
    policy = canvas.box(
        Box(_LEFT, 266, 310, 92),
        "It is a conflict: the domain's policy",
        wrapped(", ".join(decides), 44),
        "warm",
    )
    canvas.arrow(above.bottom, policy.top, label="no", at=(above.bottom[0] + 16, above.bottom[1] + 17))
    resolved = canvas.box(
        Box(_MIDDLE, 287, 190, 50), _status("resolved"), (f"winner: {', '.join(get_args(Winner))}",), "good"
    )
    canvas.arrow(policy.right, resolved.left, label="it decides")
    canvas.arrow(resolved.right, (feed.x, feed.y + 48))
    held = canvas.box(
        Box(_LEFT, 400, 310, 58),
        _status("conflict"),
        ("the server's record stays, the change waits",),
        "warm",
    )
    label = f"{', '.join(holds)}, also as fallback"
    canvas.arrow(policy.bottom, held.top, label=label, at=(policy.bottom[0] + 84, 384))
    person = canvas.box(Box(_MIDDLE, 400, 190, 58), "a person resolves", (f"{', '.join(get_args(Choice))}",))
    canvas.arrow(held.right, person.left, label="later")
    canvas.arrow(person.right, (feed.x + 40, person.right[1]), (feed.x + 40, feed.y + feed.height))
    broken = canvas.box(
        Box(_LEFT, 488, 310, 58),
        "Does the outcome break a rule?",
        ("of its domain; asked last, of every outcome",),
    )
    rejected = canvas.box(
        Box(_MIDDLE, 492, 190, 50), _status("rejected"), ("kept in the quarantine",), "gone"
    )
    canvas.arrow(broken.right, rejected.left, label="yes")
    return canvas.svg()


def _status(status: Status) -> str:
    """Return a status, which the type checker has compared with the table."""
    return status


def upload() -> str:
    """Draw the way of a file from a device to the others of its tenant."""
    canvas = Canvas(
        900,
        560,
        "From a file on a device to a file in its record",
        "A device creates an upload, sends its bytes in chunks, asks for the offset after a cut, and sends"
        " the rest. After the last byte the server looks at the content, makes a file of it, and attaches it"
        " to its record, which reaches every device by the feed.",
    )
    for x, width, name in ((10, 210, "Device"), (250, 330, "Server"), (610, 280, "Disk and PostgreSQL")):
        canvas.lane(x, 10, width, 540, name)
    create = canvas.box(Box(25, 50, 180, 54), "POST /v1/uploads", ("size, type, record",))
    opened = _state(canvas, Box(265, 50, 300, 54), "open")
    row = canvas.box(Box(625, 50, 250, 54), "a row", ("its bytes reserved in the quota",), "blue")
    canvas.arrow(create.right, opened.left)
    canvas.arrow(opened.right, row.left)

    chunk = canvas.box(Box(25, 134, 180, 54), "PATCH", ("a chunk from the offset on",))
    takes = canvas.box(Box(265, 134, 300, 54), "one request at a time", ("has the lock of the upload",))
    draft = canvas.box(
        Box(625, 134, 250, 54), "draft, then offset", ("fsync first, then the row commits",), "blue"
    )
    canvas.arrow(chunk.right, takes.left)
    canvas.arrow((takes.x + takes.width, 152), (draft.x, 152))
    canvas.arrow((draft.x, 172), (takes.x + takes.width, 172))
    again = canvas.box(Box(25, 218, 180, 54), "HEAD, after a cut", ("how much arrived?",))
    tells = canvas.box(Box(265, 218, 300, 54), "the offset", ("the request before it is ended",))
    canvas.arrow((again.x + again.width, 236), (tells.x, 236))
    canvas.arrow((tells.x, 256), (again.x + again.width, 256))
    canvas.arrow(again.top, chunk.bottom, label="send the rest", at=(160, 207))
    canvas.arrow(takes.bottom, tells.top, label="a cut", at=(440, 207))

    looks = canvas.box(Box(265, 302, 300, 54), "after the last byte", ("its SHA-256 and type are compared",))
    canvas.arrow(tells.bottom, looks.top, label="the rest came", at=(462, 291))
    refused = _state(canvas, Box(25, 296, 180, 66), "refused")
    canvas.arrow(looks.left, refused.right, label="no")
    stored = _state(canvas, Box(265, 386, 300, 54), "stored")
    kept = canvas.box(Box(625, 386, 250, 54), "the draft becomes a file", (), "blue")
    canvas.arrow(looks.bottom, stored.top)
    canvas.arrow(stored.right, kept.left)
    attached = _state(canvas, Box(265, 472, 300, 62), "attached")
    seq = canvas.box(Box(625, 476, 250, 54), "the next seq of the tenant", ("by a batch, as a sync",), "blue")
    canvas.arrow(stored.bottom, attached.top, label="once the record exists", at=(486, 463))
    canvas.arrow(attached.right, seq.left)
    others = canvas.box(Box(25, 476, 180, 54), "other devices", ("feed, then GET /v1/files",))
    canvas.arrow(attached.left, others.right)
    return canvas.svg()


def _state(canvas: Canvas, place: Box, state: State) -> Box:
    rule = STATES[state]
    meaning = rule.meaning.split(";")[0].rstrip(".")
    return canvas.box(place, state, wrapped(meaning, place.width // 7), kind_of_state(rule))
