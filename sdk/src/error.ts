// Errors that speak to the application: a code to decide by, and words in two languages.

/** Codes that the SDK itself gives. Others are the server's: see PROTOCOL.md. */
export type SdkCode = 'timeout' | 'offline' | 'stopped' | 'no_token' | 'bad_answer'

const texts: Record<string, [en: string, zh: string]> = {
  timeout: ['The server did not answer in time.', '服务器未在规定时间内响应。'],
  offline: ['There is no connection.', '当前没有网络连接。'],
  stopped: ['The client was stopped.', '客户端已停止。'],
  no_token: ['There is no valid sign-in.', '登录已失效，请重新登录。'],
  bad_answer: ['The server gave an answer that cannot be read.', '服务器返回了无法识别的内容。'],
  bad_message: ['The server does not take this message.', '服务器不接受这条消息。'],
  too_large: ['This is too large.', '内容过大。'],
  bad_topic: ['There is no such conversation.', '会话不存在。'],
  not_allowed: ['You may not do this.', '你没有权限进行此操作。'],
  not_member: ['You are not a member of this group.', '你不是该群成员。'],
  muted: ['You are muted in this group.', '你在该群已被禁言。'],
  conflict: ['Something else was sent under the same id.', '相同编号已发送过不同内容。'],
  rate_limited: ['Too much at once. Try again a little later.', '操作过于频繁，请稍后再试。'],
  log_full: ['The server has no room at the moment. Try again later.', '服务器暂时没有空间，请稍后再试。'],
  unavailable: ['The server cannot do this at the moment. Try again later.', '服务暂时不可用，请稍后再试。'],
}

/** Codes after which the same may succeed later. */
const retryable = ['timeout', 'offline', 'rate_limited', 'log_full', 'unavailable']

/** What went wrong. `message` is the server's own reason where it gave one. */
export class MynahError extends Error {
  /** Whether trying the same again later may help. */
  readonly retryable: boolean

  constructor(
    /** A word to decide by. */
    readonly code: string,
    reason?: string,
    /** Status of the HTTP answer, if there was one. */
    readonly status?: number,
  ) {
    super(reason || texts[code]?.[0] || code)
    this.name = 'MynahError'
    this.retryable = retryable.includes(code) || (status ?? 0) >= 500
  }

  /** Returns words for the reader, by language tag: Chinese for `zh…`, English otherwise. */
  text(language: string): string {
    const t = texts[this.code]
    if (!t) return this.message
    return t[/^zh/i.test(language) ? 1 : 0]
  }
}
