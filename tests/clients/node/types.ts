// The types of docs/types/tidemark.d.ts take what the contract allows, and refuse what it does not. tsc runs over this file.
import type { ClientMessage, Http, ServerMessage, Sync } from '../../../docs/types/tidemark.d.ts'

export const sync: Sync = {
  type: 'sync', id: '7', key: '6f1c2a94',
  items: [{ domain: 'task', id: 'a1', op: 'patch', base: 3, data: { status: 'INPROGRESS', draft: null } }],
}
export const overHttp: Http.Sync = { type: 'sync', key: '6f1c2a94', items: [], clock: '2026-01-02T03:04:05Z' }

export function told(message: ServerMessage): string {
  switch (message.type) {
    case 'synced':
      return message.results.map((result) => result.error?.code ?? result.status).join()
    case 'changes':
      return message.changes.map((change) => change.attachments?.[0]?.filename ?? change.id).join()
    case 'conflicts':
      return message.conflicts.map((conflict) => conflict.client.op).join()
    case 'error':
      return message.code === 'conflict_stale' ? `${message.version}` : message.code
    default:
      return message.type
  }
}

// @ts-expect-error: a sync on a socket has an id
export const withoutId: Sync = { type: 'sync', key: 'k', items: [] }
// @ts-expect-error: there is no such op
export const withoutOp: Sync['items'][0] = { domain: 'task', id: 'a1', op: 'upsert' }
// @ts-expect-error: the server never sends a sync
export const fromServer: ServerMessage = sync
// @ts-expect-error: data is an object
export const ofText: Sync['items'][0] = { domain: 'task', id: 'a1', op: 'put', data: 'text' }
// @ts-expect-error: a base is a number
export const request: ClientMessage = { type: 'resolve', id: '1', conflict_id: 'c', choice: 'client', version: '4' }
