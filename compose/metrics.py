"""What yields metrics beside the parts of the engine and the edge: this process, its connections, tenants."""

from __future__ import annotations

import platform
import resource
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from engine.runtime.metrics import Metric, Value, counter, gauge
from storage.postgres.migrate import newest_migration

_ROOT: Final = Path(__file__).parents[1]
_STATM: Final = Path("/proc/self/statm")


def release() -> tuple[str, str]:
    """Return the name and the version of this project."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["name"]), str(project["version"])


class ProcessMetrics:
    """What the system knows of this process. Open files are not counted: listing 10,000 takes 5 ms."""

    def __init__(self) -> None:
        _, version = release()
        self._build = (version, platform.python_version(), newest_migration())
        self._started_s = time.time()

    def metrics(self) -> Iterator[Metric]:
        """Yield the build, the age, the time of processors, the memory and the limit of open files."""
        labels = ("version", "python", "schema")
        yield Value("gauge", "tidemark_build_info", "The running version; always 1", {self._build: 1}, labels)
        yield gauge("tidemark_start_time_seconds", "When the process started, as Unix time", self._started_s)
        yield counter("tidemark_cpu_seconds", "Processor time of the process", time.process_time())
        yield gauge("tidemark_resident_memory_bytes", "Resident memory of the process", _resident_bytes())
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield gauge("tidemark_open_files_limit", "Connections and files that may be open", files)


def _resident_bytes() -> int:
    """Return the memory of this process as of now; where the system does not tell, the most so far."""
    try:
        return int(_STATM.read_text("ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
