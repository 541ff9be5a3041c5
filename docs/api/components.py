"""Where both documents have their schemas, and how they refer to one."""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

REF: Final = "#/components/schemas/"


def ref(name: str) -> Schema:
    """Refer to a schema."""
    return {"$ref": REF + name}
