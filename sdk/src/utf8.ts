// UTF-8 in both directions. WeChat's mini-programs have neither TextEncoder nor
// TextDecoder on devices, and a browser's are no faster for short strings.

/** Returns the UTF-8 bytes of a string. An unpaired surrogate becomes U+FFFD, as the WHATWG encoder does it. */
export function encodeUtf8(text: string): Uint8Array {
  // Three bytes for each UTF-16 unit are enough: four are needed for two of them only.
  const bytes = new Uint8Array(text.length * 3)
  let n = 0
  for (let i = 0; i < text.length; i++) {
    let c = text.charCodeAt(i)
    if (c >= 0xd800 && c < 0xe000) {
      const low = text.charCodeAt(i + 1)
      if (c < 0xdc00 && low >= 0xdc00 && low < 0xe000) {
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00)
        i++
      } else {
        c = 0xfffd
      }
    }
    if (c < 0x80) {
      bytes[n++] = c
      continue
    }
    if (c < 0x800) {
      bytes[n++] = 0xc0 | (c >> 6)
    } else {
      if (c < 0x10000) {
        bytes[n++] = 0xe0 | (c >> 12)
      } else {
        bytes[n++] = 0xf0 | (c >> 18)
        bytes[n++] = 0x80 | ((c >> 12) & 63)
      }
      bytes[n++] = 0x80 | ((c >> 6) & 63)
    }
    bytes[n++] = 0x80 | (c & 63)
  }
  return bytes.slice(0, n)
}

/** Returns the text of UTF-8 bytes. What is no UTF-8 becomes U+FFFD, one for each maximal part, as the WHATWG decoder does it. */
export function decodeUtf8(bytes: Uint8Array): string {
  let text = ''
  let units: number[] = []
  for (let i = 0; i < bytes.length; ) {
    let c = bytes[i++]!
    if (c >= 0x80) {
      // How many bytes follow, and the range of the first of them: it excludes
      // overlong forms, surrogates and what is beyond U+10FFFF.
      let more = 0
      let low = 0x80
      let high = 0xbf
      if (c >= 0xc2 && c < 0xe0) {
        more = 1
        c &= 31
      } else if (c >= 0xe0 && c < 0xf0) {
        more = 2
        if (c == 0xe0) low = 0xa0
        if (c == 0xed) high = 0x9f
        c &= 15
      } else if (c >= 0xf0 && c < 0xf5) {
        more = 3
        if (c == 0xf0) low = 0x90
        if (c == 0xf4) high = 0x8f
        c &= 7
      } else {
        c = 0xfffd
      }
      for (; more > 0; more--) {
        const next = i < bytes.length ? bytes[i]! : 0
        if (next < low || next > high) {
          c = 0xfffd
          break
        }
        c = (c << 6) | (next & 63)
        low = 0x80
        high = 0xbf
        i++
      }
    }
    if (c >= 0x10000) {
      c -= 0x10000
      units.push(0xd800 + (c >> 10))
      c = 0xdc00 + (c & 0x3ff)
    }
    units.push(c)
    if (units.length >= 4096) {
      text += String.fromCharCode(...units)
      units = []
    }
  }
  return text + String.fromCharCode(...units)
}
