// A store for device.js in a browser: the state in IndexedDB, which is replaced in one transaction. Files to send are Blobs.

/** @import { Store } from './device.js' */

const TABLE = 'device'

/** @param {string} name @returns {Store} */
export function browserStore(name) {
  const opened = database(name)
  let release = () => {}
  return {
    async load() {
      release = await alone(name)
      const read = (await opened).transaction(TABLE).objectStore(TABLE).get('state')
      return (await answered(read)) ?? null
    },
    async save(state) {
      const transaction = (await opened).transaction(TABLE, 'readwrite', { durability: 'strict' })
      transaction.objectStore(TABLE).put(state, 'state')
      await new Promise((done, failed) => {
        transaction.oncomplete = done
        transaction.onabort = () => failed(transaction.error)
      })
    },
    async open(source) {
      return source
    },
    async close() {
      ;(await opened).close()
      release()
    },
  }
}

/** The devices that this page has, or waits for. @type {Set<string>} */
const own = new Set()

/**
 * Waits until no other page has the device: two would overwrite each other. Returns what lets it go, as the end of the page does.
 * @param {string} name @returns {Promise<() => void>}
 */
function alone(name) {
  if (own.has(name)) throw new Error(`the device ${name} is open on this page: close() it before you open it again`)
  own.add(name)
  return new Promise((got) => {
    navigator.locks.request(`device ${name}`, () => new Promise((/** @type {(value?: any) => void} */ release) =>
      got(() => {
        own.delete(name)
        release()
      })))
  })
}

/** @param {string} name */
function database(name) {
  const request = indexedDB.open(name)
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE)
  return answered(request)
}

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
const answered = (request) =>
  new Promise((done, failed) => {
    request.onsuccess = () => done(request.result)
    request.onerror = () => failed(request.error)
  })
