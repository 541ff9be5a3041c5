"""A process of ``run.py`` leaves no core dump."""

import subprocess
import sys
from pathlib import Path

from tests.security.catalogue import against

RUN = Path(__file__).parents[2] / "run.py"
#: Runs run.py as a shell does, and says what the process may leave behind.
_PROGRAM = """
import ctypes, resource, runpy, sys
sys.argv = [{run!r}, "--version"]
sys.path.insert(0, {root!r})
try:
    runpy.run_path({run!r}, run_name="__main__")
except SystemExit:
    pass
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


@against("A02:2025", "V14.2")
def test_run_py_forbids_core_dumps() -> None:
    program = _PROGRAM.format(run=str(RUN), root=str(RUN.parent))
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "(0, 0) 0"
