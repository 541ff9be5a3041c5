// How the example device takes answers over HTTP, without a server: node --test
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Refused, download, patiently, requests, sha256, upload } from '../../../docs/examples/http.js'

const CONTENT = new Uint8Array(1000).map((_, index) => index)

/** Answers requests in order. Returns what was asked. */
function answering(t, ...answers) {
  const asked = []
  t.mock.method(globalThis, 'fetch', async (url, { method = 'GET', headers = {}, body } = {}) => {
    asked.push({ url, method, headers, body })
    const answer = answers.shift()
    if (answer instanceof Error) throw answer
    return answer
  })
  return asked
}

const http = requests({ server: 'http://s', token: async (refused) => (refused ? 'fresh' : 'kept') })
const error = (status, code, more = {}) =>
  Response.json({ type: 'error', code, message: code, retryable: false, ...more }, { status })
const refusal = async (run) => {
  const thrown = await run().catch((caught) => caught)
  assert.ok(thrown instanceof Refused)
  return thrown
}

test('a refused token is replaced once', async (t) => {
  const asked = answering(t, error(401, 'unauthenticated'), Response.json({}), error(401, 'unauthenticated'), error(401, 'unauthenticated'))
  await http('/v1/domains')
  assert.deepEqual(asked.map(({ headers }) => headers.Authorization), ['Bearer kept', 'Bearer fresh'])
  assert.ok((await refusal(() => http('/v1/domains'))).isOfToken)
})

test('an answer of a proxy, which is no error of the contract, may be repeated', async (t) => {
  const late = { status: 503, headers: { 'Retry-After': 'Wed, 21 Oct 2026 07:28:00 GMT' } }
  answering(t, new Response('<html>', late), Response.json({ error: 'bad gateway' }, { status: 502 }), new Response('', { status: 410 }))
  for (const status of [503, 502]) {
    const { isRetryable, error } = await refusal(() => http('/v1/domains'))
    assert.deepEqual([isRetryable, error.retry_after_ms, error.message], [true, 1000, `HTTP ${status}`])
  }
  const gone = await refusal(() => http('/v1/uploads/1', { method: 'HEAD' }))
  assert.deepEqual([gone.isRetryable, gone.error.code], [false, 'upload_gone'])
})

test('a request is repeated while that may help', async (t) => {
  t.mock.method(Math, 'random', () => 0)
  const asked = answering(t, new TypeError('no network'), error(409, 'offset_mismatch'), error(503, 'overloaded', { retryable: true, retry_after_ms: 1 }), error(413, 'too_large'))
  const { error: last } = await refusal(() => patiently(() => http('/v1/uploads/1')))
  assert.deepEqual([asked.length, last.code], [4, 'too_large'])
})

test('a cut download goes on behind the last byte, and a damaged one is refused', async (t) => {
  t.mock.method(Math, 'random', () => 0)
  let pulls = 0
  const cut = new ReadableStream({
    pull: (stream) => (pulls++ ? stream.error(new TypeError('cut')) : stream.enqueue(CONTENT.slice(0, 400))),
  })
  const file = { file_id: 'f', filetype: 'image/png', size_bytes: 1000, sha256: await sha256(new Blob([CONTENT])) }
  const asked = answering(t, new Response(cut), new Response(CONTENT.slice(400), { status: 206 }), new Response(CONTENT.slice(1)))
  const blob = await download(http, file)
  assert.deepEqual(new Uint8Array(await blob.arrayBuffer()), CONTENT)
  assert.deepEqual([asked[1].headers.Range, asked[1].headers['If-Range']], ['bytes=400-', `"${file.sha256}"`])
  await assert.rejects(download(http, file), /damaged/)
})

/** Answers nothing, as a line that broke without a word. Returns what was asked. */
function silent(t, ...answers) {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  t.mock.method(Math, 'random', () => 0.5)
  const asked = []
  t.mock.method(globalThis, 'fetch', (url, { signal }) => {
    asked.push(url)
    const answer = answers.shift() ?? (() => new Promise((_, failed) => signal?.addEventListener('abort', () => failed(signal.reason))))
    return typeof answer === 'function' ? answer(signal) : Promise.resolve(answer)
  })
  /** Lets time pass once what is under way has come to its wait. */
  const passes = async (ms) => {
    await new Promise(setImmediate)
    t.mock.timers.tick(ms)
    await new Promise(setImmediate)
  }
  return { asked, passes }
}

test('a request without an answer is given up and repeated', { timeout: 5000 }, async (t) => {
  const { asked, passes } = silent(t, undefined, Response.json({}))
  const answer = patiently(() => http('/v1/domains'))
  await passes(119_999)
  assert.equal(asked.length, 1)
  await passes(1)
  await passes(250)
  assert.equal(asked.length, 2)
  assert.equal((await answer).status, 200)
})

test('a request ends with the signal of its caller', { timeout: 5000 }, async (t) => {
  const { asked, passes } = silent(t)
  const stop = new AbortController()
  const refused = assert.rejects(patiently(() => http('/v1/domains', { signal: stop.signal }), stop.signal), { name: 'AbortError' })
  await passes(1000)
  stop.abort()
  await refused
  assert.equal(asked.length, 1)
})

test('a download that falls silent goes on behind the last byte, and a slow one is left alone', { timeout: 5000 }, async (t) => {
  /** @type {ReadableStreamDefaultController} */ let line
  const dead = async (signal) => {
    signal?.addEventListener('abort', () => line.error(signal.reason))
    return new Response(new ReadableStream({ start: (stream) => void (line = stream) }))
  }
  const file = { file_id: 'f', filetype: 'image/png', size_bytes: 1000, sha256: await sha256(new Blob([CONTENT])) }
  const { asked, passes } = silent(t, dead, new Response(CONTENT.slice(200), { status: 206 }))
  const blob = download(http, file)
  for (const start of [0, 100]) {
    await passes(100_000)
    line.enqueue(CONTENT.slice(start, start + 100))
  }
  await passes(100_000)
  assert.equal(asked.length, 1, 'it brings bytes')
  await passes(20_000)
  await passes(250)
  assert.equal(asked.length, 2)
  assert.deepEqual(new Uint8Array(await (await blob).arrayBuffer()), CONTENT)
})

test('an upload describes its file in base64, and goes on from the offset of the server', async (t) => {
  const blob = new Blob([new Uint8Array(300_000)])
  const offset = (value, status = 204) => new Response(null, { status, headers: { 'Upload-Offset': `${value}` } })
  const begun = new Response(null, { status: 201, headers: { Location: '/v1/uploads/u' } })
  const asked = answering(t, begun, offset(10, 200), offset(262_154), offset(300_000))
  const urls = []
  const file = { domain: 'journal', record_id: 'j', filename: 'Tür.jpg', filetype: 'image/jpeg', source: '', url: '' }
  await upload(http, blob, file, async (url) => urls.push(url))
  assert.deepEqual(urls, ['/v1/uploads/u'])
  const [name, value] = asked[0].headers['Upload-Metadata'].split(',')[0].split(' ')
  assert.deepEqual([name, Buffer.from(value, 'base64').toString()], ['filename', 'Tür.jpg'])
  const sent = asked.slice(2).map(({ headers, body }) => [headers['Upload-Offset'], body.size])
  assert.deepEqual(sent, [['10', 262_144], ['262154', 37_846]])
})
