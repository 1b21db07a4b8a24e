package archiver

import (
	"encoding/binary"
	"errors"

	"mynah/chat"
)

// The binary form of COPY, see PostgreSQL's documentation of COPY, "Binary
// Format". Rows are rendered into it when they are received, so that PostgreSQL
// parses no text and the committer only moves bytes.
var (
	copyHeader  = []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	copyTrailer = []byte{0xff, 0xff}
)

const (
	rowColumns   = 8
	nullField    = 0xffffffff // a length of -1
	jsonbVersion = 1
	// epoch is 2000-01-01, from which PostgreSQL counts microseconds, in
	// milliseconds since 1970.
	epoch = 946684800000
)

var (
	errNoSeq          = errors.New("the message has no seq")
	errNoConversation = errors.New("the message belongs to no conversation: its topic or its sender is none of the chat's")
)

// appendRow appends a message to buf as a row of table messages, in the order of
// schema.MessageColumns.
func appendRow(buf []byte, e *chat.Envelope) ([]byte, error) {
	conversation := chat.Conversation(e.From, e.To)
	switch {
	case e.Seq == 0:
		return buf, errNoSeq
	case conversation == "" || !chat.ValidID(e.From):
		return buf, errNoConversation
	}
	buf = binary.BigEndian.AppendUint16(buf, rowColumns)
	buf = appendInt8(buf, int64(e.Seq)) //nolint:gosec // ParseEnvelope allows 2^53-1 at most
	buf = appendText(buf, e.To)
	buf = appendText(buf, conversation)
	buf = appendText(buf, e.From)
	// ParseEnvelope allows 2^53-1 at most: the product neither overflows nor
	// passes the last day that timestamptz knows.
	buf = appendInt8(buf, (e.TS-epoch)*1000)
	buf = appendText(buf, e.Type)
	if e.Mid == "" {
		buf = binary.BigEndian.AppendUint32(buf, nullField)
	} else {
		buf = appendText(buf, e.Mid)
	}
	buf = appendLen(buf, len(e.Object)+1)
	buf = append(buf, jsonbVersion)
	return append(buf, e.Object...), nil
}

func appendInt8(buf []byte, n int64) []byte {
	buf = appendLen(buf, 8)
	return binary.BigEndian.AppendUint64(buf, uint64(n)) //nolint:gosec // two's complement is the wire format
}

func appendText(buf []byte, s string) []byte {
	return append(appendLen(buf, len(s)), s...)
}

func appendLen(buf []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(buf, uint32(n)) //nolint:gosec // MQTT allows 256 MiB at most
}
