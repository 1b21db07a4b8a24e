// The codec against npm's mqtt-packet, byte by byte, and against what breaks MQTT.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import mqtt from 'mqtt-packet'
import * as packet from '../src/packet.js'

const v5 = { protocolVersion: 5 }
const bytes = (s: string) => new Uint8Array(Buffer.from(s))
const hex = (b: ArrayBuffer | Uint8Array) => Buffer.from(b as ArrayBuffer).toString('hex')

/** What mqtt-packet makes of a description. */
const theirs = (p: object) => hex(mqtt.generate(p as Parameters<typeof mqtt.generate>[0], v5))

test('CONNECT is what mqtt-packet makes', () => {
  for (const clean of [true, false]) {
    assert.equal(
      hex(packet.encodeConnect({
        clientId: 'phone-1', username: 'alice', password: 'token', keepAlive: 30, clean,
        properties: { sessionExpiry: 604800, receiveMaximum: 100, maximumPacketSize: 1 << 20 },
      })),
      theirs({
        cmd: 'connect', protocolId: 'MQTT', protocolVersion: 5, clean, clientId: 'phone-1', keepalive: 30,
        username: 'alice', password: Buffer.from('token'),
        properties: { sessionExpiryInterval: 604800, receiveMaximum: 100, maximumPacketSize: 1 << 20 },
      }),
    )
  }
})

test('PUBLISH is what mqtt-packet makes', () => {
  for (const size of [0, 1, 100, 127, 128, 16383, 16384, 70000]) {
    for (const dup of [false, true]) {
      const payload = bytes('你'.repeat(size / 3) + 'x'.repeat(size % 3))
      assert.equal(
        hex(packet.encodePublish({
          topic: 'group/群', payload, qos: 1, id: 65535, dup,
          properties: { responseTopic: '$mynah/reply/1', correlationData: bytes('\0\xff'), user: ['k', 'v', 'k', 'w'] },
        })),
        theirs({
          cmd: 'publish', topic: 'group/群', payload: Buffer.from(payload), qos: 1, messageId: 65535, dup, retain: false,
          properties: { responseTopic: '$mynah/reply/1', correlationData: Buffer.from('\0\xff'), userProperties: { k: ['v', 'w'] } },
        }),
      )
    }
  }
  assert.equal(
    hex(packet.encodePublish({ topic: 'user/bob/signal', payload: bytes('{}'), qos: 0 })),
    theirs({ cmd: 'publish', topic: 'user/bob/signal', payload: '{}', qos: 0, dup: false, retain: false }),
  )
})

test('the other packets are what mqtt-packet makes', () => {
  assert.equal(
    hex(packet.encodeSubscribe(7, [['user/alice', 1], ['group/+/signal', 0]])),
    theirs({ cmd: 'subscribe', messageId: 7, subscriptions: [{ topic: 'user/alice', qos: 1 }, { topic: 'group/+/signal', qos: 0 }] }),
  )
  assert.equal(hex(packet.encodeUnsubscribe(8, ['a', 'b/c'])), theirs({ cmd: 'unsubscribe', messageId: 8, unsubscriptions: ['a', 'b/c'] }))
  assert.equal(hex(packet.encodePing()), theirs({ cmd: 'pingreq' }))
  // mqtt-packet writes reason code and an empty property length where both may be left out (3.4.2.1).
  assert.equal(hex(packet.encodePuback(9)), '40020009')
  assert.equal(hex(packet.encodeDisconnect()), 'e000')
  assert.equal(hex(packet.encodeDisconnect(0, { sessionExpiry: 0 })), theirs({ cmd: 'disconnect', reasonCode: 0, properties: { sessionExpiryInterval: 0 } }))
})

test('a frame is an ArrayBuffer of exactly its length', () => {
  for (const p of [packet.encodePing(), packet.encodePuback(1), packet.encodeSubscribe(1, [['a', 1]])]) {
    assert.ok(p instanceof ArrayBuffer)
    assert.equal(p.byteLength, 2 + new Uint8Array(p)[1]!)
  }
})

/** Packets of a server, and what is to be read from them. */
const incoming: [object, object][] = [
  [
    { cmd: 'connack', sessionPresent: true, reasonCode: 0, properties: { assignedClientIdentifier: 'x', serverKeepAlive: 20, receiveMaximum: 1024, sharedSubscriptionAvailable: true, userProperties: { a: '1' } } },
    { type: packet.CONNACK, sessionPresent: true, code: 0, properties: { assignedClientId: 'x', serverKeepAlive: 20, receiveMaximum: 1024, user: ['a', '1'] } },
  ],
  [
    { cmd: 'publish', topic: 'group/群', payload: Buffer.from('{"a":"你"}'), qos: 1, messageId: 300, dup: true, retain: false, properties: { subscriptionIdentifier: 300, contentType: 'application/json', messageExpiryInterval: 5 } },
    { type: packet.PUBLISH, qos: 1, dup: true, retain: false, topic: 'group/群', id: 300, payload: bytes('{"a":"你"}'), properties: { contentType: 'application/json', messageExpiry: 5 } },
  ],
  [
    { cmd: 'puback', messageId: 5, reasonCode: 0x87, properties: { reasonString: 'not a member', userProperties: { seq: '17' } } },
    { type: packet.PUBACK, id: 5, code: 0x87, properties: { reason: 'not a member', user: ['seq', '17'] } },
  ],
  [{ cmd: 'suback', messageId: 6, granted: [1, 0x87] }, { type: packet.SUBACK, id: 6, codes: [1, 0x87], properties: {} }],
  [{ cmd: 'unsuback', messageId: 6, granted: [0, 17] }, { type: packet.UNSUBACK, id: 6, codes: [0, 17], properties: {} }],
  [{ cmd: 'pingresp' }, { type: packet.PINGRESP, properties: {} }],
  [{ cmd: 'disconnect', reasonCode: 0x8b, properties: { reasonString: 'bye' } }, { type: packet.DISCONNECT, code: 0x8b, properties: { reason: 'bye' } }],
]

test('what mqtt-packet makes is read, however it is cut', () => {
  const stream = Buffer.concat(incoming.map(([p]) => mqtt.generate(p as Parameters<typeof mqtt.generate>[0], v5)))
  const want = incoming.map(([, p]) => p)
  for (let size = 1; size <= stream.length; size++) {
    const d = new packet.Decoder()
    const got: packet.Packet[] = []
    for (let at = 0; at < stream.length; at += size) {
      const part = stream.subarray(at, at + size)
      got.push(...d.push(part.buffer.slice(part.byteOffset, part.byteOffset + part.length) as ArrayBuffer))
    }
    assert.deepEqual(got, want)
  }
})

test('what is not MQTT is refused', () => {
  for (const [why, text] of Object.entries({
    'remaining length of five bytes': '30ffffffff01',
    'packet larger than the limit': '30ffffff7f',
    'packet of a client': 'c000',
    'packet type 0': '0000',
    'CONNACK too short': '200100',
    'topic beyond the packet': '3003000961',
    'QoS 3': '3605000161000100',
    'packet id 0': '3206000161000000',
    'unknown property': '2005000002ff00',
    'property beyond its length': '2006000003110000',
    'properties beyond the packet': '2003000005',
    'property length of five bytes': '20080000ffffffff7f01',
  })) {
    const b = Buffer.from(text, 'hex')
    assert.throws(() => new packet.Decoder(1 << 20).push(b.buffer.slice(b.byteOffset, b.byteOffset + b.length) as ArrayBuffer), packet.MalformedPacket, why)
  }
})

test('two decoders share nothing', () => {
  const a = new packet.Decoder()
  const b = new packet.Decoder()
  assert.deepEqual(a.push(new Uint8Array([0xd0]).buffer), [])
  assert.deepEqual(b.push(new Uint8Array([0xd0, 0]).buffer), [{ type: packet.PINGRESP, properties: {} }])
  assert.deepEqual(a.push(new Uint8Array([0]).buffer), [{ type: packet.PINGRESP, properties: {} }])
})
