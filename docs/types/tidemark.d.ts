// `python -m docs.generate` makes this file from the messages in engine/wire/messages.py.
//
// Types of all messages of the wire contract, version 1. A server explains them at /docs/messages (the
// WebSocket) and /docs (HTTP), with the policies of conflicts, the close codes and the errors. A later server
// may add optional fields, types of messages and codes of errors: ignore those that you do not know.
//
// The WebSocket is wss://HOST/v1/sync, with the subprotocol `tidemark.v1.json` or `tidemark.v1.msgpack`.
// The token goes into the header `Authorization: Bearer TOKEN`. A browser offers `bearer.TOKEN` as a second
// subprotocol.

/** A value of JSON. Numbers are exact up to 2^53 only: store longer ones as text. */
export type Json = string | number | boolean | null | Json[] | { [name: string]: Json }
/** The content of a record or an event. */
export type Data = { [name: string]: Json }
/** An instant: RFC 3339 text with an offset, such as `2026-01-02T03:04:05.290173Z`. */
export type Instant = string

/** A file of a record. It is read at `/v1/files/{file_id}`. `device_id` sent it. */
export interface Attachment {
  /** The file, to be read at `/v1/files/{file_id}`. It is the `upload_id` of its upload. */
  file_id: string
  /** The name to show. Several files may have one name. */
  filename: string
  /** The media type, as the content shows it. */
  filetype: string
  /** The size. */
  size_bytes: number
  /** The SHA-256 of the content in hex digits. */
  sha256: string
  /** The device that sent the file. */
  device_id: string
  /** When the file joined the record, by the server's clock: when both were there. */
  at: Instant
}

/**
 * A record in the feed, in its latest version. `data` is null for a tombstone. A file that joins or leaves the record
 * comes as a change with a new `seq` and the same `version`. `attachments` is an array of `Attachment`, left out if the
 * record has none.
 */
export interface Change {
  /** The kind of data. */
  domain: string
  /** The record. */
  id: string
  /** The record's version. Ignore `data` of a version that is not above the device's own, but not `attachments`. */
  version: number
  /**
   * The number of the change in its tenant. A file that joins or leaves the record gives another `seq` to the same
   * version.
   */
  seq: number
  /** True for a tombstone. */
  deleted: boolean
  /** When the change was made, as corrected by the server. Sort by `seq`, not by this. */
  at: Instant
  /** The device that made it; null if no device did. */
  device_id: string | null
  /** The record. Null: it is deleted. */
  data: Data | null
  /**
   * All files of the record; missing if it has none. Take them from the change of the highest `seq`, even if its
   * `version` is one that the device has.
   */
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
  /** The names in `domains` that hold no records, such as domains of events. */
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
  /** The device that made the changes. */
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

/** Ask for open conflicts, oldest first: those of the device itself, or all for a supervisor. */
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
 * The rules of one domain. Event domains have no fields about conflicts. `status` maps a value to the values that are
 * one step away. An edit may take several steps.
 */
export interface DomainInfo {
  /** What the domain holds: records, which change, or events, which are only added. */
  kind: 'event' | 'record'
  /** The fields that must be present and not null. */
  required: string[]
  /**
   * For each value of `status` the values that are one step away. An edit may take several steps at once: every value
   * that steps lead to is allowed, and so is the value itself. A record without a status, such as a new one, may take
   * any declared value. A value that ends the steps may be no key, but stands in the list of another. Empty: any value
   * is allowed.
   */
  status: { [name: string]: string[] }
  /** The policy that decides conflicts: see the table of policies. */
  policy?: 'client_wins' | 'field_merge' | 'manual' | 'most_recent_wins' | 'preserve_escalation' | 'server_wins'
  /** Under `field_merge`: what decides when both sides changed a field. Under other policies it is not used. */
  fallback?: 'client_wins' | 'manual' | 'most_recent_wins' | 'preserve_escalation' | 'server_wins'
  /**
   * Under `preserve_escalation`, also as a fallback: the fields that keep the server's values. Under other policies
   * they are not used.
   */
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
  /** The `id` of the request; missing if it could not be read, or if there is none, as in `hello`. */
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
  /**
   * How long to wait. After `rate_limited` it is the time until one more message is allowed: send nothing on the
   * connection until then, and not all that waits at once.
   */
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

/** The server is about to close the connection. The table of close codes has what to do. */
export interface Goodbye {
  type: 'goodbye'
  /**
   * Why the connection is about to close. `drain`, `restart`, `idle`: connect again. `expired`: connect again with a
   * fresh token. `replaced`: connect again, but not if it comes again within ten minutes. `revoked`: do not connect
   * again by yourself.
   */
  reason: 'drain' | 'expired' | 'idle' | 'replaced' | 'restart' | 'revoked'
  /** How long to wait before connecting again. After `revoked` it does not count: do not connect again by yourself. */
  retry_after_ms: number
}

/**
 * The device is alive, and some facts about it. Only messages keep a connection open, pings do not. `battery` is 0 to
 * 1. A negative `battery` or `storage_free_mb` counts as missing: Android and iOS use -1 for an unknown value. `clock`
 * and `server_time` are as in `hello`.
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
  /**
   * The version that the device changed; null or missing if it knew of no version. On an existing record null is a
   * conflict, unless all its versions are of the device itself, or the record equals the item.
   */
  base?: number | null
  /**
   * When the change was made, by the device's own clock. Missing: now. It decides under `most_recent_wins`. An event
   * must have it, as a part of its name: keep it in a retry.
   */
  at?: Instant | null
  /** The record, the patch or the event. A `delete` has none. */
  data?: Data | null
  /**
   * The top-level fields that a `put` changed, under `field_merge`. Missing: every field counts as changed, and in a
   * conflict the edits of one side are lost as a whole. Always send it, or send a `patch`.
   */
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
  /** A sentence for a person. The items that it names count from 0. */
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
  /** The policy that decides conflicts: see the table of policies. */
  policy: string
  /** The server's record now. */
  server: ServerSide
  /** The device's side. */
  client: ClientSide
  /** When the conflict was opened. */
  opened_at: Instant
}

/** A policy or a fallback of the tenant changed. */
export interface PoliciesChanged {
  type: 'policies'
  /** As in the welcome. If they look the same, a fallback changed: ask for `GET /v1/domains`. */
  policies: { [name: string]: string }
}

/**
 * Ask for one page of the feed, which has records and no events. `domains` is checked with the cursor: a cursor of
 * another set of domains is `cursor_expired`.
 */
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
  /** Whose side wins. Each choice writes a new version, also `server`, with the same data. */
  choice: 'client' | 'merged' | 'server'
  /** The server's version that the person saw. */
  version: number
  /** With the choice `merged`: the record. */
  data?: Data | null
  /** How many changes of the device the person saw. Missing: not checked. */
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
  /**
   * With `resolved`, for the person. `client`: the record is the item's put, it is deleted, or it is the item's patch
   * on the server's record, with the edits of others in it. `merged`: it is neither side. `server`: nothing of the item
   * was stored. Under each of them `data` is the record now.
   */
  winner?: 'client' | 'merged' | 'server'
  /** The policy that decides conflicts: see the table of policies. */
  policy?: string
  /** With `conflict`: the conflict that waits for a person. Missing in an atomic message: no conflict was opened. */
  conflict_id?: string
  /** The record's version. */
  version?: number | null
  /** The number of the change in its tenant. */
  seq?: number | null
  /**
   * With `resolved` and `conflict`: the server's record now. Replace the device's copy with it, under every `winner`,
   * unless the device has a newer version. Null: the record is deleted. Missing, though the status is one of these: the
   * answer was too long, or is `replayed`; pull.
   */
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
  /**
   * How often to send a `heartbeat`. Pings do not count as messages: the server closes a connection without messages
   * with 4408.
   */
  heartbeat_s: number
  /** The limits of the device. */
  limits: Limits
  /**
   * Each domain of records with the policy that decides its conflicts. The fallback of `field_merge` is in `GET
   * /v1/domains` only.
   */
  policies: { [name: string]: string }
  /** The domains of events. Events are in no pull and no subscription. */
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

/** The answer to each request on a socket, by its `type`. A subscription has many answers. */
export interface Answers {
  conflicts: ConflictList | ErrorMessage
  heartbeat: HeartbeatAck | ErrorMessage
  hello: never
  pull: Changes | ErrorMessage
  resolve: Resolved | ErrorMessage
  subscribe: Changes | ErrorMessage
  sync: Synced | ErrorMessage
  telemetry: TelemetryAck | ErrorMessage
  unsubscribe: Unsubscribed | ErrorMessage
}

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
    /** The names in `domains` that hold no records, such as domains of events. */
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
   * The device is alive, and some facts about it. Only messages keep a connection open, pings do not. `battery` is 0 to
   * 1. A negative `battery` or `storage_free_mb` counts as missing: Android and iOS use -1 for an unknown value. `clock`
   * and `server_time` are as in `hello`.
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
    /** Whose side wins. Each choice writes a new version, also `server`, with the same data. */
    choice: 'client' | 'merged' | 'server'
    /** The server's version that the person saw. */
    version: number
    /** With the choice `merged`: the record. */
    data?: Data | null
    /** How many changes of the device the person saw. Missing: not checked. */
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
