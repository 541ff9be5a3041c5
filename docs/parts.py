"""Parts of pages that are written by ``python -m docs.generate``, among what people write."""

from __future__ import annotations


def with_part(text: str, name: str, made: str) -> str:
    """Return a page with a part made anew: it stands between two comments that name it."""
    begin, end = f"<!-- {name}: written by python -m docs.generate -->\n", f"<!-- end of {name} -->\n"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{made}\n{end}{tail}"
