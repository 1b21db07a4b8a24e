// The connection against a server that the test plays.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Connection, tokenExpiry } from '../src/connection.js'
import type { ConnectionOptions, State, TokenReason } from '../src/connection.js'
import { MynahError } from '../src/error.js'
import { FakePlatform, token } from './fake.js'

function setUp(o: Partial<ConnectionOptions> = {}) {
  const platform = new FakePlatform()
  const asked: TokenReason[] = []
  const c = new Connection({
    platform, url: 'ws://x/mqtt', clientId: 'phone', minBackoff: 1, maxBackoff: 4, probeTimeout: 20, timeout: 200,
    getToken: ({ reason }) => { asked.push(reason); return token() }, ...o,
  })
  const states: State[] = []
  c.on('state', (s) => states.push(s))
  return { platform, c, asked, states, names: () => states.map((s) => s.name) }
}

/** Waits until f holds. */
async function until(what: string, f: () => boolean) {
  const deadline = Date.now() + 10e3
  while (!f()) {
    if (Date.now() > deadline) assert.fail(`${what} did not come`)
    await new Promise((r) => setTimeout(r, 1))
  }
}

test('connects, publishes and reads the seq', async () => {
  const { platform, c, states, names, asked } = setUp()
  c.start()
  const peer = await platform.peer(1)
  const connect = await peer.accept({ sessionPresent: true })
  assert.equal(connect.clientId, 'phone')
  assert.equal(connect.clean, false)
  assert.equal(connect.properties.sessionExpiryInterval, 7 * 86400)
  assert.ok(connect.keepalive > 25)
  assert.deepEqual(names(), ['connecting', 'syncing'])
  c.synced()
  assert.equal(c.state.name, 'live')

  const ack = c.publish('user/bob', { type: 'text', body: '你好' })
  const pub = await peer.next('publish')
  assert.equal(pub.qos, 1)
  assert.equal(pub.payload.toString(), '{"type":"text","body":"你好"}')
  peer.send({ cmd: 'puback', messageId: pub.messageId, reasonCode: 0, properties: { userProperties: { seq: '17' } } })
  assert.deepEqual(await ack, { seq: 17 })

  const refused = c.publish('group/x', 'hi')
  const second = await peer.next('publish', 2)
  peer.send({ cmd: 'puback', messageId: second.messageId, reasonCode: 0x87, properties: { reasonString: 'you are not a member', userProperties: { code: 'not_member' } } })
  await assert.rejects(refused, (e: MynahError) => e.code == 'not_member' && e.message == 'you are not a member' && !e.retryable)

  const filters = c.subscribe([['user/alice', 1], ['user/bob', 1]])
  const sub = await peer.next('subscribe')
  peer.send({ cmd: 'suback', messageId: sub.messageId, granted: [1, 0x87] })
  assert.deepEqual(await filters, ['user/bob'])

  c.stop()
  await peer.next('disconnect')
  assert.ok(peer.closed)
  assert.deepEqual(states.at(-1), { name: 'stopped', reason: 'stopped' })
  assert.equal(platform.watched, 0)
  assert.deepEqual(asked, ['start'])
})

test('a message is acknowledged after its listeners, and not if the connection is another one', async () => {
  const { platform, c } = setUp()
  const got: string[] = []
  c.on('message', (topic, payload) => got.push(`${topic} ${Buffer.from(payload)}`))
  c.start()
  const peer = await platform.peer(1)
  await peer.accept()
  peer.send({ cmd: 'publish', topic: 'user/alice', payload: 'x', qos: 1, messageId: 9, dup: false, retain: false })
  assert.deepEqual(got, ['user/alice x'])
  assert.equal((await peer.next('puback')).messageId, 9)
  c.on('message', () => c.stop())
  peer.send({ cmd: 'publish', topic: 'user/alice', payload: 'y', qos: 1, messageId: 10, dup: false, retain: false })
  assert.equal(peer.got.filter((p) => p.cmd == 'puback').length, 2)
})

test('what is under way fails as offline when the connection ends, and it comes back', async () => {
  const { platform, c, names, asked } = setUp()
  c.start()
  const peer = await platform.peer(1)
  await peer.accept()
  const sent = c.publish('user/bob', 'x')
  peer.end()
  await assert.rejects(sent, (e: MynahError) => e.code == 'offline' && e.retryable)
  assert.equal(c.state.name, 'waiting')
  await assert.rejects(c.publish('user/bob', 'x'), (e: MynahError) => e.code == 'offline')
  const again = await platform.peer(2)
  await again.accept()
  assert.deepEqual(names(), ['connecting', 'syncing', 'waiting', 'connecting', 'syncing'])
  assert.deepEqual(asked, ['start'], 'a good token is used again')
  c.stop()
})

test('a dead connection is found in the foreground without a close event', async () => {
  const { platform, c } = setUp()
  c.start()
  const peer = await platform.peer(1)
  await peer.accept()
  platform.wake()
  platform.wake()
  await peer.next('pingreq')
  const again = await platform.peer(2) // no answer came
  assert.ok(peer.closed)
  assert.equal(peer.got.filter((p) => p.cmd == 'pingreq').length, 1)
  await again.accept()
  platform.wake()
  await again.next('pingreq')
  again.send({ cmd: 'pingresp' })
  await new Promise((r) => setTimeout(r, 60))
  assert.equal(c.state.name, 'syncing', 'an answered ping changes nothing')
  c.stop()
})

test('it connects at once when the network is back', async () => {
  const { platform, c } = setUp({ minBackoff: 1e6, maxBackoff: 1e6, random: () => 0.9 })
  c.start()
  ;(await platform.peer(1)).end()
  await until('waiting', () => c.state.name == 'waiting')
  platform.wake('network')
  await (await platform.peer(2)).accept()
  c.stop()
})

test('the wait between tries is random below a bound that doubles', async () => {
  const waits: number[] = []
  let r = 0
  const { platform, c } = setUp({ minBackoff: 2, maxBackoff: 10, random: () => [0.5, 0.999, 0][r++ % 3]! })
  c.on('state', (s) => { if (s.name == 'waiting') waits.push(s.retryAt - Date.now()) })
  c.start()
  for (let i = 1; i <= 6; i++) (await platform.peer(i)).end()
  await until('six waits', () => waits.length == 6)
  c.stop()
  for (const [i, most] of [2, 4, 8, 10, 10, 10].entries()) assert.ok(waits[i]! <= most, `${waits}`)
})

test('a refused token is asked for again, and only none at all is final', async () => {
  const answers: (string | null | Error)[] = [token(), token(), new Error('no network'), token(), null]
  const { platform, c, states } = setUp({
    getToken: ({ reason }) => {
      reasons.push(reason)
      const a = answers.shift()!
      if (a instanceof Error) throw a
      return a
    },
  })
  const reasons: TokenReason[] = []
  c.start()
  for (let i = 1; i <= 3; i++) {
    const peer = await platform.peer(i)
    peer.open()
    await peer.next('connect')
    peer.send({ cmd: 'connack', sessionPresent: false, reasonCode: 0x87, properties: { reasonString: 'the token has expired' } })
  }
  await until('the end', () => c.state.name == 'stopped')
  assert.deepEqual(reasons, ['start', 'refused', 'refused', 'refused', 'refused'])
  assert.deepEqual(states.at(-1), { name: 'stopped', reason: 'no_token' })
})

test('one call of the token provider is in flight at a time', async () => {
  let calls = 0
  let give: (t: string) => void = () => {}
  const { platform, c } = setUp({ getToken: () => { calls++; return new Promise<string>((r) => (give = r)) } })
  c.start()
  platform.wake('network')
  c.start()
  assert.equal(calls, 1)
  give(token())
  await (await platform.peer(1)).accept()
  c.stop()
})

test('the token is renewed on the connection before it ends', async () => {
  const { platform, c, asked } = setUp({ getToken: ({ reason }) => { asked.push(reason); return token(asked.length == 1 ? 200 : 3600e3) } })
  c.start()
  const peer = await platform.peer(1)
  await peer.accept()
  const pub = await peer.next('publish')
  assert.equal(pub.topic, '$mynah/token')
  assert.deepEqual(asked, ['start', 'renew'])
  peer.send({ cmd: 'puback', messageId: pub.messageId, reasonCode: 0 })
  c.stop()
})

test('a takeover by the same device is final until it is started again', async () => {
  const { platform, c } = setUp()
  c.start()
  const peer = await platform.peer(1)
  await peer.accept()
  peer.send({ cmd: 'disconnect', reasonCode: 0x8e })
  assert.deepEqual(c.state, { name: 'stopped', reason: 'taken_over' })
  c.start()
  await (await platform.peer(2)).accept()
  c.stop()
})

test('bytes that are not MQTT end the connection, and it tries again', async () => {
  const { platform, c } = setUp()
  c.start()
  const peer = await platform.peer(1)
  await peer.accept()
  peer.raw('0000')
  assert.equal(c.state.name, 'waiting')
  await (await platform.peer(2)).accept()
  c.stop()
})

test('no answer to CONNECT is an answer', async () => {
  const { platform, c } = setUp({ timeout: 10 })
  c.start()
  ;(await platform.peer(1)).open()
  await (await platform.peer(2)).accept()
  c.stop()
})

test('when a token ends', () => {
  const t = token(5000)
  assert.ok(Math.abs(tokenExpiry(t)! - Date.now() - 5000) < 2000)
  for (const bad of ['', 'a', 'a.b.c', `a.${Buffer.from('{"exp":"x"}').toString('base64url')}.c`]) assert.equal(tokenExpiry(bad), undefined)
})
