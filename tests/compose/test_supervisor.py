"""The supervisor alone, over processes that do as the test wants."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

import pytest

from compose.processes import supervisor
from compose.processes.supervisor import Orders, Supervisor, WorkersFailedError

_UP = "import os, signal, sys; pipe = int(sys.stdin.readline()); os.write(pipe, b'\\n'); os.close(pipe); "
_WAIT = "signal.pause()"
_HANGS = "import signal; signal.pause()"


def _supervisor(program: str, workers: int = 2, drain_s: float = 5.0) -> Supervisor:
    command = (sys.executable, "-S", "-c", program)
    return Supervisor(workers, command, _orders(drain_s))


def _orders(drain_s: float = 5.0, more: str = "") -> Orders:
    """Orders that tell the pipe, which is all that these programs read, and ``more`` on the same line."""
    return Orders(lambda _, pipe: f"{pipe}{more}".encode(), drain_s)


def _living(supervisor: Supervisor) -> list[int]:
    return [worker.process.pid for worker in supervisor._living]  # there is no other witness


def _up(supervisor: Supervisor) -> int:
    return sum(worker.said.done() for worker in supervisor._living)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("import os; os.write(int(input()), b'the port is taken\\n')", "the port is taken"),
        ("raise SystemExit(3)", "ended with status 3 at the start"),
        (_HANGS, "did not come up within"),
    ],
)
async def test_supervisor_worker_that_does_not_start_ends_all_with_a_sentence(
    program: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "START_S", 0.5 if "within" in sentence else 30.0)
    supervised = _supervisor(program)
    with pytest.raises(WorkersFailedError, match=sentence):
        await supervised.run()
    assert _living(supervised) == []


async def test_supervisor_sigterm_during_start_ends_and_kills_a_stopped_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "LAST_WORDS_S", 0.0)
    supervised = _supervisor(_HANGS, drain_s=0.5)
    running = asyncio.create_task(supervised.run())
    await _until(lambda: len(_living(supervised)) == 2)
    os.kill(_living(supervised)[0], signal.SIGSTOP)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(running, 30)
    assert _living(supervised) == []


async def test_supervisor_sigterm_during_renewal_ends_the_new_worker() -> None:
    supervised = _supervisor(_UP + _WAIT, workers=1)
    running = asyncio.create_task(supervised.run())
    await _until(lambda: 1 in supervised._workers and supervised._workers[1].said.done())
    supervised._command = (sys.executable, "-S", "-c", _HANGS)
    signal.raise_signal(signal.SIGHUP)
    await _until(lambda: len(_living(supervised)) == 2)
    new = _living(supervised)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(running, 30)
    for pid in new:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_supervisor_dying_worker_is_restarted_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(
        supervisor._log, "error", lambda _, **fields: pauses.append(fields["restart_after_s"]), raising=False
    )
    running = asyncio.create_task(_supervisor(_UP, workers=1).run())
    await _until(lambda: len(pauses) == 4)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(running, 30)
    assert pauses[:4] == [0.01, 0.02, 0.04, 0.08]


async def test_supervisor_worker_that_cannot_be_spawned_leaves_others_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(supervisor, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(supervisor._log, "error", lambda event, **_: said.append(event), raising=False)
    supervised = _supervisor(_UP + _WAIT)
    running = asyncio.create_task(supervised.run())
    await _until(lambda: len(supervised._workers) == 2 and _up(supervised) == 2)
    command, supervised._command = supervised._command, ("/nowhere/python",)
    signal.raise_signal(signal.SIGHUP)
    await _until(lambda: "renewal_abandoned" in said or running.done())
    assert not running.done()
    lost, stays = _living(supervised)
    os.kill(lost, signal.SIGKILL)
    await _until(lambda: "worker_not_up" in said or running.done())
    assert not running.done()
    supervised._command = command
    await _until(lambda: len(_living(supervised)) == 2)
    assert stays in _living(supervised)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(running, 30)


async def test_supervisor_no_worker_can_be_spawned_ends_with_a_sentence() -> None:
    supervised = Supervisor(2, ("/nowhere/python",), _orders())
    with pytest.raises(WorkersFailedError, match="worker 1 cannot be started: No such file or directory"):
        await supervised.run()


async def test_supervisor_new_worker_is_watched_while_the_old_one_drains() -> None:
    deaf = _UP + "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\nwhile True: signal.pause()"
    supervised = _supervisor(deaf, workers=1, drain_s=60)
    running = asyncio.create_task(supervised.run())
    await _until(lambda: _up(supervised) == 1)
    (old,) = _living(supervised)
    supervised._command = (sys.executable, "-S", "-c", _UP + _WAIT)
    signal.raise_signal(signal.SIGHUP)
    await _until(lambda: supervised._workers[1].process.pid != old)
    new = supervised._workers[1].process.pid
    os.kill(new, signal.SIGKILL)
    try:
        await _until(lambda: supervised._workers[1].process.pid not in {old, new})
        assert old in _living(supervised)
    finally:
        os.kill(old, signal.SIGKILL)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(running, 30)


# -- what SIGHUP reads again, and who else sends it -------------------------------------------


def _reordered(orders: Orders | None) -> Supervisor:
    """One worker, and these orders for its renewal; a worker that is told ``down`` does not come up."""
    program = (
        "import os, signal, sys; pipe, *more = sys.stdin.readline().split();"
        "more and sys.exit(3); os.write(int(pipe), b'\\n'); os.close(int(pipe)); signal.pause()"
    )
    return Supervisor(1, (sys.executable, "-S", "-c", program), _orders(), lambda: None, lambda: orders)


async def _stopped(running: asyncio.Task[bool]) -> None:
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(running, 30)


async def test_supervisor_renews_nothing_if_settings_are_broken() -> None:
    asked = asyncio.Event()
    supervised = _reordered(None)
    supervised._reread = asked.set
    running = asyncio.create_task(supervised.run())
    await _until(lambda: _up(supervised) == 1)
    before = _living(supervised)
    signal.raise_signal(signal.SIGHUP)
    await asyncio.wait_for(asked.wait(), 30)
    assert _living(supervised) == before
    await _stopped(running)


async def test_supervisor_keeps_the_old_orders_if_no_worker_comes_up_with_the_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(supervisor._log, "error", lambda event, **_: said.append(event), raising=False)
    supervised = _reordered(_orders(more=" down"))
    running = asyncio.create_task(supervised.run())
    await _until(lambda: _up(supervised) == 1)
    (old,) = _living(supervised)
    signal.raise_signal(signal.SIGHUP)
    await _until(lambda: said == ["renewal_abandoned"])
    assert _living(supervised) == [old]
    os.kill(old, signal.SIGKILL)
    await _until(lambda: old not in _living(supervised) and _up(supervised) == 1)
    assert said == ["renewal_abandoned", "worker_died"]
    await _stopped(running)


async def test_supervisor_kills_its_workers_on_a_second_interrupt() -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + _UP
    supervised = _supervisor(deaf + "\nwhile True: signal.pause()", drain_s=60)
    running = asyncio.create_task(supervised.run())
    await _until(lambda: _up(supervised) == 2)
    signal.raise_signal(signal.SIGINT)
    await _until(lambda: all(worker._told_to_stop for worker in supervised._living))
    assert len(_living(supervised)) == 2
    signal.raise_signal(signal.SIGINT)
    assert await asyncio.wait_for(running, 30)
    assert _living(supervised) == []


async def test_supervisor_stops_if_its_terminal_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminals = [True]
    monkeypatch.setattr(os, "isatty", lambda _: terminals[-1])
    supervised = _supervisor(_UP + _WAIT)
    running = asyncio.create_task(supervised.run())
    await _until(lambda: _up(supervised) == 2)
    terminals.append(False)
    signal.raise_signal(signal.SIGHUP)
    await asyncio.wait_for(running, 30)
    assert _living(supervised) == []
