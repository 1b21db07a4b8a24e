package chat

// Limits bounds what a client may publish. The zero value of a field means its
// default.
type Limits struct {
	Payload  int // bytes of a published payload; default 64 KiB
	Depth    int // nesting of JSON arrays and objects, the payload's own counted; default 32, at most MaxDepth
	Rendered int // bytes of a rendered message; default 100 KiB
}

// Draft is a client's payload, checked and brought into the form in which it is
// stored: everything of the message but what the broker adds.
type Draft struct {
	Type    string // "text", "image", "x-…"; never empty
	Mid     string // the client's own id of the message, or ""
	Expires int64  // milliseconds since 1970 after which nobody is to get it; 0 for never
	Change  Change // of a type that changes something
	// Digest is a hash of the message's value, whatever the bytes: of key order,
	// escapes, white space and forms of numbers it does not depend. It is 0 for a
	// message without a mid, which nobody compares with another.
	Digest uint64
	// Tail is the end of the rendered JSON object, from the key "type" to the
	// closing brace: `"type":"text","body":"hello","mid":"5f1c"}`.
	Tail []byte
}

// Message is a message with its place in the log.
type Message struct {
	Seq  uint64 // position in the log
	From string // the sender's id
	To   string // the topic it was published to: user/<id> or group/<id>
	TS   int64  // milliseconds since 1970 when the broker accepted it
	Type string
	Mid  string
	// Expires is milliseconds since 1970, 0 for never, or AtOnce.
	Expires int64
	Tail    []byte // as in Draft
}

// AtOnce is the Expires of a message that only those are to get who can be reached the
// moment it is there.
const AtOnce = -1

// SecondsLeft returns how many seconds an Expires of a message that has not expired leaves at
// now, in milliseconds since 1970, to the nearest, but at least one: the Message Expiry
// Interval with which it is sent (MQTT 5, 3.3.2.3.3). It is 0 for AtOnce and -1 for a message
// that does not expire.
func SecondsLeft(expires, now int64) int64 {
	switch {
	case expires == AtOnce:
		return 0
	case expires > 0:
		return max((expires-now+500)/1000, 1)
	}
	return -1
}

// Types of messages that change something.
const (
	TypeRead     = "read"
	TypeRecall   = "recall"
	TypeEdit     = "edit"
	TypeReaction = "reaction"
	TypePin      = "pin"
)

// ChangesSomething reports whether messages of a type change something.
func ChangesSomething(typ string) bool {
	switch typ {
	case TypeRead, TypeRecall, TypeEdit, TypeReaction, TypePin:
		return true
	}
	return false
}

// Change is what a message of a type that changes something says. Fields that its type
// does not have are zero.
type Change struct {
	Of     uint64 // recall, edit, reaction, pin: seq of the message that is changed
	Upto   uint64 // read: seq of the last message that has been read
	Key    string // reaction: 1 to 64 bytes of visible text, mostly an emoji
	Remove bool   // reaction, pin: it is taken back
}
