// The mini-program's platform against a wx that behaves as documented.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { WxPlatform } from '../src/wx.js'
import type { WxLike } from '../src/wx.js'

type Handlers = { open?: () => void; message?: (m: { data: ArrayBuffer | string }) => void; close?: (r: object) => void; error?: (e: object) => void }

function fakeWx() {
  const sockets: { o: Parameters<WxLike['connectSocket']>[0]; h: Handlers; sent: ArrayBuffer[]; closed: number; failSend: boolean }[] = []
  const requests: Parameters<WxLike['request']>[0][] = []
  const store = new Map<string, string>()
  const shows = new Set<() => void>()
  const networks = new Set<(r: { isConnected: boolean }) => void>()
  const wx: WxLike = {
    connectSocket(o) {
      const s = { o, h: {} as Handlers, sent: [] as ArrayBuffer[], closed: 0, failSend: false }
      sockets.push(s)
      return {
        onOpen: (f) => { s.h.open = f },
        onMessage: (f) => { s.h.message = f },
        onClose: (f) => { s.h.close = f },
        onError: (f) => { s.h.error = f },
        send: (m) => { if (s.failSend) m.fail?.({ errMsg: 'sendSocketMessage:fail' }); else s.sent.push(m.data) },
        close: () => { s.closed++ },
      }
    },
    request: (o) => { requests.push(o) },
    getStorage: (o) => (store.has(o.key) ? o.success({ data: store.get(o.key) }) : o.fail()),
    setStorage: (o) => (o.data.length > 100 ? o.fail({ errMsg: 'setStorage:fail limit' }) : (store.set(o.key, o.data), o.success())),
    removeStorage: (o) => { store.delete(o.key); o.complete() },
    onAppShow: (f) => { shows.add(f) },
    offAppShow: (f) => { shows.delete(f) },
    onNetworkStatusChange: (f) => { networks.add(f) },
    offNetworkStatusChange: (f) => { networks.delete(f) },
  }
  return { wx, sockets, requests, shows, networks }
}

test('a socket: subprotocol, events, one close, and its place given back', () => {
  const { wx, sockets } = fakeWx()
  const log: string[] = []
  const events = { open: () => log.push('open'), message: (d: ArrayBuffer) => log.push(`message ${d.byteLength}`), close: (why: string) => log.push(`close ${why}`) }
  const p = new WxPlatform(wx)
  const socket = p.connect('wss://chat.example/mqtt', events)
  const s = sockets[0]!
  assert.deepEqual([s.o.url, s.o.protocols, s.o.tcpNoDelay], ['wss://chat.example/mqtt', ['mqtt'], true])
  assert.deepEqual(Object.keys(s.h).sort(), ['close', 'error', 'message', 'open'], 'all handlers at once, or an event is lost')
  s.h.open!()
  s.h.message!({ data: new ArrayBuffer(3) })
  s.h.message!({ data: 'text is not MQTT' })
  socket.send(new ArrayBuffer(2))
  assert.equal(s.sent[0]!.byteLength, 2)
  s.failSend = true
  socket.send(new ArrayBuffer(2))
  s.h.close!({ code: 1006, reason: 'abnormal' })
  assert.deepEqual(log, ['open', 'message 3', 'close sendSocketMessage:fail'])
  socket.close()
  assert.equal(s.closed, 1)

  const second = p.connect('wss://chat.example/mqtt', events)
  second.close() // while it opens
  sockets[1]!.h.open!()
  sockets[1]!.h.close!({})
  sockets[1]!.o.fail({ errMsg: 'late' })
  assert.equal(log.length, 3, 'nothing comes after close')
  assert.equal(sockets[1]!.closed, 1)
})

test('requests: PATCH is a POST with an override, text stays text, failures reject', async () => {
  const { wx, requests } = fakeWx()
  const p = new WxPlatform(wx)
  const answer = p.request({ method: 'PATCH', url: 'https://x/v1/me', headers: { Authorization: 'Bearer t' }, body: '{"name":"A"}', timeout: 1000 })
  const r = requests[0]!
  assert.deepEqual([r.method, r.header['X-HTTP-Method-Override'], r.data, r.dataType], ['POST', 'PATCH', '{"name":"A"}', 'text'])
  r.success({ statusCode: 200, header: { 'Content-Type': 'application/json' }, data: '{"id":1}' })
  assert.deepEqual(await answer, { status: 200, headers: { 'content-type': 'application/json' }, body: '{"id":1}' })
  const failed = p.request({ method: 'GET', url: 'https://x', headers: {}, timeout: 1 })
  requests[1]!.fail({ errMsg: 'request:fail interrupted' })
  await assert.rejects(failed, /interrupted/)
})

test('storage, and what wakes the client', async () => {
  const { wx, shows, networks } = fakeWx()
  const p = new WxPlatform(wx)
  assert.equal(await p.storage.get('k'), undefined)
  await p.storage.set('k', '你好')
  assert.equal(await p.storage.get('k'), '你好')
  await p.storage.remove('k')
  assert.equal(await p.storage.get('k'), undefined)
  await assert.rejects(p.storage.set('k', 'x'.repeat(101)), /limit/)
  const woken: string[] = []
  const end = p.onWake((why) => woken.push(why))
  for (const f of shows) f()
  for (const f of networks) { f({ isConnected: false }); f({ isConnected: true }) }
  assert.deepEqual(woken, ['foreground', 'network'])
  end()
  assert.equal(shows.size + networks.size, 0)
  const bare = new WxPlatform({ ...wx, onAppShow: undefined, onNetworkStatusChange: undefined } as unknown as WxLike)
  bare.onWake(() => {})()
})
