// A store for device.js in a browser: the state in IndexedDB, which is replaced in one transaction. Files to send are Blobs.

/** @import { Store } from './device.js' */

const TABLE = 'device'

/** @param {string} name @returns {Store} */
export function browserStore(name) {
  const opened = database(name)
  return {
    async load() {
      await alone(name)
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
  }
}

/** Waits until no other page has the device, and keeps it until this page goes: two would overwrite each other. @param {string} name */
const alone = (name) =>
  new Promise((got) => {
    navigator.locks.request(`device ${name}`, () => {
      got(null)
      return new Promise(() => {})
    })
  })

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
