"""The example device in a page of another origin, in Chromium, with its state in IndexedDB."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.harness.browser import IN_CHROMIUM, browser_page
from tests.harness.in_process_server import Serve

#: An edit without a server, then a file with one, on what the first visit of the page left.
_OFFLINE = """
async ({ server, token }) => {
  const { Device } = await import('/examples/device.js')
  const { browserStore } = await import('/examples/browser_store.js')
  window.device = await Device.open({ server, token: async () => token, store: browserStore('phone') })
  await device.edit('journal', 'd1', 'put', { text: 'gate open' })
}
"""
_ONLINE = """
async ({ server, token, content }) => {
  const { Device } = await import('/examples/device.js')
  const { browserStore } = await import('/examples/browser_store.js')
  let heard = () => {}
  const options = { server, token: async () => token, on: () => heard(), store: browserStore('phone') }
  const device = await Device.open(options)
  const waiting = device.state.outbox.length
  const blob = new Blob([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))])
  await device.attach('journal', 'd1', blob, 'gate.png', 'image/png')
  device.start()
  await device.settled()
  while (!device.record('journal', 'd1').files.length) await new Promise((done) => (heard = done))
  const { version, files } = device.record('journal', 'd1')
  const size = (await device.download(files[0])).size
  const reopened = () => Device.open({ ...options, store: browserStore('phone') })
  const again = await reopened().catch((error) => error.message)
  await device.close()
  const second = await reopened()
  const kept = second.record('journal', 'd1').version
  await second.close()
  const empty = { ...options.store, load: async () => null }
  const refused = await Device.open({ ...options, token: async () => 'no', store: empty })
  const stopped = await refused.start().catch((error) => error.constructor.name)
  return { waiting, version, size, again, kept, stopped }
}
"""


@asynccontextmanager
async def pages() -> AsyncIterator[int]:
    """Serve an empty page and the examples on a port of its own."""
    app = web.Application()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="", content_type="text/html")

    app.router.add_get("/", page)
    app.router.add_static("/examples", Path(__file__).parents[2] / "docs" / "examples")
    async with TestServer(app) as server:
        assert server.port is not None
        yield server.port


@IN_CHROMIUM
async def test_browser_device_keeps_its_edits_over_a_reload_and_syncs(serve: Serve) -> None:
    content = b"\x89PNG\r\n\x1a\n" + bytes(2500)
    async with pages() as port, browser_page() as page:
        server = await serve(server={"origins": [f"http://127.0.0.1:{port}"]})
        given = {
            "server": server.url,
            "token": server.token(),
            "content": base64.b64encode(content).decode(),
        }
        await page.goto(f"http://127.0.0.1:{port}/")
        await page.evaluate(_OFFLINE, given)
        await page.reload()
        seen = await page.evaluate(_ONLINE, given)
    assert "close() it before" in seen.pop("again")
    assert seen == {"waiting": 1, "version": 1, "size": len(content), "kept": 1, "stopped": "Stopped"}
