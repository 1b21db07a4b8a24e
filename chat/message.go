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
	// Tail is the end of the rendered JSON object, from the key "type" to the
	// closing brace: `"type":"text","body":"hello","mid":"5f1c"}`.
	Tail []byte
}

// Message is a message with its place in the log.
type Message struct {
	Seq     uint64 // position in the log
	From    string // the sender's id
	To      string // the topic it was published to: user/<id> or group/<id>
	TS      int64  // milliseconds since 1970 when the broker accepted it
	Type    string
	Mid     string
	Expires int64
	Tail    []byte // as in Draft
}
