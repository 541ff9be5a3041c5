// One connection of device.js: what it says, and what it makes of the answers. All that lasts is in the device's state.

import { pause } from './http.js'
import { apply, begin, settle, startOver, takeBack } from './state.js'

/** @import { Changes, ErrorMessage, Item, Result, ServerMessage, Synced, Welcome } from '../types/tidemark.d.ts' */
/** @import { Fault, State } from './state.js' */
/**
 * What a connection uses of its device. `commit` runs a transaction; `welcomed` and `changed` are told what happened.
 * @typedef {object} Owner
 * @property {() => State} state
 * @property {<T>(change: (state: State) => T) => Promise<T>} commit
 * @property {string | undefined} app_version
 * @property {() => void} welcomed
 * @property {() => void} changed
 * @property {(item: Item, result: Result) => void} settled
 */

const CONNECT_MS = 15_000, CLOCK_SET_MS = 1000, BATCH_ITEMS = 100
const ahead = () => Date.now() - performance.now() // changes only if the clock is set

export class Connection {
  /** @type {Welcome | null} */ welcome = null
  live = false // the subscription is open: nothing of others is missing
  answered = false
  reason = '' // of a goodbye
  wait_ms = 0
  sentence = 'the connection was cut'
  /** Resolves with the close code. @type {Promise<number>} */ closed
  #socket
  #owner
  #server_time = ''
  #clock_ahead = 0
  #feed = '' // the id of the pull or the subscription
  #pushing = '' // the id of the sync that has no answer
  #beat = '' // the id of the heartbeat that has none
  #rests = 0 // times of silence that the server asked for and that are not over
  #broken = false
  #most = BATCH_ITEMS
  #number = 0
  #turns = Promise.resolve()
  #ended = new AbortController()
  /** @type {ReturnType<typeof setTimeout>} */ #timer
  /** @type {(code: number) => void} */ #close = () => {}

  /** @param {WebSocket} socket @param {Owner} owner */
  constructor(socket, owner) {
    this.#socket = socket
    this.#owner = owner
    this.#timer = setTimeout(() => this.end(), CONNECT_MS)
    this.closed = new Promise((done) => (this.#close = done))
    socket.onmessage = ({ data }) => this.#turn(() => this.#hear(JSON.parse(data)))
    socket.onclose = ({ code }) => this.#close(code)
    socket.onerror = () => {} // a close follows
  }

  /** Ends it from this side. A dead connection may take minutes to close: nobody waits for it. */
  end() {
    this.#socket.onmessage = null
    this.#socket.close()
    this.#close(1006)
  }

  /** Does what is left to do after the end. @param {number} code */
  async ended(code) {
    clearInterval(this.#timer)
    this.#ended.abort()
    await this.#turns
    if (code === 1009 && this.#pushing) await this.#takeBack({ code: 'too_large', message: 'no frame takes this' })
  }

  /** An edit was made. */
  edited() {
    this.#turn(() => {})
  }

  /**
   * Does one thing after the other, then sends what is due. After a failure it does nothing more: a later page must not move
   * the cursor past one that was not stored.
   * @param {() => unknown} task
   */
  #turn(task) {
    this.#turns = this.#turns.then(async () => {
      if (this.#broken) return
      try {
        await task()
        await this.#go()
        this.#owner.changed()
      } catch (error) {
        this.#broken = true
        this.sentence = String(error)
        this.end()
      }
    })
  }

  /** @param {string} type @param {object} fields @param {string} [id] */
  #send(type, fields, id = `${++this.#number}`) {
    this.#socket.send(JSON.stringify({ type, id, ...fields }))
    return id
  }

  /** Processes a message. Types that a later server adds are ignored. @param {ServerMessage} message */
  async #hear(message) {
    switch (message.type) {
      case 'welcome':
        clearTimeout(this.#timer)
        this.#timer = setInterval(() => this.#turn(() => this.#heartbeat()), message.heartbeat_s * 1000)
        this.welcome = message
        this.#server_time = message.server_time
        this.#hello()
        return this.#owner.welcomed()
      case 'synced':
        return message.id === this.#pushing && this.#synced(message)
      case 'changes':
        return message.id === this.#feed && this.#page(message)
      case 'heartbeat_ack':
        this.#beat = ''
        this.#server_time = message.server_time
        return
      case 'goodbye':
        this.reason = message.reason
        this.wait_ms = message.retry_after_ms
        return
      case 'error':
        return this.#failed(message)
    }
  }

  async #go() {
    const { welcome } = this
    if (!welcome || this.reason || this.#rests) return
    if (Math.abs(ahead() - this.#clock_ahead) > CLOCK_SET_MS) this.#hello()
    if (!this.#feed) this.#feed = this.#send('pull', { cursor: this.#owner.state().cursor })
    if (this.#pushing || !this.#owner.state().outbox.length) return
    if (!this.#owner.state().message) await this.#owner.commit((state) => begin(state, this.#most, welcome.limits))
    const { message, outbox } = this.#owner.state()
    if (!message) return
    this.#pushing = `${++this.#number}`
    const items = outbox.slice(0, message.count).join(',') // as it was stored: a retry has the same bytes
    this.#socket.send(`{"type":"sync","id":"${this.#pushing}","key":${JSON.stringify(message.key)},"items":[${items}]}`)
  }

  /** Introduces the device. By its clock the server corrects the times of edits. */
  #hello() {
    this.#clock_ahead = ahead()
    const clock = new Date().toISOString(), { app_version } = this.#owner
    this.#socket.send(JSON.stringify({ type: 'hello', app_version, clock, server_time: this.#server_time }))
  }

  /** Sends a heartbeat. If the last one has no answer, the connection broke without a word. */
  #heartbeat() {
    if (this.#beat) return this.end()
    this.#beat = this.#send('heartbeat', { queue_depth: this.#owner.state().outbox.length })
  }

  /** @param {Synced} answer */
  async #synced({ results }) {
    const { items, known } = await this.#owner.commit((state) => settle(state, results))
    this.#pushing = ''
    this.answered = true
    this.#most = Math.min(BATCH_ITEMS, 2 * this.#most)
    for (const [index, item] of items.entries()) this.#owner.settled(item, results[index])
    if (known) return
    if (this.live) this.#send('unsubscribe', {}, this.#feed)
    this.live = false
    this.#feed = '' // pull from the cursor of before the message
  }

  /** @param {Changes} page */
  async #page({ changes, cursor, more }) {
    await this.#owner.commit((state) => apply(state, changes, cursor, more))
    this.answered = true
    if (this.live) return
    this.live = !more
    this.#feed = this.#send(more ? 'pull' : 'subscribe', { cursor })
  }

  /** @param {ErrorMessage} error */
  async #failed({ id, code, message, retryable, retry_after_ms = 1000 }) {
    if (!this.welcome) {
      this.sentence = message
      this.wait_ms = retry_after_ms
    } else if (id && id === this.#beat) {
      this.#beat = ''
    } else if (id && id === this.#feed) {
      this.live = false
      this.#feed = ''
      if (code === 'cursor_expired') await this.#owner.commit(startOver)
      else if (retryable) this.#rest(retry_after_ms)
      else throw new Error(message)
    } else if (this.#pushing && (id ? id === this.#pushing : retryable || code === 'malformed')) {
      // Of another error without an id a hello is to blame, which has none.
      this.#pushing = ''
      if (retryable) this.#rest(retry_after_ms)
      else await this.#takeBack({ code, message })
    }
  }

  /** Sends nothing for a time. Of two such times the later end counts. @param {number} ms */
  #rest(ms) {
    this.#rests += 1
    pause(ms, this.#ended.signal).then(() => {
      this.#rests -= 1
      if (!this.#ended.signal.aborted) this.#turn(() => {})
    })
  }

  /** Halves a message that can never succeed, down to the edit that is what is wrong. @param {Fault} fault */
  #takeBack(fault) {
    this.#most = Math.max(1, Math.floor((this.#owner.state().message?.count ?? 1) / 2))
    return this.#owner.commit((state) => takeBack(state, fault))
  }
}
