"""A terminal is told that a command goes on; everything else gets nothing."""

from __future__ import annotations

import io
import threading

import pytest

from handlers.commands.terminal import progress as module
from handlers.commands.terminal.progress import progress


class Terminal(io.StringIO):
    """Is a terminal, and tells when so many lines were written."""

    def __init__(self, *, terminal: bool = True) -> None:
        super().__init__()
        self.terminal = terminal
        self.written = threading.Semaphore(0)

    def isatty(self) -> bool:
        """Whether it is one."""
        return self.terminal

    def write(self, text: str) -> int:
        """Write, and tell."""
        size = super().write(text)
        if text:
            self.written.release()
        return size


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHOWN_AFTER_S", 0.001)
    monkeypatch.setattr(module, "_EVERY_S", 0.001)


@pytest.mark.usefixtures("_fast")
def test_progress_on_a_terminal_tells_how_far_it_is_and_clears_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress("erasing") as tell:
        assert terminal.written.acquire(timeout=10)
        tell("1,000 rows")
        for _ in range(3):
            assert terminal.written.acquire(timeout=10)
    shown = terminal.getvalue().split("\r\x1b[K")
    assert shown[1].startswith("erasing … 0 s")
    assert any(line.endswith(" s, 1,000 rows") for line in shown)
    assert shown[-1] == "", "the line is cleared"


def test_progress_of_a_short_block_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress("reading"):
        pass
    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("_fast")
def test_progress_without_a_terminal_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal(terminal=False))
    before = threading.active_count()
    with progress("reading") as tell:
        tell("1 row")
        assert threading.active_count() == before


@pytest.mark.usefixtures("_fast")
def test_progress_line_is_cleared_before_an_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    def fail() -> None:
        with progress("reading"):
            assert terminal.written.acquire(timeout=10)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert terminal.getvalue().endswith("\r\x1b[K")
