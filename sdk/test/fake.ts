// A server that is played by the test, packet by packet, and a platform that leads to it.
import mqtt from 'mqtt-packet'
import { MemoryStorage } from '../src/platform.js'
import type { HttpRequest, HttpResponse, Platform, Socket, SocketEvents, WakeReason } from '../src/platform.js'

type AnyPacket = mqtt.Packet & { [field: string]: any }

/** One connection as the server sees it. */
export class Peer {
  got: AnyPacket[] = []
  closed = false
  private parser = mqtt.parser({ protocolVersion: 5 })
  private waiting: (() => void)[] = []

  constructor(private events: SocketEvents) {
    this.parser.on('packet', (p) => {
      this.got.push(p as AnyPacket)
      for (const f of this.waiting.splice(0)) f()
    })
  }
  receive(data: ArrayBuffer) {
    this.parser.parse(Buffer.from(data))
  }
  /** Opens the connection for the client. */
  open() {
    this.events.open()
  }
  send(p: object) {
    const b = mqtt.generate(p as mqtt.Packet, { protocolVersion: 5 })
    this.events.message(b.buffer.slice(b.byteOffset, b.byteOffset + b.length) as ArrayBuffer)
  }
  raw(hex: string) {
    const b = Buffer.from(hex, 'hex')
    this.events.message(b.buffer.slice(b.byteOffset, b.byteOffset + b.length) as ArrayBuffer)
  }
  end(why = 'cut') {
    this.events.close(why)
  }
  /** Waits for the n-th packet of a type. */
  async next(cmd: string, n = 1): Promise<AnyPacket> {
    for (;;) {
      const of = this.got.filter((p) => p.cmd == cmd)
      if (of.length >= n) return of[n - 1]!
      await new Promise<void>((resolve) => this.waiting.push(resolve))
    }
  }
  /** Lets the client in. */
  async accept(o: { sessionPresent?: boolean } = {}) {
    this.open()
    const connect = await this.next('connect')
    this.send({ cmd: 'connack', sessionPresent: o.sessionPresent ?? false, reasonCode: 0 })
    return connect
  }
}

export class FakePlatform implements Platform {
  storage = new MemoryStorage()
  peers: Peer[] = []
  answer: (r: HttpRequest) => HttpResponse = () => ({ status: 404, headers: {}, body: '' })
  private waiting: (() => void)[] = []
  private wakers = new Set<(why: WakeReason) => void>()

  connect(_url: string, events: SocketEvents): Socket {
    const peer = new Peer(events)
    this.peers.push(peer)
    for (const f of this.waiting.splice(0)) f()
    return { send: (d) => peer.receive(d), close: () => { peer.closed = true } }
  }
  async request(r: HttpRequest): Promise<HttpResponse> {
    return this.answer(r)
  }
  onWake(f: (why: WakeReason) => void): () => void {
    this.wakers.add(f)
    return () => this.wakers.delete(f)
  }
  wake(why: WakeReason = 'foreground') {
    for (const f of this.wakers) f(why)
  }
  get watched() {
    return this.wakers.size
  }
  exclusive<T>(_name: string, f: () => Promise<T>): Promise<T> {
    return f()
  }
  /** Waits for the n-th connection. */
  async peer(n: number): Promise<Peer> {
    while (this.peers.length < n) await new Promise<void>((resolve) => this.waiting.push(resolve))
    return this.peers[n - 1]!
  }
}

/** A token as the server would sign it; only its end is read. */
export function token(ttl = 3600e3): string {
  const part = (o: object) => Buffer.from(JSON.stringify(o)).toString('base64url')
  return `${part({ alg: 'HS256' })}.${part({ sub: 'alice', exp: (Date.now() + ttl) / 1000 })}.x`
}
