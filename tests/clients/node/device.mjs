// Runs docs/examples/device.js. Options come as the first line on stdin, then calls, one JSON object a line; answers go out
// in the same way: {"call": 1, "value": …} or {"call": 1, "error": "…"}, and {"event": …} for what happened.
//
// {"server", "state", "tokens", "later"}. A refused token is replaced by the next one. later: what the server says has fields
// and types of messages that a later version may add.
import { writeFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import WebSocket from 'ws'
import { Device } from '../../../docs/examples/device.js'
import { fileStore } from '../../../docs/examples/file_store.js'

const say = (said) => process.stdout.write(`${JSON.stringify(said)}\n`)
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const { server, state, tokens, later } = JSON.parse((await lines.next()).value)

/** Adds a field to every object but a record's data, and a message of an unknown type before each. */
const added = (value, name) => {
  if (name === 'data' || value === null || typeof value !== 'object') return value
  if (Array.isArray(value)) return value.map((one) => added(one))
  const object = Object.fromEntries(Object.entries(value).map(([key, one]) => [key, added(one, key)]))
  return { ...object, added_later: { by: 'a later version' } }
}

class LaterServer extends WebSocket {
  set onmessage(hear) {
    super.onmessage = hear && ((event) => {
      hear({ data: JSON.stringify({ type: 'added_later', id: '1', changes: [] }) })
      hear({ data: JSON.stringify(added(JSON.parse(event.data))) })
    })
  }
}

/** A store that is gone from a step on: before a save, or after it. `died` is told. */
const mortal = (kept, last, died) => {
  const step = () => {
    if (kept.steps++ < last) return
    died()
    throw new Error('killed')
  }
  return {
    load: async () => structuredClone(kept.state),
    save: async (state) => {
      step()
      kept.state = structuredClone(state)
      step()
    },
    open: async () => new Blob([]),
  }
}

const changed = []
const options = {
  server, app_version: 'example', WebSocket: later ? LaterServer : WebSocket,
  on: (event) => (event.type === 'changed' ? changed.splice(0).forEach((done) => done()) : say({ event })),
  token: async (refused) => (refused && tokens.length > 1 ? (tokens.shift(), tokens[0]) : tokens[0]),
}
const device = await Device.open({ ...options, store: fileStore(state) })
const calls = {
  start: () => void device.start().catch((stopped) => say({ event: { type: 'stopped', message: stopped.message } })),
  save: async (file, path) => writeFile(path, Buffer.from(await (await device.download(file)).arrayBuffer())),
  state: () => device.state,
  /** Waits until something has happened, for a short time at most. */
  changed: () => new Promise((done) => (changed.push(done), setTimeout(done, 200))),
  /** Makes two edits, the second on the answer to the first. The device dies at a step; another one goes on with its state. */
  life: async (name, last) => {
    const kept = { state: null, steps: 0 }
    const shows = (one, field) => field in (one.record('journal', name).data ?? {})
    const live = async (one) => {
      one.start().catch(() => {})
      if (!shows(one, 'n')) await one.edit('journal', name, 'put', { n: 1 })
      await one.settled()
      if (!shows(one, 'm')) await one.edit('journal', name, 'patch', { m: 2 })
      await one.settled()
    }
    let died = () => {}
    const death = new Promise((done) => (died = () => done(true)))
    const first = await Device.open({ ...options, store: mortal(kept, last, died) })
    const dead = await Promise.race([live(first).then(() => false, () => true), death])
    await first.stop()
    const second = await Device.open({ ...options, store: mortal(kept, Infinity) })
    await live(second)
    await second.stop()
    return { died: dead, ...second.record('journal', name) }
  },
}

say({ event: { type: 'opened' } })
for await (const line of lines) {
  const { call, name, given } = JSON.parse(line)
  Promise.resolve().then(() => (calls[name] ?? device[name].bind(device))(...given)).then(
    (value) => say({ call, value }),
    (error) => say({ call, error: String(error) }),
  )
}
process.exit()
