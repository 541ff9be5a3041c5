// `python -m docs.generate` makes this file from the messages in engine/wire/messages.py.
//
// Types of all messages of the wire contract, version 1 (docs/protocol.md). A later server may add
// optional fields, types of messages and codes of errors: ignore those that you do not know.

/** A value of JSON. Numbers are exact up to 2^53 only: store longer ones as text. */
export type Json = string | number | boolean | null | Json[] | { [name: string]: Json }
/** The content of a record or an event. */
export type Data = { [name: string]: Json }
/** An instant: RFC 3339 text with an offset, such as `2026-01-02T03:04:05.290173Z`. */
export type Instant = string

/** A file of a record. It is read at `/v1/files/{file_id}`. `device_id` sent it at `at`. */
export interface Attachment {
  /** The file, to be read at `/v1/files/{file_id}`. */
  file_id: string
  /** The name to show. Several files may have one name. */
  filename: string
  /** The media type, as the content shows it. */
  filetype: string
  /** The size. */
  size_bytes: number
  /** The SHA-256 of the content in hex digits. */
  sha256: string
  /** The device that made it; null if no device did. */
  device_id: string
  /** When the file was sent. */
  at: Instant
}

/**
 * One version of a record in the feed. `data` is null for a tombstone. `attachments` is an array of `Attachment`, left
 * out if the record has none.
 */
export interface Change {
  /** The kind of data. */
  domain: string
  /** The record. */
  id: string
  /** The record's version. */
  version: number
  /** The number of the change in its tenant. */
  seq: number
  /** True for a tombstone. */
  deleted: boolean
  /** When the change was made, as corrected by the server. Sort by `seq`, not by this. */
  at: Instant
  /** The device that made it; null if no device did. */
  device_id: string | null
  /** The record. Null: it is deleted. */
  data: Data | null
  /** All files of the record; missing if it has none. */
  attachments?: Attachment[]
}

/**
 * A page of the feed, in answer to `pull` and `subscribe`. `more`: another page follows now. `unknown_domains` are the
 * domains of the request that hold no records.
 */
export interface Changes {
  type: 'changes'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** The place in the feed after this page. Store it in one transaction with the page. */
  cursor: string
  /** True if another page follows now. */
  more: boolean
  /** The changes, in ascending order of `seq`. */
  changes: Change[]
  /** The names in `domains` that hold no records. */
  unknown_domains?: string[]
}

/**
 * The device's changes. `data` is the record if they win. `base` is that of the first change, `at` that of the last,
 * `changes` their number.
 */
export interface ClientSide {
  /** The base of the first change that still counts. */
  base: number | null
  /** The time of the last change. */
  at: Instant
  /** The device that made it; null if no device did. */
  device_id: string
  /** The record if the device's side wins; null for a delete. */
  data: Data | null
  /** The operation that has the same effect as all changes of the device. */
  op: 'delete' | 'patch' | 'put'
  /** How many changes of the device the conflict has. */
  changes: number
}

/** Answer to `conflicts`. `after` continues the list; null at its end. */
export interface ConflictList {
  type: 'conflicts'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** The open conflicts, oldest first. */
  conflicts: OpenConflict[]
  /** Ask again with this value; null at the end of the list. */
  after: string | null
}

/** Ask for open conflicts, oldest first. */
export interface Conflicts {
  type: 'conflicts'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** The most entries of a page. */
  limit?: number
  /** The `after` of the page before. */
  after?: string | null
}

/**
 * The rules of one domain. Event domains have no fields about conflicts. `status` maps each declared value to the
 * values that may follow it.
 */
export interface DomainInfo {
  /** What the domain holds: records, which change, or events, which are only added. */
  kind: 'event' | 'record'
  /** The fields that must be present and not null. */
  required: string[]
  /** For each declared value of `status` the values that are one step away. Empty: any value is allowed. */
  status: { [name: string]: string[] }
  /** The policy that decides conflicts. */
  policy?: 'client_wins' | 'field_merge' | 'manual' | 'most_recent_wins' | 'preserve_escalation' | 'server_wins'
  /** Under `field_merge`: what decides when both sides changed a field. */
  fallback?: 'client_wins' | 'manual' | 'most_recent_wins' | 'preserve_escalation' | 'server_wins'
  /** Under `preserve_escalation`: the fields that keep the server's values. */
  server_owned?: string[]
}

/** Answer to `GET /v1/domains`: the rules of each domain by its name. */
export interface DomainList {
  type: 'domains'
  /** The rules of each domain, by its name. */
  domains: { [name: string]: DomainInfo }
}

/**
 * A message was refused as a whole. `version`, `changes` and `data` are the server's record and the count of the
 * device's changes, for `conflict_stale`. `offset` is where an upload stands, for `offset_mismatch`. `error_id` is in
 * the server's log, for `internal`.
 */
export interface ErrorMessage {
  type: 'error'
  /** The `id` of the request; missing if it could not be read. */
  id?: string
  /** Stable. A later server may add codes: judge one that is not known by `retryable`. */
  code:
    | 'checksum_mismatch'
    | 'conflict_closed'
    | 'conflict_stale'
    | 'cursor_expired'
    | 'forbidden'
    | 'idempotency_key_reused'
    | 'inconsistent_length'
    | 'insufficient_storage'
    | 'internal'
    | 'invalid_message'
    | 'locked'
    | 'malformed'
    | 'method_not_allowed'
    | 'not_found'
    | 'offset_mismatch'
    | 'overloaded'
    | 'quota_exceeded'
    | 'rate_limited'
    | 'too_large'
    | 'unauthenticated'
    | 'unavailable'
    | 'unknown_type'
    | 'unsupported_checksum'
    | 'unsupported_type'
    | 'unsupported_version'
    | 'upload_complete'
    | 'upload_gone'
    | (string & {})
  /** A sentence for a person. */
  message: string
  /** True if the same message may succeed later. */
  retryable: boolean
  /** When to come back. */
  retry_after_ms?: number
  /** The record's version. */
  version?: number
  /** How many changes of the device the conflict has. */
  changes?: number
  /** The record. Null: it is deleted. */
  data?: Data | null
  /** With `offset_mismatch`: how many bytes of the upload the server has. */
  offset?: number
  /** With `internal`: the server's log has the cause under this id. */
  error_id?: string
}

/** The server is about to close the connection. */
export interface Goodbye {
  type: 'goodbye'
  /** Why the connection is about to close. */
  reason: 'drain' | 'expired' | 'idle' | 'replaced' | 'restart' | 'revoked'
  /** When to come back. */
  retry_after_ms: number
}

/**
 * The device is alive, and some facts about it. `battery` is 0 to 1. A negative `battery` or `storage_free_mb` counts
 * as missing: Android and iOS use -1 for an unknown value. `clock` and `server_time` are as in `hello`.
 */
export interface Heartbeat {
  type: 'heartbeat'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** How many changes wait on the device. */
  queue_depth?: number | null
  /** The charge, 0 to 1. A negative value counts as missing. */
  battery?: number | null
  /** The kind of network, such as `4g`. */
  network?: string | null
  /** The free storage in megabytes. A negative value counts as missing. */
  storage_free_mb?: number | null
  /** The version of the app. */
  app_version?: string | null
  /** The operating system and its version. */
  os_version?: string | null
  /** The device's own time at the moment of sending. By it the server corrects the `at` of items. */
  clock?: Instant | null
  /** As in `hello`. Send it together with `clock`. */
  server_time?: Instant | null
}

/** Answer to `heartbeat`. `health_score` is 0 to 100. */
export interface HeartbeatAck {
  type: 'heartbeat_ack'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** The server's time. */
  server_time: Instant
  /** 0 to 100: how well the device syncs. */
  health_score: number
}

/**
 * A device introduces itself. There is no answer. `server_time` is the latest that the device had got on the connection
 * when it read its `clock`.
 */
export interface Hello {
  type: 'hello'
  /** The version of the app. */
  app_version?: string | null
  /** The operating system and its version. */
  os_version?: string | null
  /** The device's own time at the moment of sending. By it the server corrects the `at` of items. */
  clock?: Instant | null
  /** The latest `server_time` that the device had got when it read its `clock`. */
  server_time?: Instant | null
}

/** One change of a `sync`. */
export interface Item {
  /** The kind of data. */
  domain: string
  /** The record or event, as its device named it. Control characters are not allowed. */
  id: string
  /** `put`: the whole record. `patch`: an RFC 7396 merge patch. `delete`: a tombstone. `append`: an event. */
  op: 'append' | 'delete' | 'patch' | 'put'
  /** The version that the device changed; null or missing if it knew of no version. */
  base?: number | null
  /** When the change was made, by the device's own clock. An event must have it. */
  at?: Instant | null
  /** The record, the patch or the event. A `delete` has none. */
  data?: Data | null
  /** The top-level fields that a `put` changed, for domains that are merged by field. */
  changed?: string[] | null
}

/** Why one item was rejected. */
export interface ItemError {
  /** Stable. Do not send the same item again: it never succeeds. */
  code:
    | 'batch_aborted'
    | 'creation_rejected'
    | 'invalid_item'
    | 'too_large'
    | 'unknown_base'
    | 'unknown_domain'
    | (string & {})
  /** A sentence for a person. */
  message: string
}

/** The limits of a device. */
export interface Limits {
  /** The most bytes of a message. */
  frame_bytes: number
  /** The most items of a `sync`. */
  items: number
  /** The most bytes of a record or an event. */
  record_bytes: number
  /** The most messages of a device in a minute. */
  messages_per_minute: number
}

/** One conflict that waits for a person. */
export interface OpenConflict {
  /** The conflict. */
  conflict_id: string
  /** The kind of data. */
  domain: string
  /** The record. */
  record_id: string
  /** The policy that decides conflicts. */
  policy: string
  /** The server's record now. */
  server: ServerSide
  /** The device's side. */
  client: ClientSide
  /** When the conflict was opened. */
  opened_at: Instant
}

/** A policy of the tenant changed. */
export interface PoliciesChanged {
  type: 'policies'
  /** Each domain of records with the policy that decides its conflicts. */
  policies: { [name: string]: string }
}

/** Ask for one page of the feed. `domains` is checked with the cursor. */
export interface Pull {
  type: 'pull'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** Where the page begins: the cursor of the page before. Null: the beginning. */
  cursor?: string | null
  /** The domains that are wanted; null for all. */
  domains?: string[] | null
  /** The most entries of a page. */
  limit?: number
}

/** Settle a conflict. `version` and `changes` are those that the decision was made on. */
export interface Resolve {
  type: 'resolve'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** The conflict. */
  conflict_id: string
  /** Whose side wins. */
  choice: 'client' | 'merged' | 'server'
  /** The server's version that the person saw. */
  version: number
  /** With the choice `merged`: the record. */
  data?: Data | null
  /** How many changes of the device the person saw. */
  changes?: number | null
}

/** Answer to `resolve`. */
export interface Resolved {
  type: 'resolved'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** The conflict. */
  conflict_id: string
  /** The record's version. */
  version: number
  /** The number of the change in its tenant. */
  seq: number
}

/**
 * The result of one item. Fields that do not apply are left out. `domain` and `id` are those of the item, null if it
 * had none.
 */
export interface Result {
  /** The `domain` of the item; null if it had none. */
  domain: string | null
  /** The `id` of the item; null if it had none. */
  id: string | null
  /** What became of the item. */
  status: 'applied' | 'conflict' | 'rejected' | 'resolved' | 'unchanged'
  /** With `resolved`: the side that won. `server`: nothing of the item was stored. */
  winner?: 'client' | 'merged' | 'server'
  /** The policy that decides conflicts. */
  policy?: string
  /** With `conflict`: the conflict that waits for a person. */
  conflict_id?: string
  /** The record's version. */
  version?: number | null
  /** The number of the change in its tenant. */
  seq?: number | null
  /** The record. Null: it is deleted. */
  data?: Data | null
  /** With `rejected`: why. */
  error?: ItemError
}

/** The server's record now. */
export interface ServerSide {
  /** The record's version. */
  version: number
  /** The record. Null: it is deleted. */
  data: Data | null
}

/** Ask for all changes after a cursor, then for every change as it happens. */
export interface Subscribe {
  type: 'subscribe'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** Where to begin: the cursor of the last page. Null: the beginning. */
  cursor?: string | null
  /** The domains that are wanted; null for all. */
  domains?: string[] | null
  /** The most entries of a page. */
  limit?: number
}

/**
 * Push changes. A retry must repeat the bytes of `items`. `id` is required on a socket, and may be missing over HTTP.
 * `clock` is read only over HTTP.
 */
export interface Sync {
  type: 'sync'
  /**
   * Chosen by the device, random, and stored until the message is answered. By it the server knows a message that is
   * sent again. Never use a key for another message.
   */
  key: string
  /** The changes, in the order in which they apply. A retry repeats the array byte for byte. */
  items: Item[]
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** True: all items are stored, or none. */
  atomic?: boolean
}

/** Answer to `sync`: one result per item, in order. `replayed` is true for a message sent before. */
export interface Synced {
  type: 'synced'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** True if the message had been stored before. */
  replayed: boolean
  /** One result for each item, in the order of the items. */
  results: Result[]
}

/**
 * Counts that the device made itself in one hour, which began at `hour`. `counters` and `histograms` are objects by
 * name.
 */
export interface Telemetry {
  type: 'telemetry'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /**
   * Chosen by the device, random, and stored until the message is answered. By it the server knows a message that is
   * sent again. Never use a key for another message.
   */
  key: string
  /** The beginning of an hour in UTC, by the device's clock: at most 7 days ago. */
  hour: Instant
  /** Whole numbers by name. Together with `histograms` they have up to 8192 bytes. */
  counters?: { [name: string]: number }
  /** Durations by name, as pairs of bucket (0 to 673) and count. Bucket n ends at 100 x 1.02^n microseconds. */
  histograms?: { [name: string]: [number, number][] }
}

/** Answer to `telemetry`: it is stored. `replayed` is true if it had been stored before. */
export interface TelemetryAck {
  type: 'telemetry_ack'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
  /** True if the message had been stored before. */
  replayed: boolean
}

/** End the subscription of this id. */
export interface Unsubscribe {
  type: 'unsubscribe'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
}

/** Answer to `unsubscribe`. */
export interface Unsubscribed {
  type: 'unsubscribed'
  /** Chosen by the device. The answer and the error repeat it. */
  id: string
}

/**
 * The server's first message on every connection. `policies` has the record domains with their policies, `events` the
 * event domains.
 */
export interface Welcome {
  type: 'welcome'
  /** Names the connection in the server's log. */
  session: string
  /** The server's time. */
  server_time: Instant
  /** Another one after the database was restored. */
  epoch: string
  /** How often to send a `heartbeat`. */
  heartbeat_s: number
  /** The limits of the device. */
  limits: Limits
  /** Each domain of records with the policy that decides its conflicts. */
  policies: { [name: string]: string }
  /** The domains of events. */
  events?: string[]
}

/** What a device sends on a socket. `type` tells them apart. */
export type ClientMessage =
  | Conflicts
  | Heartbeat
  | Hello
  | Pull
  | Resolve
  | Subscribe
  | Sync
  | Telemetry
  | Unsubscribe

/** What the server sends on a socket. `type` tells them apart. */
export type ServerMessage =
  | Changes
  | ConflictList
  | ErrorMessage
  | Goodbye
  | HeartbeatAck
  | PoliciesChanged
  | Resolved
  | Synced
  | TelemetryAck
  | Unsubscribed
  | Welcome

/** Messages as they are over HTTP, where they differ: an `id` and what the path says may be missing. */
export namespace Http {
  /**
   * A page of the feed, in answer to `pull` and `subscribe`. `more`: another page follows now. `unknown_domains` are the
   * domains of the request that hold no records.
   */
  export interface Changes {
    type: 'changes'
    /** Chosen by the device. The answer and the error repeat it. */
    id?: string
    /** The place in the feed after this page. Store it in one transaction with the page. */
    cursor: string
    /** True if another page follows now. */
    more: boolean
    /** The changes, in ascending order of `seq`. */
    changes: Change[]
    /** The names in `domains` that hold no records. */
    unknown_domains?: string[]
  }

  /** Answer to `conflicts`. `after` continues the list; null at its end. */
  export interface ConflictList {
    type: 'conflicts'
    /** Chosen by the device. The answer and the error repeat it. */
    id?: string
    /** The open conflicts, oldest first. */
    conflicts: OpenConflict[]
    /** Ask again with this value; null at the end of the list. */
    after: string | null
  }

  /**
   * The device is alive, and some facts about it. `battery` is 0 to 1. A negative `battery` or `storage_free_mb` counts
   * as missing: Android and iOS use -1 for an unknown value. `clock` and `server_time` are as in `hello`.
   */
  export interface Heartbeat {
    type?: 'heartbeat'
    /** Chosen by the device. The answer and the error repeat it. */
    id?: string
    /** How many changes wait on the device. */
    queue_depth?: number | null
    /** The charge, 0 to 1. A negative value counts as missing. */
    battery?: number | null
    /** The kind of network, such as `4g`. */
    network?: string | null
    /** The free storage in megabytes. A negative value counts as missing. */
    storage_free_mb?: number | null
    /** The version of the app. */
    app_version?: string | null
    /** The operating system and its version. */
    os_version?: string | null
    /** The device's own time at the moment of sending. By it the server corrects the `at` of items. */
    clock?: Instant | null
    /** As in `hello`. Send it together with `clock`. */
    server_time?: Instant | null
  }

  /** Answer to `heartbeat`. `health_score` is 0 to 100. */
  export interface HeartbeatAck {
    type: 'heartbeat_ack'
    /** Chosen by the device. The answer and the error repeat it. */
    id?: string
    /** The server's time. */
    server_time: Instant
    /** 0 to 100: how well the device syncs. */
    health_score: number
  }

  /** Settle a conflict. `version` and `changes` are those that the decision was made on. */
  export interface Resolve {
    type?: 'resolve'
    /** Chosen by the device. The answer and the error repeat it. */
    id?: string
    /** The conflict. */
    conflict_id?: string
    /** Whose side wins. */
    choice: 'client' | 'merged' | 'server'
    /** The server's version that the person saw. */
    version: number
    /** With the choice `merged`: the record. */
    data?: Data | null
    /** How many changes of the device the person saw. */
    changes?: number | null
  }

  /** Answer to `resolve`. */
  export interface Resolved {
    type: 'resolved'
    /** Chosen by the device. The answer and the error repeat it. */
    id?: string
    /** The conflict. */
    conflict_id: string
    /** The record's version. */
    version: number
    /** The number of the change in its tenant. */
    seq: number
  }

  /**
   * Push changes. A retry must repeat the bytes of `items`. `id` is required on a socket, and may be missing over HTTP.
   * `clock` is read only over HTTP.
   */
  export interface Sync {
    type: 'sync'
    /**
     * Chosen by the device, random, and stored until the message is answered. By it the server knows a message that is
     * sent again. Never use a key for another message.
     */
    key: string
    /** The changes, in the order in which they apply. A retry repeats the array byte for byte. */
    items: Item[]
    /** Chosen by the device. The answer and the error repeat it. */
    id?: string | null
    /** True: all items are stored, or none. */
    atomic?: boolean
    /** The device's own time at the moment of sending. By it the server corrects the `at` of items. */
    clock?: Instant | null
  }

  /** Answer to `sync`: one result per item, in order. `replayed` is true for a message sent before. */
  export interface Synced {
    type: 'synced'
    /** Chosen by the device. The answer and the error repeat it. */
    id?: string
    /** True if the message had been stored before. */
    replayed: boolean
    /** One result for each item, in the order of the items. */
    results: Result[]
  }

  /**
   * Counts that the device made itself in one hour, which began at `hour`. `counters` and `histograms` are objects by
   * name.
   */
  export interface Telemetry {
    type?: 'telemetry'
    /** Chosen by the device. The answer and the error repeat it. */
    id?: string
    /**
     * Chosen by the device, random, and stored until the message is answered. By it the server knows a message that is
     * sent again. Never use a key for another message.
     */
    key: string
    /** The beginning of an hour in UTC, by the device's clock: at most 7 days ago. */
    hour: Instant
    /** Whole numbers by name. Together with `histograms` they have up to 8192 bytes. */
    counters?: { [name: string]: number }
    /** Durations by name, as pairs of bucket (0 to 673) and count. Bucket n ends at 100 x 1.02^n microseconds. */
    histograms?: { [name: string]: [number, number][] }
  }

  /** Answer to `telemetry`: it is stored. `replayed` is true if it had been stored before. */
  export interface TelemetryAck {
    type: 'telemetry_ack'
    /** Chosen by the device. The answer and the error repeat it. */
    id?: string
    /** True if the message had been stored before. */
    replayed: boolean
  }

  /** What a request is answered with. `type` tells them apart. */
  export type Answer =
    | Changes
    | ConflictList
    | DomainList
    | HeartbeatAck
    | Resolved
    | Synced
    | TelemetryAck
}
