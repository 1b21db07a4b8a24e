// One MQTT connection that is there whenever it can be. It knows tokens, packets and
// time; what is said over it is others' business.

import { Emitter } from './emitter.js'
import { MynahError } from './error.js'
import * as mqtt from './packet.js'
import type { Packet, Properties } from './packet.js'
import type { Platform, Socket } from './platform.js'
import { decodeUtf8, encodeUtf8 } from './utf8.js'

/** Why a token is asked for: at the start, because the present one ends soon, or because the server refused it. */
export type TokenReason = 'start' | 'renew' | 'refused'

/** Why the client will not connect again by itself. */
export type StopReason = 'stopped' | 'taken_over' | 'no_token'

/** Where the connection stands. */
export type State =
  | { name: 'idle' }
  | { name: 'connecting' }
  /** The server has let us in; what was missed is on its way. */
  | { name: 'syncing' }
  | { name: 'live' }
  /** retryAt: milliseconds since 1970 at which it tries again. */
  | { name: 'waiting'; retryAt: number; why: string }
  | { name: 'stopped'; reason: StopReason }

/** Gives a token, or null when nobody is signed in any more. */
export type TokenProvider = (o: { reason: TokenReason }) => Promise<string | null> | string | null

/** What a Connection needs. Times are milliseconds. */
export interface ConnectionOptions {
  platform: Platform
  /** ws:// or wss:// address of the server's /mqtt. */
  url: string
  getToken: TokenProvider
  /** Names this device; the session belongs to it and to the token's subject. */
  clientId: string
  /** How long the server keeps the session of an absent client; default 7 days. */
  sessionExpiry?: number
  /** How long silence may last before a ping; default 25 s. */
  keepAlive?: number
  /** How long an answer may take; default 10 s. */
  timeout?: number
  /** How long the answer to a ping may take after coming to the foreground; default 5 s. */
  probeTimeout?: number
  /** Bounds of the wait before another try; default 500 ms to 30 s. */
  minBackoff?: number
  maxBackoff?: number
  /** From 0 to below 1; default Math.random. */
  random?: () => number
}

/** An answer to a PUBLISH: its seq, if the server gave one. */
export interface Ack {
  seq?: number
}

type Waiter = { resolve: (p: Packet) => void; reject: (e: MynahError) => void }

const isRefusal = (code: number | undefined) => (code ?? 0) >= 0x80

/** Reads when a token ends, in milliseconds since 1970; undefined if it does not tell. */
export function tokenExpiry(token: string): number | undefined {
  try {
    const claims = JSON.parse(decodeUtf8(fromBase64Url(token.split('.')[1]!))) as { exp?: number }
    return typeof claims.exp == 'number' ? claims.exp * 1000 : undefined
  } catch {
    return undefined
  }
}

/** Mini-programs have no atob. */
function fromBase64Url(s: string): Uint8Array {
  const digits = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
  const out: number[] = []
  let bits = 0
  let n = 0
  for (const c of s) {
    bits = (bits << 6) | digits.indexOf(c)
    n += 6
    if (n >= 8) {
      n -= 8
      out.push((bits >> n) & 255)
    }
  }
  return new Uint8Array(out)
}

/** The events of a Connection. */
export type ConnectionEvents = {
  state: [State]
  /** The server has let us in. Whoever subscribes and publishes now is in time. */
  open: [o: { sessionPresent: boolean }]
  /** A PUBLISH came. It is acknowledged when all listeners have returned. */
  message: [topic: string, payload: Uint8Array, properties: Properties]
}

/**
 * Keeps one MQTT 5 connection. `start` connects, and goes on to whatever happens until
 * `stop`, a takeover by the same device elsewhere, or a token provider that has none.
 */
export class Connection extends Emitter<ConnectionEvents> {
  state: State = { name: 'idle' }

  private socket: Socket | undefined
  private decoder = new mqtt.Decoder()
  /** Counts sockets: what belongs to an older one is ignored. */
  private generation = 0
  private tries = 0
  private token: string | undefined
  private asking: Promise<string | null> | undefined
  private refused = false
  private nextId = 0
  private waiters = new Map<number, Waiter>()
  private heard = 0
  private pinged = 0
  private probing = false
  private timers: { retry?: Timer; deadline?: Timer; tick?: Timer; renew?: Timer } = {}
  private unwatch: (() => void) | undefined
  private o: Required<ConnectionOptions>

  constructor(o: ConnectionOptions) {
    super()
    this.o = {
      sessionExpiry: 7 * 86400e3, keepAlive: 25e3, timeout: 10e3, probeTimeout: 5e3,
      minBackoff: 500, maxBackoff: 30e3, random: Math.random, ...o,
    }
  }

  /** Connects, and stays connected. Does nothing if it is at it. */
  start(): void {
    if (this.state.name != 'idle' && this.state.name != 'stopped') return
    this.unwatch ??= this.o.platform.onWake((why) => this.wake(why))
    this.tries = 0
    void this.connect('start')
  }

  /** Ends the connection for good; `start` begins again. The session stays at the server. */
  stop(reason: StopReason = 'stopped'): void {
    if (this.socket && this.up) this.socket.send(mqtt.encodeDisconnect())
    this.drop(new MynahError('stopped'))
    this.unwatch?.()
    this.unwatch = undefined
    this.set({ name: 'stopped', reason })
  }

  /** Whether packets may be sent. */
  get up(): boolean {
    return this.state.name == 'live' || this.state.name == 'syncing'
  }

  /** Says that what was missed is here. */
  synced(): void {
    if (this.state.name == 'syncing') this.set({ name: 'live' })
  }

  /**
   * Publishes. At QoS 1 it resolves when the server has it on disk, and rejects with the
   * server's refusal, or with `offline` when the connection ends before: then it may have
   * arrived or not, and is to be sent again under the same mid.
   */
  async publish(topic: string, payload: string | object, o: { qos?: 0 | 1; properties?: Properties } = {}): Promise<Ack> {
    const bytes = encodeUtf8(typeof payload == 'string' ? payload : JSON.stringify(payload))
    const qos = o.qos ?? 1
    const options: mqtt.PublishOptions = { topic, payload: bytes, qos }
    if (o.properties) options.properties = o.properties
    if (!qos) {
      this.send(mqtt.encodePublish(options))
      return {}
    }
    const p = await this.exchange((id) => mqtt.encodePublish({ ...options, id }))
    if (isRefusal(p.code)) throw refusalOf(p.code!, p.properties)
    const seq = userProperty(p.properties, 'seq')
    return seq ? { seq: Number(seq) } : {}
  }

  /** Subscribes. Returns the filters that were refused. */
  async subscribe(filters: [filter: string, qos: 0 | 1][]): Promise<string[]> {
    const p = await this.exchange((id) => mqtt.encodeSubscribe(id, filters))
    return filters.map(([f]) => f).filter((_, i) => isRefusal(p.codes![i]))
  }

  /** Unsubscribes. */
  async unsubscribe(filters: string[]): Promise<void> {
    await this.exchange((id) => mqtt.encodeUnsubscribe(id, filters))
  }

  /** Looks whether the connection is alive, or connects at once if it waits. */
  wake(_why?: string): void {
    if (this.state.name == 'waiting') {
      this.tries = 0
      void this.connect('start')
    } else if (this.up && !this.probing) {
      // No close event is to be trusted, or its absence: the system may have ended the
      // socket while the program slept.
      this.probing = true
      this.ping(this.o.probeTimeout)
    }
  }

  private set(s: State): void {
    this.state = s
    this.emit('state', s)
  }

  private async connect(reason: TokenReason): Promise<void> {
    clearTimeout(this.timers.retry)
    const generation = ++this.generation
    this.set({ name: 'connecting' })
    let token: string | null
    try {
      const expiry = this.token && tokenExpiry(this.token)
      const good = this.token && !this.refused && (!expiry || expiry > Date.now() + 5e3)
      token = good ? this.token! : await this.askToken(this.refused ? 'refused' : reason)
    } catch (e) {
      if (generation == this.generation) this.retry(`no token: ${String(e)}`)
      return
    }
    if (generation != this.generation) return
    if (token === null) {
      this.stop('no_token')
      return
    }
    this.token = token
    this.decoder = new mqtt.Decoder()
    this.heard = Date.now()
    const fail = (why: string) => {
      if (generation == this.generation) this.retry(why)
    }
    this.timers.deadline = setTimeout(() => fail('no answer to CONNECT'), this.o.timeout)
    this.socket = this.o.platform.connect(this.o.url, {
      open: () => {
        if (generation != this.generation) return
        this.socket!.send(mqtt.encodeConnect({
          clientId: this.o.clientId, username: '', password: token, clean: false,
          // The server hears of us at least this often (3.1.2.10).
          keepAlive: Math.ceil((this.o.keepAlive + this.o.timeout) / 1000),
          properties: { sessionExpiry: Math.ceil(this.o.sessionExpiry / 1000), receiveMaximum: 1000 },
        }))
      },
      message: (data) => {
        if (generation != this.generation) return
        this.heard = Date.now()
        try {
          for (const p of this.decoder.push(data)) {
            this.handle(p)
            if (generation != this.generation) return
          }
        } catch (e) {
          fail(e instanceof mqtt.MalformedPacket ? `not MQTT: ${e.message}` : String(e))
        }
      },
      close: fail,
    })
  }

  private handle(p: Packet): void {
    switch (p.type) {
      case mqtt.CONNACK:
        clearTimeout(this.timers.deadline)
        if (isRefusal(p.code)) {
          this.refused = p.code == 0x86 || p.code == 0x87 || p.code == 0x8c
          this.retry(p.properties.reason ?? `refused with code ${p.code}`)
          return
        }
        this.tries = 0
        this.refused = false
        this.probing = false
        this.pinged = 0
        this.set({ name: 'syncing' })
        this.tick()
        this.renewLater()
        this.emit('open', { sessionPresent: p.sessionPresent! })
        return
      case mqtt.PUBLISH: {
        const socket = this.socket
        this.emit('message', p.topic!, p.payload!, p.properties)
        if (p.qos) socket?.send(mqtt.encodePuback(p.id!))
        return
      }
      case mqtt.PINGRESP:
        this.pinged = 0
        this.probing = false
        return
      case mqtt.DISCONNECT:
        if (p.code == 0x8e) {
          this.stop('taken_over')
          return
        }
        this.refused = p.code == 0x87
        this.retry(p.properties.reason ?? `disconnected with code ${p.code}`)
        return
      default: {
        const w = this.waiters.get(p.id!)
        this.waiters.delete(p.id!)
        w?.resolve(p)
      }
    }
  }

  /** Pings after silence, and gives up after more of it. Runs as long as the connection is up. */
  private tick(): void {
    clearTimeout(this.timers.tick)
    const wait = this.heard + this.o.keepAlive - Date.now()
    if (wait <= 0 && !this.pinged) this.ping(this.o.timeout)
    this.timers.tick = setTimeout(() => this.up && this.tick(), Math.max(wait, 1e3))
  }

  private ping(timeout: number): void {
    const at = (this.pinged = Date.now())
    const generation = this.generation
    this.socket!.send(mqtt.encodePing())
    setTimeout(() => {
      if (generation == this.generation && this.pinged == at) this.retry('no answer to a ping')
    }, timeout)
  }

  /** Ends what there is and tries again after a while: full jitter, so that many clients do not come at once. */
  private retry(why: string): void {
    this.drop(new MynahError('offline', why))
    const most = Math.min(this.o.maxBackoff, this.o.minBackoff * 2 ** this.tries++)
    const wait = Math.round(this.o.random() * most)
    this.timers.retry = setTimeout(() => void this.connect('start'), wait)
    this.set({ name: 'waiting', retryAt: Date.now() + wait, why })
  }

  private drop(e: MynahError): void {
    this.generation++
    for (const t in this.timers) clearTimeout(this.timers[t as keyof typeof this.timers])
    this.socket?.close()
    this.socket = undefined
    const waiters = [...this.waiters.values()]
    this.waiters.clear()
    for (const w of waiters) w.reject(e)
  }

  private send(frame: ArrayBuffer): void {
    if (!this.socket || !this.up) throw new MynahError('offline')
    this.socket.send(frame)
  }

  private exchange(encode: (id: number) => ArrayBuffer): Promise<Packet> {
    return new Promise((resolve, reject) => {
      let id = this.nextId
      do id = (id % 65535) + 1
      while (this.waiters.has(id))
      this.nextId = id
      this.send(encode(id))
      this.waiters.set(id, { resolve, reject })
    })
  }

  /** Asks for a token. One call is in flight at a time. */
  private askToken(reason: TokenReason): Promise<string | null> {
    this.asking ??= Promise.resolve(this.o.getToken({ reason })).finally(() => (this.asking = undefined))
    return this.asking
  }

  /** Renews the token on the connection when nine tenths of its time are over. */
  private renewLater(): void {
    clearTimeout(this.timers.renew)
    const expiry = tokenExpiry(this.token!)
    if (!expiry) return
    const left = expiry - Date.now()
    // setTimeout takes 31 bits of milliseconds.
    const wait = Math.min(Math.max(left - Math.max(60e3, left / 10), left / 2), 2 ** 31 - 1)
    this.timers.renew = setTimeout(() => void this.renew(), wait)
  }

  private async renew(): Promise<void> {
    const generation = this.generation
    try {
      const token = await this.askToken('renew')
      if (generation != this.generation) return
      if (token === null) {
        this.stop('no_token')
        return
      }
      await this.publish('$mynah/token', token)
      if (generation != this.generation) return // stopped meanwhile: a timer would outlive it
      this.token = token
      this.renewLater()
    } catch {
      // The connection ends with the token at the worst; until then once more.
      if (generation == this.generation) this.timers.renew = setTimeout(() => void this.renew(), 10e3)
    }
  }
}

type Timer = ReturnType<typeof setTimeout>

/** Returns the value of a user property. */
export function userProperty(p: Properties, name: string): string | undefined {
  for (let i = 0; i + 1 < (p.user?.length ?? 0); i += 2) {
    if (p.user![i] == name) return p.user![i + 1]
  }
  return undefined
}

/** Codes of the server by reason code, where the reason string does not tell. */
const codes: Record<number, string> = {
  0x83: 'conflict', 0x87: 'not_allowed', 0x90: 'bad_topic', 0x97: 'rate_limited', 0x99: 'bad_message', 0x80: 'unavailable',
}

function refusalOf(code: number, p: Properties): MynahError {
  return new MynahError(userProperty(p, 'code') ?? codes[code] ?? 'bad_message', p.reason)
}
