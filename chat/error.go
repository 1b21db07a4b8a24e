package chat

// Code names a refusal in the words of the protocol. It is what clients read in
// user/<me>/error, in MQTT 5 reason strings and in HTTP problem documents.
type Code string

// The codes of PROTOCOL.md and those that have been added since.
const (
	CodeBadMessage  Code = "bad_message"  // the payload breaks a rule of the message format
	CodeTooLarge    Code = "too_large"    // the payload or the rendered message is over the limit
	CodeBadTopic    Code = "bad_topic"    // no such topic, or a wildcard in a publish
	CodeNotAllowed  Code = "not_allowed"  // the sender may not publish there
	CodeNotMember   Code = "not_member"   // the sender is not in the group
	CodeMuted       Code = "muted"        // the sender may not speak in the group now
	CodeConflict    Code = "conflict"     // the mid was used before with another content
	CodeRateLimited Code = "rate_limited" // the sender is over its rate
	CodeLogFull     Code = "log_full"     // the disk is full: nothing new is accepted for now
	CodeNotRetained Code = "not_retained" // no refusal: the message is accepted, but it is not retained
	CodeUnavailable Code = "unavailable"  // the server cannot decide or store right now; try again
)

// The codes that only the HTTP API uses.
const (
	CodeInvalid         Code = "invalid"          // a field breaks its rule
	CodeUnauthenticated Code = "unauthenticated"  // no token, or one that is not accepted; a password or code that does not fit
	CodeStaleSignIn     Code = "stale_sign_in"    // this takes a sign-in of the last minutes: sign in again
	CodeNotFound        Code = "not_found"        // no such thing, or not for the caller to know
	CodeLimit           Code = "limit"            // as many as there may be
	CodeKeyReused       Code = "key_reused"       // the Idempotency-Key was used for another request
	CodeUpstream        Code = "upstream_refused" // a service that was asked (WeChat, OpenID Connect) refused or failed
)

// Error is a refusal that a client may see: a code of the protocol and a
// sentence for people. It never holds anything internal.
type Error struct {
	Code   Code
	Reason string
}

// Error returns the code and the sentence.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Reason }

// Refuse returns an Error with the code and the sentence.
func Refuse(code Code, reason string) *Error { return &Error{Code: code, Reason: reason} }

// Payload returns what the broker publishes to user/<me>/error when it refuses a
// publish: {"code":…,"topic":…,"mid":…,"reason":…}. topic is the topic of the
// publish and may be any bytes; what is no UTF-8 in it becomes U+FFFD. mid is ""
// if the message had none or could not be read.
func (e *Error) Payload(topic, mid string) []byte {
	b := make([]byte, 0, 64+len(e.Code)+len(topic)+len(mid)+len(e.Reason))
	b = append(b, `{"code":`...)
	b = appendQuoted(b, []byte(e.Code))
	b = append(b, `,"topic":`...)
	b = appendQuoted(b, []byte(topic))
	b = append(b, `,"mid":`...)
	b = appendQuoted(b, []byte(mid))
	b = append(b, `,"reason":`...)
	b = appendQuoted(b, []byte(e.Reason))
	return append(b, '}')
}
