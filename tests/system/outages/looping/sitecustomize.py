"""Python loads this at the start of each process with this folder on PYTHONPATH: SIGUSR2 makes it loop."""

import signal


def _loop(*_: object) -> None:
    while True:
        pass


signal.signal(signal.SIGUSR2, _loop)
