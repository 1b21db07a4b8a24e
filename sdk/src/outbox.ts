// Messages on their way to the server. They survive the end of the program, and each is
// sent under its mid until the server says that it has it, or that it does not take it.

import type { Ack } from './connection.js'
import { MynahError } from './error.js'
import type { Platform } from './platform.js'

/** A message as it is published: at least `mid`. */
export interface Outgoing {
  mid: string
  type: string
  body?: unknown
  [field: string]: unknown
}

/** How far a message has come. `sent` is never said before the server has it on disk. */
export type SendState =
  | { name: 'queued' }
  | { name: 'sent'; seq: number }
  | { name: 'delivered'; seq: number }
  | { name: 'read'; seq: number }
  | { name: 'failed'; error: MynahError }

/** A message that was handed over with send. */
export class Sending {
  state: SendState = { name: 'queued' }
  private listeners = new Set<(s: SendState) => void>()

  /** @internal */
  constructor(
    readonly topic: string,
    readonly message: Outgoing,
    /** Milliseconds since 1970. */
    readonly at: number,
  ) {}

  /** Calls f with each new state. Returns how to end that. */
  subscribe(f: (s: SendState) => void): () => void {
    this.listeners.add(f)
    return () => this.listeners.delete(f)
  }

  /** Resolves with the seq when the server has the message, rejects when it does not take it. */
  done(): Promise<number> {
    return new Promise((resolve, reject) => {
      const look = (s: SendState) => {
        if (s.name == 'queued') return false
        if (s.name == 'failed') reject(s.error)
        else resolve(s.seq)
        return true
      }
      if (look(this.state)) return
      const end = this.subscribe((s) => look(s) && end())
    })
  }

  /** @internal */
  set(s: SendState): void {
    this.state = s
    for (const f of [...this.listeners]) f(s)
  }
}

/** What is kept of a Sending. */
type Kept = [topic: string, message: Outgoing, at: number]

/** Sends in order, some at a time, on whatever connection there is. */
export class Outbox {
  /** What the server does not have yet, oldest first. */
  readonly waiting: Sending[] = []

  private loaded: Promise<void>
  private saving: Promise<void> = Promise.resolve()
  private underWay = new Set<Sending>()
  private online = false
  private session = 0

  /**
   * @param key name under which the messages are kept, of this account and device
   * @param publish resolves with the acknowledgement; rejects with code `offline` if there is none
   * @param changed is called when a message has come further
   */
  constructor(
    private platform: Platform,
    private key: string,
    private publish: (topic: string, m: Outgoing) => Promise<Ack>,
    private changed: (s: Sending) => void,
    private maxUnderWay = 32,
  ) {
    this.loaded = this.load()
  }

  private async load(): Promise<void> {
    const text = await this.platform.storage.get(this.key).catch(() => undefined)
    if (!text) return
    let kept: Kept[]
    try {
      kept = JSON.parse(text) as Kept[]
    } catch {
      return // what cannot be read cannot be sent
    }
    const old = kept.map((k) => new Sending(...k))
    this.waiting.unshift(...old)
    for (const s of old) this.changed(s)
  }

  /** Resolves when what an earlier run of the program left is in `waiting`. */
  ready(): Promise<void> {
    return this.loaded
  }

  /** Takes a message over. It is kept before it is sent. */
  add(topic: string, message: Outgoing): Sending {
    const s = new Sending(topic, message, Date.now())
    this.waiting.push(s)
    this.changed(s)
    void this.save().then(() => this.flush())
    return s
  }

  /** Sends a failed message again, in its old place if nothing else was sent meanwhile. */
  resend(s: Sending): void {
    if (s.state.name != 'failed') return
    s.set({ name: 'queued' })
    this.waiting.push(s)
    this.changed(s)
    void this.save().then(() => this.flush())
  }

  /** Says that there is a connection, or none. */
  setOnline(online: boolean): void {
    this.session++
    this.online = online
    this.underWay.clear()
    if (online) void this.loaded.then(() => this.flush())
  }

  private flush(): void {
    for (const s of this.waiting) {
      if (!this.online || this.underWay.size >= this.maxUnderWay) return
      if (!this.underWay.has(s)) void this.send(s)
    }
  }

  private async send(s: Sending): Promise<void> {
    const session = this.session
    this.underWay.add(s)
    let state: SendState
    try {
      const ack = await this.publish(s.topic, s.message)
      state = { name: 'sent', seq: ack.seq ?? 0 }
    } catch (e) {
      const error = e instanceof MynahError ? e : new MynahError('offline', String(e))
      // Without an answer it may have arrived: the next connection sends it again, and
      // the server recognises its mid.
      if (error.code == 'offline') return
      state = { name: 'failed', error }
    } finally {
      if (session == this.session) this.underWay.delete(s)
    }
    const i = this.waiting.indexOf(s)
    if (i >= 0) this.waiting.splice(i, 1)
    s.set(state)
    this.changed(s)
    void this.save()
    this.flush()
  }

  /** Writes what waits, one write at a time, the newest state last. */
  private save(): Promise<void> {
    return (this.saving = this.saving.then(async () => {
      const kept: Kept[] = this.waiting.map((s) => [s.topic, s.message, s.at])
      try {
        if (kept.length) await this.platform.storage.set(this.key, JSON.stringify(kept))
        else await this.platform.storage.remove(this.key)
      } catch {
        // Full or forbidden: the messages are in memory and go on.
      }
    }))
  }
}
