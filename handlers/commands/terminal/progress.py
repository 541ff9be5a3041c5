"""What a command shows on a terminal while it takes longer than two seconds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click

_SHOWN_AFTER_S: Final = 2.0
_EVERY_S: Final = 1.0
#: Held while a line or a question is the last line of the terminal.
_LAST_LINE: Final = threading.RLock()
#: Goes to the beginning of the line and clears it.
_CLEAR: Final = "\r\x1b[K"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the line of ``progress`` away while a question waits for its answer."""
    with _LAST_LINE:
        if sys.stderr.isatty():
            click.echo(_CLEAR, nl=False, err=True)
        yield


@contextmanager
def progress(doing: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that the block goes on, from its third second on, in a line that is cleared at its end.

    Without a terminal nothing is shown. A thread writes, so that the block may be blocking.

    Args:
        doing: What the block does, such as ``reading``.

    Yields:
        A function that sets how far it is, such as ``1,000 rows``.
    """
    told = [""]

    def tell(far: str) -> None:
        told[0] = f", {far}"

    if not sys.stderr.isatty():
        yield tell
        return
    over = threading.Event()

    def show() -> None:
        passed_s = _SHOWN_AFTER_S
        while not over.wait(_SHOWN_AFTER_S if passed_s == _SHOWN_AFTER_S else _EVERY_S):
            with _LAST_LINE:
                click.echo(f"{_CLEAR}{doing} … {passed_s:.0f} s{told[0]}", nl=False, err=True)
            passed_s += _EVERY_S
        if passed_s > _SHOWN_AFTER_S:
            click.echo(_CLEAR, nl=False, err=True)

    shower = threading.Thread(target=show, name="progress", daemon=True)
    shower.start()
    try:
        yield tell
    finally:
        over.set()
        shower.join()
