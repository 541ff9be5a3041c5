"""The command ``run.py smoke``."""

from __future__ import annotations

import asyncio
import secrets
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import click
import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from bench.smoke.phone import SmokeError
from bench.smoke.steps import CLEANING, STEPS, Smoke, Step

#: A step that takes longer failed, whatever comes later.
_STEP_S: Final = 15.0
_DEVICES: Final = ("smoke-first", "smoke-second")
#: A tenant of a run that was killed; a run takes seconds.
_PREFIX: Final = "smoke-"


class Deployed(msgspec.Struct, frozen=True):
    """The deployment of these settings.

    ``url`` is where its server listens. ``signer(tenant)`` returns what signs tokens of a tenant's devices;
    ``tenant(name)`` adds a tenant and erases it in the end. Both raise ClickException.
    """

    url: str
    signer: Callable[[str], Callable[[str], str]]
    tenant: Callable[[str], AbstractAsyncContextManager[None]]


#: The ``obj`` of the command's context: opens the deployment of --config and --data-dir.
Open = Callable[[Path | None, str | None], Deployed]


class Taken(msgspec.Struct, frozen=True):
    """A step that was gone."""

    step: str
    status: Literal["ok", "failed"]
    duration_ms: float
    detail: str
    look: str | None = None


class Asked(NamedTuple):
    """What is asked for on the command line."""

    url: str | None
    tenant: str | None
    tokens: tuple[str, str] | None
    ca: Path | None


def _tokens(_: click.Context, __: click.Parameter, file: Any) -> tuple[str, str] | None:
    if file is None:
        return None
    found = file.read().split()
    if len(found) != len(_DEVICES):
        raise click.BadParameter("two tokens are required, one a line, of two devices of one tenant.")
    return found[0], found[1]


@click.command(
    "smoke",
    epilog="""\b
Examples:
  run.py smoke --url https://sync.example.org
  run.py smoke --url https://127.0.0.1:8443 --ca ca.pem --json
  run.py smoke --url https://sync.example.org --tenant smoke
  run.py smoke --url https://sync.example.org --tokens tokens.txt""",
)
@click.option("--url", metavar="U", help="The server, as devices reach it.  [default: that of the settings]")
@click.option("--ca", type=click.Path(path_type=Path), metavar="FILE",
    help="Certificates of the authority to trust, in PEM.  [default: those of the system]")  # fmt: skip
@click.option("--tenant", metavar="T",
    help="A tenant that is kept for this; its records smoke-1 to smoke-3 are deleted in the end."
    "  [default: a new one, which is erased in the end]")  # fmt: skip
@click.option("--tokens", type=click.File("r"), callback=_tokens, metavar="FILE",
    help="The tokens of two devices of a tenant that is kept for this, where no key and no database is at"
    " hand; - reads them from stdin.")  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="Print the steps as JSON.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE",
    help="TOML file of settings that differ from config.toml."
    "  [default: $TIDEMARK_CONFIG, else /etc/tidemark/config.toml if there is one]")  # fmt: skip
@click.option("--data-dir", metavar="DIR", help="Where embedded services and secrets are kept.")
@click.pass_obj
def smoke(
    open_deployed: Open,
    /,
    *,
    url: str | None,
    ca: Path | None,
    tenant: str | None,
    tokens: tuple[str, str] | None,
    json_: bool,
    config: Path | None,
    data_dir: str | None,
) -> None:
    """Go through a device's whole session against a running server, and clean up after it.

    Two devices of a tenant connect, push, repeat a message, pull, follow, meet a conflict, have an item
    refused, upload a file in chunks and download it. The exit status is 1 if a step fails, and the line of
    that step says what to look at.
    """
    if tenant is not None and tokens is not None:
        raise click.UsageError("--tenant and --tokens: the tokens name their tenant, give one of the two")
    if tokens is not None and url is None:
        raise click.UsageError("--tokens: give --url, too")
    said: Callable[[Taken], None] = (lambda _: None) if json_ else _say
    taken = asyncio.run(
        _interruptible(_run(Asked(url, tenant, tokens, ca), lambda: open_deployed(config, data_dir), said))
    )
    failed = [one.step for one in taken if one.status == "failed"]
    if json_:
        document = {"succeeded": not failed, "failed": failed, "steps": taken}
        click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
    else:
        click.echo(f"failed: {', '.join(failed)}" if failed else f"all {len(taken)} steps went well")
    sys.exit(1 if failed else 0)


async def _interruptible(running: Coroutine[Any, Any, list[Taken]]) -> list[Taken]:
    """Run until the end or until SIGTERM, which cleans up as Ctrl-C does. Raises Abort."""
    task = asyncio.ensure_future(running)
    with suppress(ValueError, RuntimeError):  # beside a thread of signals; SIGTERM ends the process then
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise click.Abort from None


def _say(one: Taken) -> None:
    click.echo(f"{one.status:<6}  {one.step:<8}  {one.duration_ms:>7.0f} ms  {one.detail}")
    if one.look is not None:
        click.echo(f"        look at {one.look}")


async def _run(asked: Asked, deployed: Callable[[], Deployed], said: Callable[[Taken], None]) -> list[Taken]:
    """Go through the steps and clean up.

    Returns the steps up to one that failed, and the cleaning up. Raises ClickException.
    """
    trusted, timeout = _trusted(asked.ca), ClientTimeout(total=_STEP_S)
    async with (
        _admitted(asked, deployed) as (url, tokens),
        ClientSession(connector=TCPConnector(ssl=trusted), timeout=timeout) as session,
    ):
        new_tenant = asked.tenant is None and asked.tokens is None
        going = Smoke(session, url.rstrip("/"), trusted, tokens, new_tenant=new_tenant)
        taken: list[Taken] = []
        try:
            for step in STEPS:
                taken.append(await _take(going, step))
                said(taken[-1])
                if taken[-1].status == "failed":
                    break
        finally:
            if len(taken) > 1:  # at the first one nothing was reached
                taken.append(await _take(going, CLEANING))
                said(taken[-1])
    return taken


async def _take(going: Smoke, step: Step) -> Taken:
    began_s = time.perf_counter()
    try:
        async with asyncio.timeout(_STEP_S):
            status, detail = "ok", await step.run(going)
    except TimeoutError:
        status, detail = "failed", f"no answer within {_STEP_S:.0f} s"
    except ssl.SSLCertVerificationError as error:
        status, detail = "failed", f"the certificate is not trusted: {error.verify_message}"
    except (SmokeError, ClientError, OSError, msgspec.MsgspecError, KeyError) as error:
        status, detail = "failed", str(error) or type(error).__name__
    took_ms = round(1000 * (time.perf_counter() - began_s), 1)
    if status == "ok":
        return Taken(step.name, "ok", took_ms, detail)
    return Taken(step.name, "failed", took_ms, detail, step.look)


@asynccontextmanager
async def _admitted(
    asked: Asked, deployed: Callable[[], Deployed]
) -> AsyncIterator[tuple[str, tuple[str, str]]]:
    """Give the address and two tokens; a tenant of the run is erased in the end. Raises ClickException."""
    if asked.tokens is not None:
        assert asked.url is not None
        yield asked.url, asked.tokens
        return
    at = deployed()
    url = asked.url or at.url
    if asked.tenant is not None:
        sign = at.signer(asked.tenant)
        yield url, (sign(_DEVICES[0]), sign(_DEVICES[1]))
        return
    name = f"{_PREFIX}{secrets.token_hex(4)}"
    async with at.tenant(name):
        sign = at.signer(name)
        yield url, (sign(_DEVICES[0]), sign(_DEVICES[1]))


def _trusted(ca: Path | None) -> ssl.SSLContext:
    """Make what believes the system's authorities, or those of a file. Raises ClickException."""
    try:
        trusted = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except ssl.SSLError:
        raise click.ClickException(f"--ca {ca}: no certificates in PEM") from None
    except OSError as error:
        raise click.ClickException(f"--ca {ca}: {error.strerror}") from None
    # Authorities that people made themselves lack what Python 3.13 asks of public ones.
    trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return trusted
