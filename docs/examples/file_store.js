// A store for device.js in Node.js: the state in one file, which is replaced as a whole. Files to send are given by path.

import { webcrypto } from 'node:crypto'
import { open, readFile, rename } from 'node:fs/promises'
import { dirname } from 'node:path'

/** @import { State } from './state.js' */
/** @import { Store } from './device.js' */

globalThis.crypto ??= /** @type {any} */ (webcrypto) // Node.js 18 has no global one

/** @param {string} path @returns {Store} */
export const fileStore = (path) => ({
  async load() {
    try {
      return JSON.parse(await readFile(path, 'utf8'))
    } catch (error) {
      if (/** @type {NodeJS.ErrnoException} */ (error).code === 'ENOENT') return null
      throw error
    }
  },
  async save(state) {
    await flushed(`${path}.new`, (file) => file.writeFile(JSON.stringify(state)), 'w')
    await rename(`${path}.new`, path)
    await flushed(dirname(path), async () => {}, 'r') // the new name is on disk, too
  },
  async open(source) {
    return new Blob([await readFile(source)])
  },
  async close() {},
})

/** @param {string} path @param {(file: import('node:fs/promises').FileHandle) => Promise<void>} task @param {string} mode */
async function flushed(path, task, mode) {
  const file = await open(path, mode)
  try {
    await task(file)
    await file.sync()
  } finally {
    await file.close()
  }
}
