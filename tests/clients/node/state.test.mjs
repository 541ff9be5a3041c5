// What the example device makes of each event, without a server: node --test
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Connection } from '../../../docs/examples/connection.js'
import { Device } from '../../../docs/examples/device.js'
import { after, apply, begin, checked, emptyState, merged, settle, startOver, takeBack, waiting, write } from '../../../docs/examples/state.js'

const LIMITS = { frame_bytes: 1 << 20, items: 500, record_bytes: 1 << 18, messages_per_minute: 6000 }
const change = (id, version, seq, more = {}) => ({ domain: 'journal', id, version, seq, deleted: false, data: { version }, ...more })
const edit = (id, op, data) => ({ domain: 'journal', id, op, data })
const sent = (...edits) => {
  const state = emptyState()
  for (const one of edits) write(state, one)
  begin(state, 100, LIMITS)
  return state
}

test('merge patch of RFC 7396', () => {
  assert.deepEqual(merged({ a: 1, b: { c: 1, d: 2 } }, { a: null, b: { c: null, e: [null] } }), { b: { d: 2, e: [null] } })
  assert.deepEqual(merged(null, { a: { b: null } }), { a: {} })
  const polluted = merged({}, JSON.parse('{"__proto__": {"a": 1}}'))
  assert.equal(polluted.a, undefined)
  assert.equal(JSON.stringify(polluted), '{"__proto__":{"a":1}}')
})

test('an edit on top of a waiting one has its base, though the record is newer now', () => {
  const state = emptyState()
  apply(state, [change('a', 3, 1)], 'c1', false)
  write(state, edit('a', 'patch', { n: 1 }))
  apply(state, [change('a', 4, 2)], 'c2', false)
  write(state, edit('a', 'patch', { n: 2 }))
  write(state, edit('b', 'put', {}))
  assert.deepEqual(waiting(state, 'journal', 'a').map(({ base }) => base), [3, 3])
  assert.equal(waiting(state, 'journal', 'b')[0].base, null)
})

test('no edit of a record is earlier than the one before, though the clock was set back', () => {
  const state = emptyState()
  state.records['journal/a'] = { version: 1, data: {}, sweep: 0, seq: 1, files: [], at: '2999-01-01T00:00:00.000Z' }
  write(state, edit('a', 'patch', {}))
  assert.equal(waiting(state, 'journal', 'a')[0].at, '2999-01-01T00:00:00.000Z')
})

test('a page of an older version changes no record, and files go by the highest seq', () => {
  const state = emptyState()
  const [old, file] = [{ file_id: '1' }, { file_id: '2' }]
  apply(state, [change('a', 2, 5, { attachments: [file] })], 'c1', false)
  apply(state, [change('a', 1, 4, { attachments: [old] })], 'c2', false)
  const { version, data, files } = state.records['journal/a']
  assert.deepEqual([version, data, files, state.cursor], [2, { version: 2 }, [file], 'c2'])
  apply(state, [change('a', 2, 6)], 'c3', false)
  assert.deepEqual(state.records['journal/a'].files, [], 'the file was removed, the version is the same')
})

test('an answer that was overtaken by the feed does not set a record back', () => {
  const state = sent(edit('a', 'put', { n: 1 }))
  apply(state, [change('a', 2, 2)], 'c', false)
  const { known } = settle(state, [{ status: 'applied', version: 1 }])
  assert.deepEqual([known, state.records['journal/a'].version, state.outbox], [true, 2, []])
})

test('a patch on a version that the device does not hold is pulled from before the message', () => {
  const state = emptyState()
  apply(state, [change('a', 1, 1)], 'before', false)
  write(state, edit('a', 'patch', { n: 1 }))
  begin(state, 100, LIMITS)
  state.cursor = 'later'
  const { known } = settle(state, [{ status: 'applied', version: 3 }])
  assert.deepEqual([known, state.cursor, state.records['journal/a'].version], [false, 'before', 1])
})

test('a result without its data is pulled', () => {
  const state = sent(edit('a', 'put', { n: 1 }))
  assert.equal(settle(state, [{ status: 'resolved', winner: 'merged', version: 2 }]).known, false)
})

test('after an expired cursor older versions count, and what does not come goes', () => {
  const state = emptyState()
  apply(state, [change('a', 7, 70), change('lost', 1, 71)], 'old', false)
  write(state, edit('a', 'patch', { n: 1 }))
  startOver(state)
  apply(state, [change('a', 3, 3)], 'new', true)
  assert.deepEqual(Object.keys(state.records), ['journal/a', 'journal/lost'], 'shown until the end')
  apply(state, [], 'end', false)
  assert.deepEqual([state.records['journal/a'].version, Object.keys(state.records), state.sweeping], [3, ['journal/a'], false])
  assert.equal(state.outbox.length, 1)
})

test('a message has the oldest edits under one key until it is answered', () => {
  const state = sent(edit('a', 'put', { text: 'x'.repeat(40_000) }), edit('b', 'put', { text: 'x'.repeat(40_000) }), edit('c', 'delete'))
  assert.equal(state.message.count, 1, 'two are over 64 KiB')
  const { key } = state.message
  settle(state, [{ status: 'applied', version: 1 }])
  begin(state, 100, LIMITS)
  assert.equal(state.message.count, 2)
  assert.notEqual(state.message.key, key)
})

test('an edit that no frame takes is set aside, and a lone refused one', () => {
  const state = emptyState()
  for (const id of ['large', 'a', 'b']) write(state, edit(id, 'put', { text: 'x'.repeat(id === 'large' ? 2000 : 1) }))
  begin(state, 100, { ...LIMITS, frame_bytes: 1500 })
  assert.deepEqual([state.aside[0].what.id, state.message.count], ['large', 2])
  takeBack(state, { code: 'malformed', message: '' })
  assert.deepEqual([state.outbox.length, state.message], [2, null])
  begin(state, 1, LIMITS)
  takeBack(state, { code: 'malformed', message: '' })
  assert.deepEqual([state.outbox.length, state.aside[1].what.id], [1, 'a'])
})

test('a delete leaves a tombstone, and an edit after it begins from nothing', () => {
  assert.equal(after({ n: 1 }, { op: 'delete' }), null)
  assert.deepEqual(after(null, { op: 'patch', data: { n: 2 } }), { n: 2 })
})

test('values that no message carries are refused', () => {
  for (const value of [NaN, Infinity, 2 ** 53, 'a\0', '\ud800']) {
    assert.throws(() => JSON.stringify({ n: [value] }, checked), TypeError)
  }
  assert.throws(() => JSON.stringify({ 'a\0': 1 }, checked), TypeError)
  assert.equal(JSON.stringify({ n: [1.5, -1, '😀', null] }, checked), '{"n":[1.5,-1,"😀",null]}')
})

/** A connection on a socket that only remembers. */
function connected(state, save = async () => {}) {
  const socket = { sent: [], closed: false, send: (text) => socket.sent.push(JSON.parse(text)), close: () => (socket.closed = true) }
  const none = () => {}
  const commit = async (run) => {
    const value = run(state)
    await save()
    return value
  }
  const connection = new Connection(socket, { state: () => state, commit, welcomed: none, changed: none, settled: none })
  const hear = async (message) => {
    socket.onmessage?.({ data: JSON.stringify(message) })
    await new Promise(setImmediate)
    return socket.sent.splice(0)
  }
  const welcome = { type: 'welcome', server_time: '2026-01-02T03:04:05Z', heartbeat_s: 30, limits: LIMITS, policies: {} }
  return { connection, socket, hear, greet: () => hear(welcome), end: () => connection.ended(1000) }
}

const types = (sent) => sent.map(({ type }) => type)

test('hello comes first, then a pull to the end, then a subscription', async () => {
  const { hear, greet, end } = connected(sent(edit('a', 'put', {})))
  const [hello, pull, sync] = await greet()
  assert.deepEqual(types([hello, pull, sync]), ['hello', 'pull', 'sync'])
  assert.equal(hello.server_time, '2026-01-02T03:04:05Z')
  const page = { type: 'changes', changes: [], more: true, cursor: 'c1' }
  const [next] = await hear({ ...page, id: pull.id })
  assert.deepEqual([next.type, next.cursor], ['pull', 'c1'])
  const [subscribe] = await hear({ ...page, id: next.id, more: false, cursor: 'c2' })
  assert.deepEqual([subscribe.type, subscribe.cursor], ['subscribe', 'c2'])
  assert.deepEqual(await hear({ ...page, id: subscribe.id, more: false, cursor: 'c3' }), [])
  await end()
})

test('nothing is said after a goodbye, and a page that was not stored ends the connection', async () => {
  const working = emptyState()
  const { connection, hear, greet, end } = connected(working)
  await greet()
  await hear({ type: 'goodbye', reason: 'drain', retry_after_ms: 70 })
  write(working, edit('a', 'put', {}))
  connection.edited()
  assert.deepEqual([await hear({ type: 'policies', policies: {} }), connection.wait_ms], [[], 70])
  await end()
  const state = emptyState()
  let full = false
  const other = connected(state, async () => {
    if (full) throw new Error('the disk is full')
  })
  const [, pull] = await other.greet()
  full = true
  const { onmessage } = other.socket
  const page = { type: 'changes', id: pull.id, changes: [], more: false }
  onmessage({ data: JSON.stringify({ ...page, cursor: 'not stored' }) })
  onmessage({ data: JSON.stringify({ ...page, cursor: 'behind it' }) })
  await new Promise(setImmediate)
  assert.deepEqual([state.cursor, other.socket.closed], ['not stored', true])
  await other.end()
})

test('the feed starts over at cursor_expired, and waits at overloaded', async () => {
  const state = emptyState()
  const { hear, greet, end } = connected(state)
  const [, pull] = await greet()
  const error = { type: 'error', message: '', retryable: false }
  const [again] = await hear({ ...error, id: pull.id, code: 'cursor_expired' })
  assert.deepEqual([again.type, again.cursor, state.sweeping], ['pull', null, true])
  const busy = { ...error, id: again.id, code: 'overloaded', retryable: true, retry_after_ms: 60_000 }
  assert.deepEqual(await hear(busy), [])
  await end()
})

test('a push is blamed for an error without an id only if that is malformed', async () => {
  const error = { type: 'error', message: '', retryable: false }
  const state = sent(edit('a', 'put', { n: 1 }))
  const { hear, greet, end } = connected(state)
  const [, , sync] = await greet()
  assert.deepEqual(await hear({ ...error, code: 'invalid_message' }), [], 'it refuses the hello')
  await hear({ type: 'synced', id: sync.id, replayed: false, results: [{ status: 'applied', version: 1 }] })
  assert.deepEqual([state.aside, state.outbox, state.records['journal/a'].version], [[], [], 1])
  await end()
  const other = sent(edit('b', 'put', {}))
  const bad = connected(other)
  await bad.greet()
  await bad.hear({ ...error, code: 'malformed' })
  assert.deepEqual([other.aside.map(({ what }) => what.id), other.outbox], [['b'], []])
  await bad.end()
})

test('of two waits the later end counts', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  const state = sent(edit('a', 'put', {}))
  const { hear, greet, end } = connected(state)
  const [, pull, sync] = await greet()
  const busy = { type: 'error', code: 'overloaded', message: '', retryable: true }
  await hear({ ...busy, id: sync.id, retry_after_ms: 5000 })
  await hear({ ...busy, id: pull.id, retry_after_ms: 100 })
  t.mock.timers.tick(4999)
  assert.deepEqual(await hear({ type: 'policies', policies: {} }), [])
  t.mock.timers.tick(1)
  assert.deepEqual(types(await hear({ type: 'policies', policies: {} })), ['pull', 'sync'])
  await end()
})

test('a callback of the app that throws stops nothing, and is reported', async (t) => {
  const reported = t.mock.method(console, 'error', () => {})
  const sockets = []
  class Socket {
    sent = []
    constructor() { sockets.push(this) }
    send(text) { this.sent.push(JSON.parse(text)) }
    close() { this.closed = true }
  }
  const failure = new Error('in the app')
  const on = () => { throw failure }
  const store = { load: async () => null, save: async () => {}, open: async () => new Blob([]), close: async () => {} }
  const device = await Device.open({ server: 'http://s', token: async () => 't', store, WebSocket: Socket, on })
  const running = device.start()
  await new Promise(setImmediate)
  const [socket] = sockets
  const welcome = { type: 'welcome', server_time: '2026-01-02T03:04:05Z', heartbeat_s: 30, limits: LIMITS, policies: {} }
  socket.onmessage({ data: JSON.stringify(welcome) })
  await new Promise(setImmediate)
  assert.deepEqual([types(socket.sent), socket.closed], [['hello', 'pull'], undefined])
  assert.equal(reported.mock.calls[0].arguments[0], failure)
  await device.stop()
  await running
})

test('a device that is closed goes offline, and then lets its store go', async () => {
  const done = []
  const store = { load: async () => null, save: async () => done.push('saved'), close: async () => done.push('closed') }
  const device = await Device.open({ server: 'http://s', token: async () => 't', store })
  const edited = device.edit('journal', 'a', 'put', {})
  await device.close()
  await edited
  assert.deepEqual(done, ['saved', 'closed'])
})
