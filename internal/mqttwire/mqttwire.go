// Package mqttwire encodes and decodes the packets of MQTT 3.1, 3.1.1 and 5, for both
// sides. It is the one codec of the tests and of the measuring and torturing tools.
//
// It shares no code with the broker or with the client libraries, so that a test does not
// share the mistake that it should find. It also encodes packets that break the
// specification, since tests send them. Decode checks the form of a packet, and not which
// properties it may carry. Append encodes; ReadPacket reads from a connection.
package mqttwire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Packet types, section 2.1.2.
const (
	CONNECT     = 1
	CONNACK     = 2
	PUBLISH     = 3
	PUBACK      = 4
	PUBREC      = 5
	PUBREL      = 6
	PUBCOMP     = 7
	SUBSCRIBE   = 8
	SUBACK      = 9
	UNSUBSCRIBE = 10
	UNSUBACK    = 11
	PINGREQ     = 12
	PINGRESP    = 13
	DISCONNECT  = 14
	AUTH        = 15
)

// Protocol levels of CONNECT.
const (
	V31  = 3
	V311 = 4
	V5   = 5
)

// ErrMalformed is returned when bytes are not a packet.
var ErrMalformed = errors.New("malformed MQTT packet")

// Name returns the name of a packet type.
func Name(packetType byte) string {
	names := [...]string{
		"packet type 0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
		"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
	}
	return names[packetType&0x0f]
}

// AppendFrame appends a packet of the first byte and the body to b.
func AppendFrame(b []byte, first byte, body []byte) []byte {
	return append(appendLength(append(b, first), len(body)), body...)
}

// AppendAck appends a successful PUBACK, PUBREC, PUBREL or PUBCOMP to b. Its
// form is the same in 3.1.1 and 5.
func AppendAck(b []byte, packetType byte, id uint16) []byte {
	first := packetType << 4
	if packetType == PUBREL {
		first |= 2
	}
	return append(b, first, 2, byte(id>>8), byte(id))
}

// AppendEmpty appends a PINGREQ, PINGRESP or DISCONNECT without content to b.
func AppendEmpty(b []byte, packetType byte) []byte { return append(b, packetType<<4, 0) }

// AppendString appends a string with its length in two bytes to b.
func AppendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s))) //nolint:gosec // topics and tokens here are far shorter than 64 KiB
	return append(b, s...)
}

func appendLength(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

// FrameSize returns the size of the first packet in b, with its header, and
// the size of the header. It returns 0 if b does not hold the whole packet
// yet.
func FrameSize(b []byte) (size, header int, err error) {
	n, shift := 0, 0
	for i := 1; i < len(b); i++ {
		n |= int(b[i]&0x7f) << shift
		if b[i] < 0x80 {
			if size = i + 1 + n; size > len(b) {
				return 0, 0, nil
			}
			return size, i + 1, nil
		}
		if shift += 7; shift > 21 {
			return 0, 0, fmt.Errorf("remaining length of more than four bytes: %w", ErrMalformed)
		}
	}
	return 0, 0, nil
}

// ReadFrame reads one whole packet. The error is io.EOF only if the stream ends between
// two packets.
func ReadFrame(r *bufio.Reader) ([]byte, error) {
	first, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	frame, n := []byte{first}, 0
	for shift := 0; ; shift += 7 {
		if shift > 21 {
			return nil, fmt.Errorf("remaining length of more than four bytes: %w", ErrMalformed)
		}
		c, err := r.ReadByte()
		if err != nil {
			return nil, unexpectedEOF(err)
		}
		frame = append(frame, c)
		n |= int(c&0x7f) << shift
		if c < 0x80 {
			break
		}
	}
	header := len(frame)
	frame = append(frame, make([]byte, n)...)
	if _, err := io.ReadFull(r, frame[header:]); err != nil {
		return nil, unexpectedEOF(err)
	}
	return frame, nil
}

// ReadPacket reads and decodes one packet of a connection that speaks the version.
func ReadPacket(r *bufio.Reader, version byte) (*Packet, error) {
	frame, err := ReadFrame(r)
	if err != nil {
		return nil, err
	}
	return Decode(frame, version)
}

func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
