// Requests over HTTP, with their retries, and files by tus 1.0.0, in pieces that survive any cut.

/** @import { Attachment, ErrorMessage } from '../types/tidemark.d.ts' */
/** @import { Outgoing } from './state.js' */
/**
 * Sends a request. `read` takes the answer, and calls `heard` with each part of it that has come. Without `read` the answer's
 * head is all that is returned.
 * @typedef {<T = Response>(path: string, init?: RequestInit, read?: (response: Response, heard: () => void) => Promise<T>) => Promise<T>} Http
 */
/** @typedef {{ server: string, token: (refused: boolean) => Promise<string> }} Access */

const CHUNK_BYTES = 262_144
// A browser waits for ever on a line that broke without a word. A chunk gets through in this time at 2.2 KB/s; of a slower
// line the server keeps what came.
const SILENCE_MS = 120_000
/** @type {Record<number, string>} */
const WITHOUT_BODY = { 404: 'not_found', 409: 'offset_mismatch', 410: 'upload_gone' }

/** The server refused a request. */
export class Refused extends Error {
  /** @param {number} status @param {ErrorMessage} error */
  constructor(status, error) {
    super(error.message)
    this.status = status
    this.error = error
    this.isRetryable = error.retryable || error.code === 'offset_mismatch' // ask for the offset again
    this.isOfToken = status === 401 || status === 403
  }
}

/** Waits, unless the signal comes first. @param {number} ms @param {AbortSignal} [signal] @returns {Promise<void>} */
export const pause = (ms, signal) =>
  new Promise((done) => {
    const timer = setTimeout(end, ms)
    signal?.addEventListener('abort', end)
    function end() {
      clearTimeout(timer)
      signal?.removeEventListener('abort', end)
      done()
    }
  })

/** Random waits up to a bound that doubles, so that devices that were cut off together do not come back together. */
export class Backoff {
  #bound = 500

  next() {
    const wait = Math.random() * this.#bound
    this.#bound = Math.min(60_000, 2 * this.#bound)
    return wait
  }

  worked() {
    this.#bound = 500
  }
}

/** Sends requests with a token, and once more with a fresh one. @param {Access} access @returns {Http} */
export const requests = ({ server, token }) => async (path, init = {}, read = async (response) => /** @type {any} */ (response)) => {
  for (let refused = false; ; refused = true) {
    const headers = { ...init.headers, Authorization: `Bearer ${await token(refused)}` }
    const answer = await whileHeard(init.signal, async (signal, heard) => {
      const response = await fetch(server + path, { ...init, headers, signal })
      heard()
      if (response.ok) return { value: await read(response, heard) }
      if (response.status === 401 && !refused) return null
      const body = await response.json().catch(() => null)
      throw new Refused(response.status, body?.type === 'error' ? body : withoutBody(response))
    })
    if (answer) return answer.value
  }
}

/**
 * Runs a task with a signal, which ends it with the outer one, and with a TimeoutError if nothing is heard for a time.
 * @template T @param {AbortSignal | null | undefined} outer
 * @param {(signal: AbortSignal, heard: () => void) => Promise<T>} task @returns {Promise<T>}
 */
async function whileHeard(outer, task) {
  const ended = new AbortController()
  const late = () => ended.abort(new DOMException(`nothing came for ${SILENCE_MS} ms`, 'TimeoutError'))
  const stop = () => ended.abort(outer?.reason)
  const heard = () => {
    clearTimeout(timer)
    timer = setTimeout(late, SILENCE_MS)
  }
  let timer = setTimeout(late, SILENCE_MS)
  outer?.addEventListener('abort', stop)
  if (outer?.aborted) stop()
  try {
    return await task(ended.signal, heard)
  } finally {
    clearTimeout(timer)
    outer?.removeEventListener('abort', stop)
  }
}

/** Makes the error of an answer that has none: to HEAD, and of a proxy. @param {Response} response @returns {ErrorMessage} */
function withoutBody({ status, headers }) {
  const retry_after_ms = 1000 * (Number(headers.get('Retry-After')) || 1)
  const retryable = status === 408 || status === 423 || status === 429 || status >= 500
  return { type: 'error', code: WITHOUT_BODY[status] ?? `http_${status}`, message: `HTTP ${status}`, retryable, retry_after_ms }
}

/** Repeats what may succeed later. @template T @param {() => Promise<T>} task @param {AbortSignal} [signal] @returns {Promise<T>} */
export async function patiently(task, signal) {
  for (const backoff = new Backoff(); ; ) {
    try {
      return await task()
    } catch (error) {
      const refused = error instanceof Refused, silent = error instanceof DOMException && error.name === 'TimeoutError'
      const again = refused ? error.isRetryable : silent || error instanceof TypeError // TypeError: no network
      if (signal?.aborted || !again) throw error
      await pause((refused ? (error.error.retry_after_ms ?? 0) : 0) + backoff.next(), signal)
    }
  }
}

const hex = (/** @type {ArrayBuffer} */ digest) =>
  Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('')
export const sha256 = async (/** @type {Blob} */ blob) => hex(await crypto.subtle.digest('SHA-256', await blob.arrayBuffer()))
const base64 = (/** @type {string} */ text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)))

/**
 * Sends a file from where its upload stands; `begun` stores the address of a new upload.
 * @param {Http} http @param {Blob} blob @param {Outgoing} file @param {(url: string) => Promise<unknown>} begun
 */
export async function upload(http, blob, { domain, record_id, filename, filetype, url }, begun) {
  /** @param {string} method @param {string} path @param {Record<string, string>} [headers] @param {Blob} [body] */
  const tus = (method, path, headers, body) =>
    http(path, { method, headers: { 'Tus-Resumable': '1.0.0', ...headers }, body })
  if (!url) {
    const told = { filename, filetype, domain, record_id, sha256: await sha256(blob) }
    const metadata = Object.entries(told).map(([name, value]) => `${name} ${base64(value)}`).join(',')
    const headers = { 'Upload-Length': `${blob.size}`, 'Upload-Metadata': metadata }
    const response = await tus('POST', '/v1/uploads', headers)
    url = response.headers.get('Location') ?? ''
    await begun(url)
  }
  const head = await tus('HEAD', url)
  for (let offset = Number(head.headers.get('Upload-Offset')); offset < blob.size; ) {
    const headers = { 'Upload-Offset': `${offset}`, 'Content-Type': 'application/offset+octet-stream' }
    const response = await tus('PATCH', url, headers, blob.slice(offset, offset + CHUNK_BYTES))
    offset = Number(response.headers.get('Upload-Offset'))
  }
}

/**
 * Gets a file, the rest of it by Range after a cut, and compares its SHA-256.
 * @param {Http} http @param {Attachment} file @param {AbortSignal} [signal]
 */
export async function download(http, file, signal) {
  /** @type {Uint8Array<ArrayBuffer>[]} */
  const parts = []
  let have = 0
  await patiently(async () => {
    if (have && have === file.size_bytes) return
    const headers = have ? { Range: `bytes=${have}-`, 'If-Range': `"${file.sha256}"` } : undefined
    await http(`/v1/files/${file.file_id}`, { headers, signal }, async (response, heard) => {
      if (response.status !== 206) have = parts.length = 0
      const reader = response.body?.getReader()
      for (let read = await reader?.read(); read?.value; read = await reader?.read()) {
        heard()
        parts.push(read.value)
        have += read.value.length
      }
    })
  }, signal)
  const blob = new Blob(parts, { type: file.filetype })
  if ((await sha256(blob)) !== file.sha256) throw new Error(`${file.file_id} arrived damaged: download it again`)
  return blob
}
