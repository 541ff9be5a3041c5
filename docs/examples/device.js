// A device for browsers and for Node.js 18 or later. It stores each edit before it shows it. The server applies each edit
// once and in order, whatever is cut or killed. docs/device-guide.md has the reason for each step.
//
//   const device = await Device.open({ server, token: async (refused) => '…', store: fileStore('phone.json'), WebSocket })
//   await device.edit('task', crypto.randomUUID(), 'put', { title: 'Inspect pump 3' })
//   device.start().catch((stopped) => alert(stopped.message)) // until device.stop()
//
// state.js has what it keeps, connection.js its side of the protocol, http.js requests and files. Each transaction writes the
// whole state, which suits some thousand records. For more, keep records in a table of IndexedDB or SQLite.

import { Connection } from './connection.js'
import { Backoff, Refused, download, patiently, pause, requests, upload } from './http.js'
import { after, checked, emptyState, recordKey, waiting, write } from './state.js'

/** @import { Attachment, Data, Http, Item, OpenConflict, Result } from '../types/tidemark.d.ts' */
/** @import { Fault, State } from './state.js' */
/**
 * Where a device keeps its state. `save` replaces it as a whole or not at all, and returns once it is on disk. `open` gives
 * the bytes of a file that is to be sent. `close` lets another device open the store.
 * @typedef {{ load(): Promise<State | null>, save(state: State): Promise<void>, open(source: any): Promise<Blob>, close(): Promise<void> }} Store
 */
/** @typedef {{ type: 'changed' } | { type: 'settled', item: Item, result: Result }} Happened */
/**
 * `token` signs in. It gets true if the server refused the token before. `WebSocket` is needed where none is global.
 * @typedef {{ server: string, token: (refused: boolean) => Promise<string>, store: Store, app_version?: string, WebSocket?: any, on?: (happened: Happened) => void }} Options
 */
/** @typedef {'again' | 'token' | 'quiet' | 'once' | 'stop'} Remedy */
/** @typedef {{ remedy: Remedy, sentence: string, wait_ms: number, greeted: boolean, answered: boolean }} End */

const QUIET_MS = 60_000, ONCE_MS = 600_000, ASK_MS = 15_000
/** @type {Record<string, Remedy>} */
const BY_REASON = { replaced: 'once', revoked: 'stop', expired: 'token' }
/** @type {Record<number, Remedy>} */
const BY_CODE = { 4401: 'token', 4408: 'again', 4409: 'once', 4429: 'quiet' }
/** @type {Record<number, Remedy>} */
const BY_STATUS = { 401: 'token', 403: 'stop', 422: 'stop' }

/** Connecting again by itself cannot help. The edits are kept: tell the user. */
export class Stopped extends Error {}

/** One device: edits at any time, and a connection from `start` to `stop`. */
export class Device {
  #options
  /** @type {State} */ #state
  #http
  /** @type {Connection | null} */ #connection = null
  #abort = new AbortController()
  #last = Promise.resolve()
  /** @type {(() => void)[]} */ #watchers = []
  /** @type {Promise<void> | null} */ #running = null
  /** @type {Promise<void> | null} */ #sending = null

  /** @param {Options} options @param {State} state */
  constructor(options, state) {
    this.#options = options
    this.#state = state
    this.#http = requests(options)
  }

  /** @param {Options} options */
  static async open(options) {
    return new Device(options, { ...emptyState(), ...(await options.store.load()) }) // an older version had less
  }

  /** All that the device keeps, to be read only. */
  get state() {
    return this.#state
  }

  // -- what the app does --------------------------------------------------------------------

  /**
   * Stores an edit. `changed` names the fields that a put changed.
   * @param {string} domain @param {string} id @param {Item['op']} op @param {Data} [data] @param {string[]} [changed]
   */
  async edit(domain, id, op, data, changed) {
    await this.#commit((state) => write(state, { domain, id, op, data, changed }))
    this.#connection?.edited()
  }

  /** Shows a record: the server's, with the waiting edits on top. @param {string} domain @param {string} id */
  record(domain, id) {
    const held = this.#state.records[recordKey(domain, id)], edits = waiting(this.#state, domain, id)
    const data = edits.reduce(after, held?.data ?? null)
    return { version: held?.version ?? null, data, pending: edits.length, files: held?.files ?? [] }
  }

  /** Queues a file of a record. @param {string} domain @param {string} record_id @param {any} source @param {string} filename @param {string} filetype */
  async attach(domain, record_id, source, filename, filetype) {
    await this.#commit((state) => state.files.push({ domain, record_id, source, filename, filetype, url: '' }))
    if (this.#connection?.welcome) this.#sendFiles()
  }

  /** Downloads a file of a record. @param {Attachment} file @param {AbortSignal} [signal] */
  download(file, signal) {
    return download(this.#http, file, signal)
  }

  /** Removes what the user has seen of the edits and files that were set aside. @param {number} count */
  dismiss(count) {
    return this.#commit(({ aside }) => void aside.splice(0, count))
  }

  /** Lists the open conflicts. Trust this list: those that are not in it are settled. @returns {Promise<OpenConflict[]>} */
  async conflicts() {
    const before = Object.keys(this.#state.conflicts)
    /** @type {OpenConflict[]} */
    const found = []
    for (let after = /** @type {string | null} */ (''); after !== null; ) {
      /** @type {Http.ConflictList} */
      const page = await this.#http(`/v1/conflicts?after=${encodeURIComponent(after)}`, {}, (response) => response.json())
      found.push(...page.conflicts)
      after = page.after
    }
    await this.#commit(({ conflicts }) => {
      for (const id of before) delete conflicts[id]
      for (const { conflict_id, domain, record_id } of found) conflicts[conflict_id] = { domain, record_id }
    })
    return found
  }

  /**
   * Settles a conflict as a person decided who saw both sides. Returns false if it has changed since: list and ask again.
   * @param {OpenConflict} shown @param {'server' | 'client' | 'merged'} choice @param {Data} [data]
   */
  async resolve({ conflict_id, server, client }, choice, data) {
    const body = JSON.stringify({ choice, data, version: server.version, changes: client.changes }, checked)
    const init = { method: 'POST', headers: { 'Content-Type': 'application/json' }, body }
    try {
      await this.#http(`/v1/conflicts/${conflict_id}/resolution`, init)
    } catch (refusal) {
      const code = refusal instanceof Refused ? refusal.error.code : ''
      if (code === 'conflict_stale') return false
      if (code !== 'conflict_closed' && code !== 'not_found') throw refusal
    }
    await this.#commit((state) => delete state.conflicts[conflict_id])
    return true
  }

  /** Waits until every edit and file is answered, and all that others did is applied. */
  async settled() {
    while (!this.#connection?.live || this.#state.outbox.length || this.#state.files.length) {
      await new Promise((/** @type {(value?: any) => void} */ done) => this.#watchers.push(done))
    }
  }

  // -- the connection -----------------------------------------------------------------------

  /** Stays connected until `stop`. Throws Stopped if connecting again cannot help. */
  start() {
    this.#abort = new AbortController()
    return (this.#running = this.#run(this.#abort.signal))
  }

  /** Goes offline, whatever is under way. */
  async stop() {
    this.#abort.abort()
    this.#connection?.end()
    await Promise.allSettled([this.#running, this.#sending])
  }

  /** Goes offline for good: a new device may be opened on the store. Make no edit after it. */
  async close() {
    await this.stop()
    await this.#last
    await this.#options.store.close()
  }

  /** @param {AbortSignal} signal */
  async #run(signal) {
    const backoff = new Backoff()
    for (let refused = false, once_ms = -ONCE_MS; ; ) {
      const end = await this.#connect(refused, signal), once = end.remedy === 'once'
      if (signal.aborted) return
      if (once && performance.now() - once_ms < ONCE_MS) throw new Stopped(end.sentence) // a second copy of this device
      if (once) once_ms = performance.now()
      if (end.remedy === 'stop' || (end.remedy === 'token' && refused && !end.greeted)) throw new Stopped(end.sentence)
      if (end.answered) backoff.worked()
      refused = end.remedy === 'token'
      await pause(end.wait_ms + backoff.next() + (end.remedy === 'quiet' ? QUIET_MS : 0), signal)
      if (signal.aborted) return
    }
  }

  /** Connects, and says how the connection ended. @param {boolean} refused @param {AbortSignal} signal @returns {Promise<End>} */
  async #connect(refused, signal) {
    const end = { remedy: /** @type {Remedy} */ ('again'), sentence: '', wait_ms: 0, greeted: false, answered: false }
    try {
      const token = await this.#options.token(refused)
      if (signal.aborted) return end
      const Socket = this.#options.WebSocket ?? globalThis.WebSocket
      const url = `${this.#options.server.replace(/^http/, 'ws')}/v1/sync`
      const socket = new Socket(url, ['tidemark.v1.json', `bearer.${token}`])
      const connection = (this.#connection = new Connection(socket, this.#owner()))
      const code = await connection.closed
      this.#connection = null
      await connection.ended(code)
      const { answered, sentence, wait_ms, reason, welcome } = connection
      Object.assign(end, { answered, sentence, wait_ms, greeted: welcome !== null })
      end.remedy = BY_REASON[reason] ?? BY_CODE[code] ?? (code >= 4400 && code < 4500 ? 'stop' : 'again')
      // A browser does not say why a handshake was refused. The same token over HTTP is refused in the same way.
      const ask = requests({ ...this.#options, token: async () => token })
      if (!end.greeted && code === 1006) await Promise.race([ask('/v1/domains'), pause(ASK_MS, signal)])
    } catch (error) {
      end.sentence = String(error)
      if (error instanceof Refused) {
        end.remedy = BY_STATUS[error.status] ?? 'again'
        end.wait_ms = error.error.retry_after_ms ?? 0
      }
    }
    return end
  }

  /** @returns {import('./connection.js').Owner} */
  #owner() {
    return {
      state: () => this.#state,
      commit: (change) => this.#commit(change),
      app_version: this.#options.app_version,
      welcomed: () => this.#sendFiles(),
      changed: () => this.#happened({ type: 'changed' }),
      settled: (item, result) => this.#happened({ type: 'settled', item, result }),
    }
  }

  /** Sends the files one after the other, apart from the messages. A failure leaves them for the next connection. */
  #sendFiles() {
    const { signal } = this.#abort
    const send = async () => {
      while (this.#state.files.length && !signal.aborted) await patiently(() => this.#sendFile(signal), signal)
    }
    this.#sending ??= send().catch(() => {}).finally(() => (this.#sending = null))
  }

  /** @param {AbortSignal} signal */
  async #sendFile(signal) {
    const [file] = this.#state.files
    const setAside = (/** @type {Fault} */ fault) =>
      this.#commit(({ files, aside }) => aside.push({ what: files.splice(0, 1)[0], fault }))
    const blob = await this.#options.store.open(file.source).catch(() => null)
    if (!blob) return setAside({ code: 'unreadable', message: 'the file is not there any more' })
    try {
      const begun = (/** @type {string} */ url) => this.#commit(({ files }) => (files[0].url = url))
      await upload((path, init, read) => this.#http(path, { ...init, signal }, read), blob, file, begun)
      await this.#commit(({ files }) => files.shift())
    } catch (error) {
      if (!(error instanceof Refused) || error.isRetryable || error.isOfToken) throw error
      const gone = error.status === 404 || error.status === 410
      await (gone ? this.#commit(({ files }) => (files[0].url = '')) : setAside(error.error))
    }
    this.#happened({ type: 'changed' })
  }

  // -- the store ----------------------------------------------------------------------------

  /**
   * Runs a transaction: `change` gets a copy of the state, which counts once it is on disk.
   * @template T @param {(state: State) => T} change @returns {Promise<T>}
   */
  #commit(change) {
    const run = this.#last.then(async () => {
      const state = structuredClone(this.#state), value = change(state)
      await this.#options.store.save(state)
      this.#state = state
      return value
    })
    this.#last = run.then(() => {}, () => {})
    return run
  }

  /** @param {Happened} happened */
  #happened(happened) {
    try {
      this.#options.on?.(happened)
    } catch (error) {
      console.error(error) // a fault of the app costs no connection
    }
    for (const watcher of this.#watchers.splice(0)) watcher()
  }
}
