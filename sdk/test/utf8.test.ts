// UTF-8 against the platform's own, which mini-programs do not have.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { decodeUtf8, encodeUtf8 } from '../src/utf8.js'

test('every code point goes there and back', () => {
  for (let c = 0; c <= 0x10ffff; c++) {
    if (c >= 0xd800 && c < 0xe000) continue
    const s = String.fromCodePoint(c)
    const b = encodeUtf8(s)
    if (!Buffer.from(b).equals(Buffer.from(s)) || decodeUtf8(b) != s) assert.fail(`U+${c.toString(16)}: ${b}`)
  }
})

test('unpaired surrogates become U+FFFD', () => {
  for (const s of ['\ud800', 'a\udc00b', '\udc00\ud800', '\ud83d\ud83d\ude00', '\ud83d']) {
    assert.deepEqual(encodeUtf8(s), new TextEncoder().encode(s))
  }
})

test('any bytes are read as the platform reads them', () => {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  const edge = [0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5, 0xff]
  const check = (b: number[]) => {
    const bytes = new Uint8Array(b)
    if (decodeUtf8(bytes) != decoder.decode(bytes)) assert.fail(`${b}: ${JSON.stringify(decodeUtf8(bytes))}`)
  }
  for (const a of edge) for (const b of edge) for (const c of edge) for (const d of edge) check([a, b, c, d])
  for (const a of edge) for (const b of edge) check([a, b])
})

test('long texts', () => {
  const s = '我家在上海东边👨‍👩‍👧 hello '.repeat(2000)
  assert.equal(decodeUtf8(encodeUtf8(s)), s)
})
