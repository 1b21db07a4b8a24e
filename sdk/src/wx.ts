// WeChat's mini-programs and mini-games, and uni-app and Taro, which wrap them: all take
// an object like wx.

import type { HttpRequest, HttpResponse, Platform, Socket, SocketEvents, Storage, WakeReason } from './platform.js'

/** The part of a SocketTask that is used. */
interface SocketTask {
  onOpen(f: () => void): void
  onMessage(f: (m: { data: ArrayBuffer | string }) => void): void
  onClose(f: (r: { code?: number; reason?: string }) => void): void
  onError(f: (e: { errMsg?: string }) => void): void
  send(o: { data: ArrayBuffer; fail?: (e: { errMsg?: string }) => void }): void
  close(o: object): void
}

/** The part of wx that is used. */
export interface WxLike {
  connectSocket(o: { url: string; protocols: string[]; tcpNoDelay: boolean; fail: (e: { errMsg?: string }) => void }): SocketTask
  request(o: {
    url: string
    method: string
    header: Record<string, string>
    data?: string
    timeout: number
    dataType: string
    responseType: string
    success: (r: { statusCode: number; header: Record<string, string>; data: unknown }) => void
    fail: (e: { errMsg?: string }) => void
  }): unknown
  getStorage(o: { key: string; success: (r: { data: unknown }) => void; fail: () => void }): void
  setStorage(o: { key: string; data: string; success: () => void; fail: (e: { errMsg?: string }) => void }): void
  removeStorage(o: { key: string; complete: () => void }): void
  onAppShow?(f: () => void): void
  offAppShow?(f: () => void): void
  onNetworkStatusChange?(f: (r: { isConnected: boolean }) => void): void
  offNetworkStatusChange?(f: (r: { isConnected: boolean }) => void): void
}

/** Mini-programs. */
export class WxPlatform implements Platform {
  readonly storage: Storage

  constructor(private wx: WxLike) {
    this.storage = {
      get: (key) => new Promise((resolve) => wx.getStorage({
        key, success: (r) => resolve(String(r.data)), fail: () => resolve(undefined),
      })),
      set: (key, data) => new Promise((resolve, reject) => wx.setStorage({
        key, data, success: resolve, fail: (e) => reject(new Error(e.errMsg)),
      })),
      remove: (key) => new Promise((complete) => wx.removeStorage({ key, complete })),
    }
  }

  connect(url: string, events: SocketEvents): Socket {
    let over = false
    const end = (why: string) => {
      if (over) return
      over = true
      events.close(why)
    }
    const task = this.wx.connectSocket({
      url, protocols: ['mqtt'], tcpNoDelay: true,
      fail: (e) => end(e.errMsg ?? 'connectSocket failed'),
    })
    // At once: an event that comes before its handler is lost.
    task.onOpen(() => over || events.open())
    task.onMessage((m) => over || typeof m.data == 'string' || events.message(m.data))
    task.onClose((r) => end(`socket closed: ${r.code ?? ''} ${r.reason ?? ''}`.trim()))
    task.onError((e) => end(e.errMsg ?? 'socket failed'))
    return {
      send(data) {
        if (!over) task.send({ data, fail: (e) => end(e.errMsg ?? 'send failed') })
      },
      close() {
        over = true
        // One of five places is free only when it is closed, also while it opens.
        task.close({})
      },
    }
  }

  request(r: HttpRequest): Promise<HttpResponse> {
    return new Promise((resolve, reject) => {
      const header = { ...r.headers }
      let method: string = r.method
      if (method == 'PATCH') { // wx.request has none
        method = 'POST'
        header['X-HTTP-Method-Override'] = 'PATCH'
      }
      const o: Parameters<WxLike['request']>[0] = {
        url: r.url, method, header, timeout: r.timeout, dataType: 'text', responseType: 'text',
        success: (a) => {
          const headers: Record<string, string> = {}
          for (const k in a.header) headers[k.toLowerCase()] = a.header[k]!
          resolve({ status: a.statusCode, headers, body: typeof a.data == 'string' ? a.data : JSON.stringify(a.data) })
        },
        fail: (e) => reject(new Error(e.errMsg ?? 'request failed')),
      }
      if (r.body !== undefined) o.data = r.body
      this.wx.request(o)
    })
  }

  onWake(f: (why: WakeReason) => void): () => void {
    const show = () => f('foreground')
    const network = (r: { isConnected: boolean }) => { if (r.isConnected) f('network') }
    this.wx.onAppShow?.(show)
    this.wx.onNetworkStatusChange?.(network)
    return () => {
      this.wx.offAppShow?.(show)
      this.wx.offNetworkStatusChange?.(network)
    }
  }

  exclusive<T>(_name: string, f: () => Promise<T>): Promise<T> {
    return f()
  }
}
