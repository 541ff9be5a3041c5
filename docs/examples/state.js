// What a device keeps, and how each event changes it. Each function is part of one transaction of device.js.

/** @import { Attachment, Change, Data, Item, Result, Welcome } from '../types/tidemark.d.ts' */
/** @typedef {{ code: string, message: string }} Fault */
/**
 * A record of the server: `data` is null for a tombstone. `seq` is that of the change that brought `files`. `at` is the
 * time of the device's own last edit. `sweep` is the pull from the beginning that brought the record.
 * @typedef {{ version: number, data: Data | null, sweep: number, at?: string, seq: number, files: Attachment[] }} Kept
 */
/**
 * A file to send. `url` is the address of its upload, once there is one.
 * @typedef {{ domain: string, record_id: string, filename: string, filetype: string, source: any, url: string }} Outgoing
 */
/**
 * `outbox` has the edits without an answer, as they are sent, byte for byte. `message` is the sync under way: how many
 * edits it has from the head of the outbox, and the cursor from before it. `aside` has what the server did not store, for the
 * user to see.
 * @typedef {object} State
 * @property {string[]} outbox
 * @property {{ key: string, count: number, cursor: string | null } | null} message
 * @property {Record<string, Kept>} records
 * @property {string | null} cursor
 * @property {number} sweep
 * @property {boolean} sweeping
 * @property {{ what: Item | Outgoing, fault: Fault }[]} aside
 * @property {Record<string, { domain: string, record_id: string }>} conflicts
 * @property {Outgoing[]} files
 */

const BATCH_BYTES = 65_536
const ENVELOPE_BYTES = 512 // of a message without its items
const BAD_TEXT = /\0|[\ud800-\udfff]/u // U+0000 and lone surrogates

/** @returns {State} */
export const emptyState = () => ({
  outbox: [], message: null, records: {}, cursor: null, sweep: 0, sweeping: false, aside: [], conflicts: {}, files: [],
})
export const recordKey = (/** @type {string} */ domain, /** @type {string} */ id) => `${domain}/${id}`
const parse = (/** @type {string} */ text) => /** @type {Item} */ (JSON.parse(text))
const isObject = (/** @type {any} */ value) => value !== null && typeof value === 'object' && !Array.isArray(value)

/** Applies an RFC 7396 merge patch. @param {any} target @param {any} patch @returns {any} */
export function merged(target, patch) {
  if (!isObject(patch)) return patch
  const fields = new Map(Object.entries(isObject(target) ? target : {}))
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) fields.delete(name)
    else fields.set(name, merged(fields.get(name), value))
  }
  return Object.fromEntries(fields)
}

/** Returns a record after an edit. @param {Data | null} data @param {Item} item @returns {Data | null} */
export function after(data, item) {
  if (item.op === 'delete') return null
  return item.op === 'patch' ? merged(data, item.data) : item.op === 'put' ? (item.data ?? null) : data
}

/** Refuses what no message carries. @param {string} name @param {unknown} value */
export function checked(name, value) {
  const whole = Number.isInteger(value)
  if (typeof value === 'number' && !(whole ? Number.isSafeInteger(value) : Number.isFinite(value))) {
    throw new TypeError(`${name}: ${value} is no exact number, store it as text`)
  }
  if (BAD_TEXT.test(name) || (typeof value === 'string' && BAD_TEXT.test(value))) {
    throw new TypeError(`${name}: a text must not have U+0000 or half a character`)
  }
  return value
}

/** Returns the waiting edits of a record. @param {State} state @param {string} domain @param {string} id */
export const waiting = (state, domain, id) =>
  state.outbox.map(parse).filter((item) => item.domain === domain && item.id === id)

/**
 * Puts an edit into the outbox. An edit on top of a waiting one has its base; none is earlier than the one before.
 * @param {State} state @param {Item} edit
 */
export function write(state, edit) {
  const before = waiting(state, edit.domain, edit.id), held = state.records[recordKey(edit.domain, edit.id)]
  const now = new Date().toISOString(), last = before.at(-1)?.at ?? held?.at ?? now
  const base = before.length ? before[0].base : edit.op === 'append' ? null : (held?.version ?? null)
  state.outbox.push(JSON.stringify({ ...edit, base, at: last > now ? last : now }, checked))
}

/** Makes the next message under a new key. @param {State} state @param {number} most @param {Welcome['limits']} limits */
export function begin(state, most, limits) {
  const size = (/** @type {string} */ text) => new TextEncoder().encode(text).length + 1
  while (state.outbox.length && size(state.outbox[0]) + ENVELOPE_BYTES > limits.frame_bytes) {
    setAside(state, { code: 'too_large', message: `larger than a frame of ${limits.frame_bytes} bytes` })
  }
  let count = 0, total = 0
  for (const item of state.outbox.slice(0, Math.min(most, limits.items))) {
    total += size(item)
    if (count && total > Math.min(BATCH_BYTES, limits.frame_bytes - ENVELOPE_BYTES)) break
    count += 1
  }
  if (count) state.message = { key: crypto.randomUUID(), count, cursor: state.cursor }
}

/** Sets the first edit aside, so that it holds up no other. @param {State} state @param {Fault} fault */
function setAside(state, fault) {
  state.aside.push({ what: parse(state.outbox[0]), fault })
  state.outbox.shift()
}

/** Takes a refused message back; a lone edit is what is wrong with it. @param {State} state @param {Fault} fault */
export function takeBack(state, fault) {
  if (state.message?.count === 1) setAside(state, fault)
  state.message = null
}

/**
 * Stores the answer to the message. `known` is false if it left the content of a record unknown: pull again.
 * @param {State} state @param {Result[]} results
 */
export function settle(state, results) {
  const { count, cursor } = state.message ?? { count: 0, cursor: null }
  if (count !== results.length) throw new Error(`${count} items were answered with ${results.length} results`)
  const items = state.outbox.splice(0, count).map(parse)
  const told = items.map((item, index) => take(state, item, results[index]))
  const known = !told.includes(false)
  if (!known) state.cursor = state.sweeping ? null : cursor
  state.message = null
  return { items, known }
}

/** Stores one result. @param {State} state @param {Item} item @param {Result} result */
function take(state, item, { status, version, data, error, winner, conflict_id }) {
  const fault = winner === 'server' ? { code: 'lost', message: 'a change of another device won' } : error
  if (fault) state.aside.push({ what: item, fault })
  if (conflict_id) state.conflicts[conflict_id] = { domain: item.domain, record_id: item.id }
  if (error || item.op === 'append' || version == null) return true
  const at = recordKey(item.domain, item.id)
  const held = state.records[at]?.sweep === state.sweep ? state.records[at] : { version: 0, data: null }
  if (status === 'applied' || status === 'unchanged') {
    const before = status === 'applied' ? version - 1 : version
    data = item.op !== 'patch' || held.version === before ? after(held.data, item) : undefined
  }
  if (data !== undefined) keep(state, at, version, data).at = item.at ?? undefined
  return data !== undefined || held.version >= version
}

/** Stores a version above the one held. @param {State} state @param {string} at @param {number} version @param {Data | null} data */
function keep(state, at, version, data) {
  const held = state.records[at]
  if (held?.sweep === state.sweep) return version > held.version ? Object.assign(held, { version, data }) : held
  return (state.records[at] = { version, data, sweep: state.sweep, at: held?.at, seq: 0, files: [] })
}

/**
 * Applies a page of the feed and stores its cursor. After a pull from the beginning, what it did not bring goes.
 * @param {State} state @param {Change[]} changes @param {string} cursor @param {boolean} more
 */
export function apply(state, changes, cursor, more) {
  for (const { domain, id, version, data, seq, attachments } of changes) {
    const held = keep(state, recordKey(domain, id), version, data)
    if (seq > held.seq) Object.assign(held, { seq, files: attachments ?? [] })
  }
  state.cursor = cursor
  if (more || !state.sweeping) return
  for (const [at, held] of Object.entries(state.records)) if (held.sweep < state.sweep) delete state.records[at]
  state.sweeping = false
}

/** Begins a pull from the beginning: the server's history has changed. @param {State} state */
export function startOver(state) {
  Object.assign(state, { cursor: null, sweeping: true, sweep: state.sweep + 1 })
  if (state.message) state.message.cursor = null
}
