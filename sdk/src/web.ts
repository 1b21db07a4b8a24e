// Browsers and Node.

import { MemoryStorage } from './platform.js'
import type { HttpRequest, HttpResponse, Platform, Socket, SocketEvents, Storage, WakeReason } from './platform.js'

/** The part of WebSocket that is used. */
interface WebSocketLike {
  binaryType: string
  onopen: ((e: never) => void) | null
  onmessage: ((e: { data: unknown }) => void) | null
  onclose: ((e: { code: number; reason: string }) => void) | null
  onerror: ((e: never) => void) | null
  readonly readyState: number
  send(data: ArrayBuffer): void
  close(): void
}

/** A constructor like WebSocket. Node 20 has none of its own: give that of package ws. */
export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocketLike

/** Options of a WebPlatform. */
export interface WebOptions {
  /** Default: the global one. */
  webSocket?: WebSocketConstructor
  /** Default: localStorage where there is one, else memory. */
  storage?: Storage
}

class LocalStorage implements Storage {
  async get(key: string): Promise<string | undefined> {
    return localStorage.getItem(key) ?? undefined
  }
  async set(key: string, value: string): Promise<void> {
    localStorage.setItem(key, value)
  }
  async remove(key: string): Promise<void> {
    localStorage.removeItem(key)
  }
}

/** Reports whether localStorage is there and may be used: a sandboxed frame throws. */
function hasLocalStorage(): boolean {
  try {
    return typeof localStorage == 'object' && localStorage !== null
  } catch {
    return false
  }
}

/** Browsers and Node. */
export class WebPlatform implements Platform {
  readonly storage: Storage
  private webSocket: WebSocketConstructor

  constructor(o: WebOptions = {}) {
    const found = o.webSocket ?? (globalThis as { WebSocket?: unknown }).WebSocket
    if (!found) throw new TypeError('there is no WebSocket here; give one as option webSocket (in Node before 22, that of package ws)')
    this.webSocket = found as WebSocketConstructor
    this.storage = o.storage ?? (hasLocalStorage() ? new LocalStorage() : new MemoryStorage())
  }

  connect(url: string, events: SocketEvents): Socket {
    let ws: WebSocketLike
    let over = false
    const end = (why: string) => {
      if (over) return
      over = true
      events.close(why)
    }
    try {
      ws = new this.webSocket(url, ['mqtt'])
    } catch (e) {
      // Not at once: whoever connects does not have the socket yet.
      void Promise.resolve().then(() => end(String(e)))
      return { send() {}, close() { over = true } }
    }
    ws.binaryType = 'arraybuffer'
    ws.onopen = () => over || events.open()
    ws.onmessage = (e) => over || events.message(e.data as ArrayBuffer)
    ws.onclose = (e) => end(`WebSocket closed: ${e.code} ${e.reason}`.trim())
    ws.onerror = () => end('WebSocket failed')
    return {
      send(data) {
        // In state CLOSING send does nothing, and onclose follows.
        if (!over && ws.readyState == 1) ws.send(data)
      },
      close() {
        over = true
        ws.close()
      },
    }
  }

  async request(r: HttpRequest): Promise<HttpResponse> {
    const abort = new AbortController()
    const timer = setTimeout(() => abort.abort(), r.timeout)
    try {
      const init: RequestInit = { method: r.method, headers: r.headers, signal: abort.signal }
      if (r.body !== undefined) init.body = r.body
      const answer = await fetch(r.url, init)
      const headers: Record<string, string> = {}
      answer.headers.forEach((v, k) => (headers[k] = v))
      return { status: answer.status, headers, body: await answer.text() }
    } finally {
      clearTimeout(timer)
    }
  }

  onWake(f: (why: WakeReason) => void): () => void {
    if (typeof addEventListener != 'function' || typeof document == 'undefined') return () => {}
    const online = () => f('network')
    const visible = () => document.visibilityState == 'visible' && f('foreground')
    const show = () => f('foreground') // back from the page cache, where sockets are dead
    addEventListener('online', online)
    addEventListener('pageshow', show)
    document.addEventListener('visibilitychange', visible)
    return () => {
      removeEventListener('online', online)
      removeEventListener('pageshow', show)
      document.removeEventListener('visibilitychange', visible)
    }
  }

  async exclusive<T>(name: string, f: () => Promise<T>): Promise<T> {
    const locks = typeof navigator == 'object' ? navigator.locks : undefined
    return locks ? locks.request(name, f) as Promise<T> : f()
  }
}
