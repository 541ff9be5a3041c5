"""No core dumps: the memory of a process has keys and personal data in plain."""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Final

#: Of prctl(2).
_PR_SET_DUMPABLE: Final = 4


def forbid_core_dumps() -> None:
    """Have this process leave no core dump, and the processes that it starts none either.

    The limit holds for files, and is inherited. ``core_pattern`` may hand a dump to a program in spite of it,
    as systemd's does: not that of a process that is not dumpable. Other processes of its account, such as
    py-spy, can then not look into it; root can.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
