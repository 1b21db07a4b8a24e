// The part of MQTT 5 that a chat client needs, as bytes. Sections are those of the
// OASIS standard of 7 March 2019. Nothing here is shared between two clients.

import { decodeUtf8, encodeUtf8 } from './utf8.js'

/** Types of control packets (2.1.2). */
export const CONNECT = 1
export const CONNACK = 2
export const PUBLISH = 3
export const PUBACK = 4
export const SUBSCRIBE = 8
export const SUBACK = 9
export const UNSUBSCRIBE = 10
export const UNSUBACK = 11
export const PINGREQ = 12
export const PINGRESP = 13
export const DISCONNECT = 14

/** Properties by their names here; only those that a client sends or reads. */
export interface Properties {
  sessionExpiry?: number
  receiveMaximum?: number
  maximumPacketSize?: number
  serverKeepAlive?: number
  assignedClientId?: string
  messageExpiry?: number
  contentType?: string
  responseTopic?: string
  correlationData?: Uint8Array
  reason?: string
  /** User properties in their order: name, value, name, value, … */
  user?: string[]
}

/** A packet that came. Fields that its type does not have are absent. */
export interface Packet {
  type: number
  /** CONNACK: the session was there before. */
  sessionPresent?: boolean
  /** Reason code of CONNACK, PUBACK, DISCONNECT. */
  code?: number
  /** Reason codes of SUBACK and UNSUBACK, one for each filter. */
  codes?: number[]
  id?: number
  topic?: string
  payload?: Uint8Array
  qos?: number
  dup?: boolean
  retain?: boolean
  properties: Properties
}

/** What CONNECT says (3.1). */
export interface ConnectOptions {
  clientId: string
  username: string
  /** The token. */
  password: string
  /** Seconds. */
  keepAlive: number
  clean: boolean
  properties?: Properties
}

/** What PUBLISH says (3.3). */
export interface PublishOptions {
  topic: string
  payload: Uint8Array
  qos: 0 | 1
  /** Packet id, 1 to 65,535, at QoS 1. */
  id?: number
  dup?: boolean
  properties?: Properties
}

/** Kinds of property values (2.2.2.2). */
const enum Kind {
  Byte,
  Two,
  Four,
  Varint,
  Text,
  Binary,
  Pair,
}

/** Every property of the standard by its identifier, or it could not be passed over. */
const kinds: Record<number, Kind> = {
  1: Kind.Byte, 2: Kind.Four, 3: Kind.Text, 8: Kind.Text, 9: Kind.Binary, 11: Kind.Varint,
  17: Kind.Four, 18: Kind.Text, 19: Kind.Two, 21: Kind.Text, 22: Kind.Binary, 23: Kind.Byte,
  24: Kind.Four, 25: Kind.Byte, 26: Kind.Text, 28: Kind.Text, 31: Kind.Text, 33: Kind.Two,
  34: Kind.Two, 35: Kind.Two, 36: Kind.Byte, 37: Kind.Byte, 38: Kind.Pair, 39: Kind.Four,
  40: Kind.Byte, 41: Kind.Byte, 42: Kind.Byte,
}

const ids: Record<keyof Properties, number> = {
  sessionExpiry: 17, receiveMaximum: 33, maximumPacketSize: 39, serverKeepAlive: 19,
  assignedClientId: 18, messageExpiry: 2, contentType: 3, responseTopic: 8,
  correlationData: 9, reason: 31, user: 38,
}

/** Collects bytes. */
class Writer {
  private bytes = new Uint8Array(64)
  private n = 0

  private room(n: number): number {
    const at = this.n
    this.n += n
    if (this.n > this.bytes.length) {
      const more = new Uint8Array(Math.max(this.n, 2 * this.bytes.length))
      more.set(this.bytes.subarray(0, at))
      this.bytes = more
    }
    return at
  }
  byte(v: number): this {
    // The two statements must not be one: room may replace bytes.
    const at = this.room(1)
    this.bytes[at] = v
    return this
  }
  two(v: number): this {
    return this.byte(v >> 8).byte(v & 255)
  }
  four(v: number): this {
    return this.two(v >>> 16).two(v & 0xffff)
  }
  varint(v: number): this {
    for (; v > 127; v >>>= 7) this.byte((v & 127) | 128)
    return this.byte(v)
  }
  raw(v: Uint8Array): this {
    const at = this.room(v.length)
    this.bytes.set(v, at)
    return this
  }
  binary(v: Uint8Array): this {
    if (v.length > 0xffff) throw new RangeError('a string of MQTT holds at most 65,535 bytes')
    return this.two(v.length).raw(v)
  }
  text(v: string): this {
    return this.binary(encodeUtf8(v))
  }
  properties(p: Properties = {}): this {
    const w = new Writer()
    for (const name in ids) {
      const v = p[name as keyof Properties]
      if (v === undefined) continue
      const id = ids[name as keyof Properties]
      const kind = kinds[id]
      if (kind == Kind.Pair) {
        const pairs = v as string[]
        for (let i = 0; i + 1 < pairs.length; i += 2) w.byte(id).text(pairs[i]!).text(pairs[i + 1]!)
        continue
      }
      w.byte(id)
      if (kind == Kind.Two) w.two(v as number)
      else if (kind == Kind.Four) w.four(v as number)
      else if (kind == Kind.Binary) w.binary(v as Uint8Array)
      else w.text(v as string)
    }
    return this.varint(w.n).raw(w.done())
  }
  done(): Uint8Array {
    return this.bytes.subarray(0, this.n)
  }
}

/** Returns a packet whose first byte is head. It is an ArrayBuffer of exactly its length: wx sends all of a buffer, also what a view leaves out. */
function frame(head: number, body: Writer): ArrayBuffer {
  const bytes = body.done()
  const length = new Writer().byte(head).varint(bytes.length).done()
  const out = new Uint8Array(length.length + bytes.length)
  out.set(length)
  out.set(bytes, length.length)
  return out.buffer
}

/** Returns CONNECT (3.1). */
export function encodeConnect(o: ConnectOptions): ArrayBuffer {
  return frame(CONNECT << 4, new Writer()
    .text('MQTT').byte(5).byte(0xc0 | (o.clean ? 2 : 0)).two(o.keepAlive)
    .properties(o.properties).text(o.clientId).text(o.username).text(o.password))
}

/** Returns PUBLISH (3.3). */
export function encodePublish(o: PublishOptions): ArrayBuffer {
  const w = new Writer().text(o.topic)
  if (o.qos) w.two(o.id!)
  return frame((PUBLISH << 4) | (o.dup ? 8 : 0) | (o.qos << 1), w.properties(o.properties).raw(o.payload))
}

/** Returns PUBACK with reason code 0 (3.4). */
export function encodePuback(id: number): ArrayBuffer {
  return frame(PUBACK << 4, new Writer().two(id))
}

/** Returns SUBSCRIBE (3.8): filters, each with its QoS. */
export function encodeSubscribe(id: number, filters: [filter: string, qos: 0 | 1][]): ArrayBuffer {
  const w = new Writer().two(id).properties()
  for (const [filter, qos] of filters) w.text(filter).byte(qos)
  return frame((SUBSCRIBE << 4) | 2, w)
}

/** Returns UNSUBSCRIBE (3.10). */
export function encodeUnsubscribe(id: number, filters: string[]): ArrayBuffer {
  const w = new Writer().two(id).properties()
  for (const filter of filters) w.text(filter)
  return frame((UNSUBSCRIBE << 4) | 2, w)
}

/** Returns PINGREQ (3.12). */
export function encodePing(): ArrayBuffer {
  return frame(PINGREQ << 4, new Writer())
}

/** Returns DISCONNECT (3.14). */
export function encodeDisconnect(code = 0, properties?: Properties): ArrayBuffer {
  const w = new Writer()
  if (code || properties) {
    w.byte(code)
    if (properties) w.properties(properties)
  }
  return frame(DISCONNECT << 4, w)
}

/** Is thrown for bytes that are not MQTT. The connection they came on is of no more use. */
export class MalformedPacket extends Error {}

/** Takes values off the front of a packet's body. */
class Reader {
  constructor(private bytes: Uint8Array, private at = 0) {}

  get left(): number {
    return this.bytes.length - this.at
  }
  take(n: number): Uint8Array {
    if (n > this.left) throw new MalformedPacket('packet too short')
    return this.bytes.subarray(this.at, (this.at += n))
  }
  byte(): number {
    return this.take(1)[0]!
  }
  two(): number {
    return (this.byte() << 8) | this.byte()
  }
  four(): number {
    return this.two() * 0x10000 + this.two()
  }
  varint(): number {
    let v = 0
    for (let shift = 0; ; shift += 7) {
      if (shift > 21) throw new MalformedPacket('variable byte integer too long')
      const b = this.byte()
      v |= (b & 127) << shift
      if (b < 128) return v
    }
  }
  text(): string {
    return decodeUtf8(this.take(this.two()))
  }
  properties(): Properties {
    const p: Properties = {}
    if (!this.left) return p
    const r = new Reader(this.take(this.varint()))
    while (r.left) {
      const id = r.varint()
      const kind = kinds[id]
      let v: number | string | string[] | Uint8Array
      switch (kind) {
        case Kind.Byte: v = r.byte(); break
        case Kind.Two: v = r.two(); break
        case Kind.Four: v = r.four(); break
        case Kind.Varint: v = r.varint(); break
        case Kind.Text: v = r.text(); break
        case Kind.Binary: v = r.take(r.two()).slice(); break
        case Kind.Pair: v = [...(p.user ?? []), r.text(), r.text()]; break
        default: throw new MalformedPacket(`unknown property ${id}`)
      }
      for (const name in ids) {
        if (ids[name as keyof Properties] == id) (p as Record<string, unknown>)[name] = v
      }
    }
    return p
  }
  rest(): Uint8Array {
    return this.take(this.left)
  }
}

function decode(head: number, body: Uint8Array): Packet {
  const r = new Reader(body)
  const type = head >> 4
  switch (type) {
    case CONNACK:
      return { type, sessionPresent: (r.byte() & 1) == 1, code: r.byte(), properties: r.properties() }
    case PUBLISH: {
      const qos = (head >> 1) & 3
      const topic = r.text()
      const id = qos ? r.two() : 0
      if (qos == 3 || (qos && !id)) throw new MalformedPacket('PUBLISH with QoS 3 or packet id 0')
      const properties = r.properties()
      // A copy, so that the application may keep it without keeping what came with it.
      return { type, qos, dup: (head & 8) > 0, retain: (head & 1) > 0, topic, id, properties, payload: r.rest().slice() }
    }
    case PUBACK:
      return { type, id: r.two(), code: r.left ? r.byte() : 0, properties: r.properties() }
    case SUBACK:
    case UNSUBACK:
      return { type, id: r.two(), properties: r.properties(), codes: [...r.rest()] }
    case PINGRESP:
      return { type, properties: {} }
    case DISCONNECT:
      return { type, code: r.left ? r.byte() : 0, properties: r.properties() }
  }
  throw new MalformedPacket(`packet type ${type} from a server`)
}

/** Cuts the stream of a connection into packets: WebSocket messages may hold several or a part of one (6.0). */
export class Decoder {
  private rest = new Uint8Array(0)

  /** @param limit largest packet in bytes */
  constructor(private limit = 1 << 20) {}

  /** Takes bytes that came and returns the packets that are complete with them. Throws MalformedPacket. */
  push(data: ArrayBuffer): Packet[] {
    let bytes = new Uint8Array(data)
    if (this.rest.length) {
      const joined = new Uint8Array(this.rest.length + bytes.length)
      joined.set(this.rest)
      joined.set(bytes, this.rest.length)
      bytes = joined
    }
    const packets: Packet[] = []
    let at = 0
    for (;;) {
      // The fixed header: a byte, then the remaining length in one to four (2.1.4).
      let length = 0
      let head = 1
      let more = true
      for (; more && at + head < bytes.length; head++) {
        if (head > 4) throw new MalformedPacket('remaining length too long')
        const b = bytes[at + head]!
        length |= (b & 127) << (7 * (head - 1))
        more = b > 127
      }
      if (more) break
      if (length > this.limit) throw new MalformedPacket(`packet of ${length} bytes; at most ${this.limit} are taken`)
      if (at + head + length > bytes.length) break
      packets.push(decode(bytes[at]!, bytes.subarray(at + head, at + head + length)))
      at += head + length
    }
    this.rest = bytes.slice(at)
    return packets
  }
}
