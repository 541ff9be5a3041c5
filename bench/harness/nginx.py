"""nginx with a site that ``run.py nginx`` printed, and a certificate of its own for localhost."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.harness.environment import BenchError

_DEPLOY: Final = Path(__file__).parents[2] / "deploy" / "nginx"
_LOOK_S: Final = 0.01


def nginx_program() -> str | None:
    """Find nginx, which is not on everybody's path. Returns None where it is not installed."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def certify(home: Path, subject: str = "localhost", ends_in: dt.timedelta = dt.timedelta(days=1)) -> Path:
    """Make a certificate for localhost and 127.0.0.1, and its key as ``key.pem``. Returns its path.

    Of several that a client believes each needs a ``subject`` of its own.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + ends_in)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = home / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.with_name("key.pem").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return path


def trusting(certificate: Path) -> ssl.SSLContext:
    """Make what a client needs to believe ``certify``'s certificate."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


@asynccontextmanager
async def fronted(
    home: Path, root: Path, environment: Mapping[str, str], port: int, workers: int, https_port: int
) -> AsyncIterator[Path]:
    """Run nginx before a server with the site that ``run.py nginx`` of its version, in ``root``, prints.

    Devices go to ``https_port`` of 127.0.0.1, and nginx to ``port``, which workers share or one has alone.
    Yields the certificate to trust. Raises BenchError where nginx is not installed.
    """
    program, certificate = nginx_program(), certify(home)
    if program is None:
        raise BenchError("nginx is not installed: apt-get install nginx-light, or measure without it")
    printing = await asyncio.create_subprocess_exec(
        *(sys.executable, str(root / "run.py"), "nginx", "--workers", str(workers), "--port", str(port)),
        *("--address", "127.0.0.1", "--https-port", str(https_port)),
        *("--certificate", str(certificate), "--key", str(certificate.with_name("key.pem"))),
        cwd=root,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
    )
    site, _ = await printing.communicate()
    nginx = Nginx(program, home, site.decode(), https_port, connections=8192)
    await nginx.start()
    try:
        yield certificate
    finally:
        await nginx.stop()


class Nginx:
    """One nginx, in a directory of its own, with a site that listens on a port of 127.0.0.1.

    Each of its two processes has so many ``connections`` at most; a device takes two. After a reload the old
    processes keep theirs for ``shutdown_s``.
    """

    def __init__(
        self, program: str, home: Path, site: str, port: int, connections: int = 512, shutdown_s: int = 60
    ) -> None:
        self.port = port
        self._site = home / "site.conf"
        self._site.write_text(site)
        main = (_DEPLOY / "main.conf").read_text("utf-8")
        (home / "main.conf").write_text(main.replace("timeout 60s", f"timeout {shutdown_s}s"))
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"    {kind}_temp_path {home}/{kind};\n" for kind in kinds)
        user = "user root;\n" if os.geteuid() == 0 else ""
        (home / "nginx.conf").write_text(
            f"{user}daemon off;\npid {home}/nginx.pid;\nerror_log {home}/error.log;\nworker_processes 2;\n"
            f"include {home}/main.conf;\nevents {{ worker_connections {connections}; }}\n"
            f"http {{\n    access_log off;\n{temporary}    include {home}/site.conf;\n}}\n"
        )
        self._command = [program, "-p", f"{home}", "-c", f"{home}/nginx.conf", "-e", f"{home}/error.log"]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where devices go."""
        return f"https://localhost:{self.port}"

    def tested(self) -> str:
        """Returns nginx's words on its configuration. Raises CalledProcessError where it would not start."""
        ended = subprocess.run([*self._command, "-t"], capture_output=True, text=True, check=True)
        return ended.stderr

    async def start(self) -> None:
        """Start it and wait until it listens. Raises ChildProcessError where it ends instead."""
        self._process = await asyncio.create_subprocess_exec(*self._command)
        while self._process.returncode is None:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(_LOOK_S)
        raise ChildProcessError(f"nginx ended with {self._process.returncode}; see its error.log")

    async def reload(self, site: str) -> None:
        """Have it serve another site, and wait until no old process takes a connection any more."""
        assert self._process is not None
        self._site.write_text(site)
        self.tested()
        old = psutil.Process(self._process.pid).children()
        self._process.send_signal(signal.SIGHUP)
        while any(map(_takes_connections, old)):  # noqa: ASYNC110  # nginx tells nobody
            await asyncio.sleep(_LOOK_S)

    async def stop(self) -> None:
        """Stop it."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


def _takes_connections(process: psutil.Process) -> bool:
    try:
        return "shutting down" not in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
