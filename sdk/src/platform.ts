// What the client needs of where it runs: a socket, requests, storage, and to be told
// when the network or the foreground is back. One small interface, so that another
// transport (an HTTP stream for networks that break WebSocket) fits.

/** A connection on which bytes are sent in order. */
export interface Socket {
  /** Sends one WebSocket message. Errors are told by close. */
  send(data: ArrayBuffer): void
  /** Ends the connection. No event of it comes afterwards. */
  close(): void
}

/** What a socket tells. Only close may be missing: a connection can die without a word. */
export interface SocketEvents {
  open(): void
  message(data: ArrayBuffer): void
  /** It is over, or could not be opened. Called once at most. */
  close(why: string): void
}

/** A request of the HTTP API. */
export interface HttpRequest {
  method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  url: string
  headers: Record<string, string>
  body?: string
  /** Milliseconds. */
  timeout: number
}

/** Its answer. */
export interface HttpResponse {
  status: number
  /** By name in lower case. */
  headers: Record<string, string>
  body: string
}

/** Keeps text by key, beyond the end of the program where the platform can. */
export interface Storage {
  get(key: string): Promise<string | undefined>
  set(key: string, value: string): Promise<void>
  remove(key: string): Promise<void>
}

/** Why now is a good moment to look at the connection. */
export type WakeReason = 'foreground' | 'network'

/** Where the client runs. */
export interface Platform {
  /** Opens a WebSocket with subprotocol mqtt. Never throws: what fails is told by close. */
  connect(url: string, events: SocketEvents): Socket
  /** Rejects if there is no answer at all. */
  request(r: HttpRequest): Promise<HttpResponse>
  storage: Storage
  /** Calls back when the program comes to the foreground or the network is back. Returns how to end that. */
  onWake(f: (why: WakeReason) => void): () => void
  /**
   * Runs f while no other program of the same storage runs one under the same name; queues
   * until then. Platforms that have one program only run it at once.
   */
  exclusive<T>(name: string, f: () => Promise<T>): Promise<T>
}

/** Storage that ends with the program. */
export class MemoryStorage implements Storage {
  private items = new Map<string, string>()

  async get(key: string): Promise<string | undefined> {
    return this.items.get(key)
  }
  async set(key: string, value: string): Promise<void> {
    this.items.set(key, value)
  }
  async remove(key: string): Promise<void> {
    this.items.delete(key)
  }
}
