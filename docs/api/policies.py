"""What decides a conflict, for the API documents: the table of policies, with the rules that it rests on."""

from __future__ import annotations

import re
from typing import Final

from engine.model.domains import OUTCOMES

_LINK: Final = re.compile(r" \(\[below\]\(#\w+\)\)")
_HEAD: Final = """\
## Conflicts and policies

An item on an existing record or tombstone conflicts if its `base` is not the record's version. A null `base`
conflicts, too. Two exceptions: an item that equals the server's record is `unchanged`, and a device does not
conflict with its own versions, so a chain of offline edits may have one `base`. A file makes no version: an
edit on the version from before the file is no conflict.

The policy of the record's domain decides a conflict. The welcome has the policies; `GET /v1/domains` has
their fallbacks, too.

"""
_TAIL: Final = """\

- **`field_merge`.** A field that only one side changed since `base` takes the value of that side. A field
  that both sides changed falls to the domain's `fallback`, any other policy (`most_recent_wins` unless the
  operator set another). The device's changed fields are those of a `patch`, or those that `changed` of a
  `put` names. **A `put` without `changed` falls to the fallback as a whole: one side's edits are lost.** So
  do a delete against a change, and a change against a tombstone. If anything falls to the fallback and that
  is `manual`, the whole item waits for a person.
- **`preserve_escalation`.** The fields that `server_owned` of the domain lists keep the server's values. For
  a delete, and for a change to a tombstone, the server's record stays.
- **`at`** decides between two sides under `most_recent_wins` alone, also as a fallback. The server corrects
  it by the device's `clock`.
- **After `resolved` or `conflict`** replace the device's copy with `data` and `version` of the result,
  under every `winner`, unless the device holds a newer version. Show edits that still wait on top. `winner`
  is for the person: `client` does not say that the server's copy is the one that the device has.
- **`conflict`** leaves the server's record as it is. Show the record of the result, and the device's change
  beside it as waiting, until `conflicts` no longer lists it. Each later change of this device that
  conflicts with the record joins the same conflict. An edit on the server's version is applied as usual,
  and the conflict stays open. A device lists and settles its own conflicts only, another one's are
  `not_found`; a supervisor's token reaches all of its tenant. No message says that somebody else settled a
  conflict: the feed brings a new version, even for the choice `server` with equal `data`. List the
  conflicts again when a change of such a record comes. If `changes` is left out of a `resolve`, the server
  does not check whether the person saw all changes.

"""


def policies_section() -> str:
    """Make the section."""
    rows = [f"| `{policy}` | {_LINK.sub('', text)} |" for policy, text in OUTCOMES.items()]
    return _HEAD + "\n".join(["| policy | outcome of a conflict |", "|---|---|", *rows]) + "\n" + _TAIL
