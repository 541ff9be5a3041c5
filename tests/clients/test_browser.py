"""A page of another origin, in Chromium: it pushes, pulls, uploads and downloads as the contract lets it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.harness.browser import IN_CHROMIUM, browser_page
from tests.harness.in_process_server import Serve
from tests.harness.uploads.tus_js import TusJs
from tests.harness.ws_device import Json

#: What a page does over HTTP and over a socket; ``server`` and ``token`` come from outside.
_VISIT = """
async ({ server, token, content }) => {
  const authorization = { Authorization: `Bearer ${token}` }
  const ask = (path, more = {}) =>
    fetch(server + path, { ...more, headers: { ...authorization, ...more.headers } })
  const push = (key, record, headers = {}, pack = (text) => text) => ask('/v1/sync', {
    method: 'POST', headers: { 'Content-Type': 'application/json', ...headers },
    body: pack(JSON.stringify({ type: 'sync', key, items: [record] })),
  })
  const gzipped = async (text) =>
    new Response(new Blob([text]).stream().pipeThrough(new CompressionStream('gzip'))).arrayBuffer()
  const put = (id, data) => ({ domain: 'journal', id, op: 'put', data })
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))
  const seen = {}

  seen.synced = await (await push('k1', put('j1', { text: 'gate open' }))).json()
  const packed = await gzipped(JSON.stringify({ type: 'sync', key: 'k2', items: [put('j2', {})] }))
  seen.gzipped = await (await push('', {}, { 'Content-Encoding': 'gzip' }, () => packed)).json()
  seen.beat = await (await ask('/v1/heartbeat', {
    method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{"queue_depth": 0}',
  })).json()
  seen.conflicts = await (await ask('/v1/conflicts')).json()
  seen.domains = Object.keys((await (await ask('/v1/domains')).json()).domains)
  const refused = await fetch(server + '/v1/changes', { headers: { Authorization: 'Bearer no' } })
  seen.refused = (await refused.json()).code

  seen.upload = await new Promise((done) => {
    const upload = new tus.Upload(new Blob([bytes]), {
      endpoint: `${server}/v1/uploads`, headers: authorization, chunkSize: 1000, addRequestId: true,
      metadata: { filename: 'gate.png', filetype: 'image/png', domain: 'journal', record_id: 'j1' },
      onError: (error) => done(String(error)), onSuccess: () => done(new URL(upload.url).pathname),
    })
    upload.start()
  })
  const said = { filename: 'draft.png', filetype: 'image/png', domain: 'journal', record_id: 'j2' }
  const draft = await ask('/v1/uploads', {
    method: 'POST', body: bytes,
    headers: {
      'Content-Type': 'image/png', 'Upload-Draft-Interop-Version': '8', 'Upload-Complete': '?1',
      'Upload-Metadata': Object.entries(said).map(([name, value]) => `${name} ${btoa(value)}`).join(','),
    },
  })
  seen.draft = [draft.status, draft.headers.get('Upload-Complete'), draft.headers.get('Upload-Offset')]

  const page = await (await ask('/v1/changes?domains=journal')).json()
  seen.changes = page.changes.map((change) => [change.id, change.attachments.map((file) => file.filename)])
  const file = `/v1/files/${page.changes[0].attachments[0].file_id}`
  const whole = await ask(file)
  seen.whole = btoa(String.fromCharCode(...new Uint8Array(await whole.arrayBuffer()))) === content
  const part = await ask(file, { headers: { Range: 'bytes=0-3', 'If-Range': whole.headers.get('ETag') } })
  seen.part = [part.status, part.headers.get('Content-Range'), (await part.arrayBuffer()).byteLength]

  const protocols = ['tidemark.v1.json', `bearer.${token}`]
  const socket = new WebSocket(server.replace('http', 'ws') + '/v1/sync', protocols)
  seen.welcome = await new Promise((done) => {
    socket.onmessage = (event) => done(JSON.parse(event.data).type)
    socket.onclose = (event) => done(event.code)
  })
  return seen
}
"""
_KNOCK = """
async ({ server, token }) => {
  const knocks = ['/v1/changes', '/v1/uploads', '/v1/files/' + '0'.repeat(32)].map((path) =>
    fetch(server + path, { headers: { Authorization: `Bearer ${token}` } }).then((got) => got.status, String))
  return Promise.all(knocks)
}
"""


@asynccontextmanager
async def pages(tus_js: TusJs) -> AsyncIterator[int]:
    """Serve a page on a port of its own."""
    app = web.Application()
    script = (tus_js.home / "node_modules/tus-js-client/dist/tus.min.js").read_text("utf-8")

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=f"<script>{script}</script>", content_type="text/html")

    app.router.add_get("/", page)
    async with TestServer(app) as server:
        assert server.port is not None
        yield server.port


@IN_CHROMIUM
async def test_browser_page_of_a_listed_origin_syncs_and_of_another_refused(
    serve: Serve, tus_js: TusJs
) -> None:
    content = b"\x89PNG\r\n\x1a\n" + bytes(2500)
    async with pages(tus_js) as port, browser_page() as page:
        server = await serve(server={"origins": [f"http://127.0.0.1:{port}"]})
        given: dict[str, Any] = {
            "server": server.url,
            "token": server.token(),
            "content": base64.b64encode(content).decode(),
        }
        await page.goto(f"http://127.0.0.1:{port}/")
        seen: Json = await page.evaluate(_VISIT, given)
        await page.goto(f"http://localhost:{port}/")
        knocks: list[str] = await page.evaluate(_KNOCK, given)
    assert [seen[name]["results"][0]["status"] for name in ("synced", "gzipped")] == ["applied", "applied"]
    assert seen["beat"]["type"] == "heartbeat_ack"
    assert seen["conflicts"]["conflicts"] == []
    assert "journal" in seen["domains"]
    assert seen["refused"] == "unauthenticated"
    assert seen["upload"].startswith("/v1/uploads/")
    assert seen["draft"] == [201, "?1", str(len(content))]
    assert dict(seen["changes"]) == {"j1": ["gate.png"], "j2": ["draft.png"]}
    assert seen["whole"] is True
    assert seen["part"] == [206, f"bytes 0-3/{len(content)}", 4]
    assert seen["welcome"] == "welcome"
    assert knocks == ["TypeError: Failed to fetch"] * 3
