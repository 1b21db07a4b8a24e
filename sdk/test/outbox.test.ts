// Messages on their way: in order, kept, sent again under their mid, never "sent" too early.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Ack } from '../src/connection.js'
import { MynahError } from '../src/error.js'
import { Outbox } from '../src/outbox.js'
import type { Outgoing, Sending } from '../src/outbox.js'
import { FakePlatform } from './fake.js'

/** A server that answers when the test says so. */
class Server {
  got: { topic: string; m: Outgoing; ack: (seq: number) => void; fail: (e: Error) => void }[] = []
  private waiting: (() => void)[] = []

  publish = (topic: string, m: Outgoing): Promise<Ack> =>
    new Promise((resolve, reject) => {
      this.got.push({ topic, m, ack: (seq) => resolve({ seq }), fail: reject })
      for (const f of this.waiting.splice(0)) f()
    })

  /** Waits for the n-th publish. */
  async nth(n: number) {
    while (this.got.length < n) await new Promise<void>((resolve) => this.waiting.push(resolve))
    return this.got[n - 1]!
  }
  /** The connection ends: what is under way gets no answer. */
  cut() {
    for (const g of this.got) g.fail(new MynahError('offline'))
  }
}

function setUp(platform = new FakePlatform(), underWay?: number) {
  const server = new Server()
  const changes: Sending[] = []
  const outbox = new Outbox(platform, 'outbox', server.publish, (s) => changes.push(s), underWay)
  return { platform, server, outbox, changes }
}

const settled = () => new Promise((r) => setTimeout(r, 5))

test('nothing is sent while there is no connection, and all in order when there is', async () => {
  const { outbox, server } = setUp()
  const sent = ['a', 'b', 'c'].map((body) => outbox.add('user/bob', { mid: body, type: 'text', body }))
  await settled()
  assert.equal(server.got.length, 0)
  assert.deepEqual(sent.map((s) => s.state.name), ['queued', 'queued', 'queued'])
  outbox.setOnline(true)
  ;(await server.nth(3))
  assert.deepEqual(server.got.map((g) => g.m.mid), ['a', 'b', 'c'])
  server.got[0]!.ack(17)
  assert.equal(await sent[0]!.done(), 17)
  assert.equal(sent[1]!.state.name, 'queued', 'never sent before its acknowledgement')
  assert.deepEqual(outbox.waiting, [sent[1], sent[2]])
})

test('what got no answer is sent again on the next connection under the same mid', async () => {
  const { outbox, server } = setUp()
  outbox.setOnline(true)
  const s = outbox.add('user/bob', { mid: 'm', type: 'text', body: 'x' })
  await server.nth(1)
  outbox.setOnline(false)
  server.cut()
  await settled()
  assert.equal(s.state.name, 'queued')
  outbox.setOnline(true)
  const again = await server.nth(2)
  assert.equal(again.m.mid, 'm')
  again.ack(4)
  assert.equal(await s.done(), 4)
  assert.equal(outbox.waiting.length, 0)
})

test('a refusal is final for that message and holds up no other', async () => {
  const { outbox, server, changes } = setUp()
  outbox.setOnline(true)
  const bad = outbox.add('group/x', { mid: '1', type: 'text', body: 'x' })
  const good = outbox.add('user/bob', { mid: '2', type: 'text', body: 'y' })
  await server.nth(2)
  server.got[0]!.fail(new MynahError('not_member', 'you are not a member'))
  server.got[1]!.ack(9)
  await assert.rejects(bad.done(), (e: MynahError) => e.code == 'not_member')
  assert.equal(await good.done(), 9)
  assert.ok(changes.includes(bad))
  outbox.resend(bad)
  assert.equal(bad.state.name, 'queued')
  ;(await server.nth(3)).ack(10)
  assert.equal(await bad.done(), 10)
})

test('what waits survives the end of the program', async () => {
  const first = setUp()
  first.outbox.add('user/bob', { mid: 'a', type: 'text', body: '你好' })
  first.outbox.add('group/g', { mid: 'b', type: 'image', body: { media: 'x' } })
  await settled()
  const second = setUp(first.platform)
  await second.outbox.ready()
  const later = second.outbox.add('user/bob', { mid: 'c', type: 'text', body: 'later' })
  second.outbox.setOnline(true)
  await second.server.nth(3)
  assert.deepEqual(second.server.got.map((g) => [g.topic, g.m.mid, g.m.body]), [
    ['user/bob', 'a', '你好'], ['group/g', 'b', { media: 'x' }], ['user/bob', 'c', 'later'],
  ])
  for (const [i, g] of second.server.got.entries()) g.ack(i + 1)
  assert.equal(await later.done(), 3)
  await settled()
  assert.equal(await first.platform.storage.get('outbox'), undefined)
})

test('only some are under way at a time', async () => {
  const { outbox, server } = setUp(new FakePlatform(), 2)
  outbox.setOnline(true)
  for (let i = 0; i < 5; i++) outbox.add('user/bob', { mid: `${i}`, type: 'text', body: i })
  await settled()
  assert.equal(server.got.length, 2)
  server.got[1]!.ack(1)
  await server.nth(3)
  assert.deepEqual(server.got.map((g) => g.m.mid), ['0', '1', '2'])
})

test('what is stored and cannot be read is left out; a full storage keeps nobody from sending', async () => {
  const platform = new FakePlatform()
  await platform.storage.set('outbox', '{not json')
  platform.storage.set = async () => { throw new Error('full') }
  const { outbox, server } = setUp(platform)
  await outbox.ready()
  outbox.setOnline(true)
  const s = outbox.add('user/bob', { mid: 'm', type: 'text', body: 'x' })
  ;(await server.nth(1)).ack(5)
  assert.equal(await s.done(), 5)
})
