// Events with types.

/** Calls who listens. A listener that throws does not keep others from being called. */
export class Emitter<Events extends Record<string, unknown[]>> {
  private listeners: { [E in keyof Events]?: Set<(...args: Events[E]) => void> } = {}

  /** Calls f for each event of that name. Returns how to end that. */
  on<E extends keyof Events>(event: E, f: (...args: Events[E]) => void): () => void {
    const set = (this.listeners[event] ??= new Set())
    set.add(f)
    return () => set.delete(f)
  }

  protected emit<E extends keyof Events>(event: E, ...args: Events[E]): void {
    for (const f of [...(this.listeners[event] ?? [])]) {
      try {
        f(...args)
      } catch (e) {
        // Not ours to handle: it is shown as any uncaught error is.
        setTimeout(() => { throw e })
      }
    }
  }
}
