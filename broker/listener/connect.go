package listener

import (
	"bytes"
	"fmt"
	"io"
)

const (
	// connectMin is the size of the smallest CONNECT, its fixed header included
	// (3.1.1 with an empty client id). So many bytes can be read without knowing
	// anything and without touching the packet after it, and they hold the
	// protocol's name and level even behind a length of four bytes.
	connectMin = 14
	// connectFirst is how much is allocated for a CONNECT that announces more.
	// Most, with their token, fit.
	connectFirst = 1 << 10

	typeConnect = 0x10 // packet type 1 with its flags, which must be 0

	// bridgeBit is set in the protocol level by Mosquitto's bridges, of MQTT 3.1
	// and 3.1.1: what such a client publishes is not to come back to it.
	bridgeBit = 0x80
)

// unsupportedLevel is the CONNACK for a protocol level that we do not speak:
// return code 1 in the form of 3.1.1 (section 3.1.2.2), which is what clients
// that probe for a level, such as mosquitto's bridge, understand.
var unsupportedLevel = []byte{0x20, 0x02, 0x00, 0x01}

var (
	nameMQTT   = []byte{0, 4, 'M', 'Q', 'T', 'T'}
	nameMQIsdp = []byte{0, 6, 'M', 'Q', 'I', 's', 'd', 'p'}
)

// readConnect reads one CONNECT from r, exactly: what follows it stays unread.
// It returns the whole packet and the protocol level, the bridgeBit with it. It looks at no more than
// is needed to know that the packet is worth its memory; Mochi decodes the rest.
//
// With ErrProtocolLevel the whole packet has been read, so that an answer is not
// lost in a reset.
func readConnect(r io.Reader, limit int) (packet []byte, level byte, err error) {
	first := make([]byte, connectMin)
	var total int
	for have := 0; have < len(first); {
		n, err := r.Read(first[have:])
		if n == 0 && err != nil {
			return nil, 0, fmt.Errorf("read CONNECT: %w", unexpected(err, have))
		}
		have += n
		if total, err = connectSize(first[:have], limit); err != nil {
			return nil, 0, err
		}
	}
	level, known, err := connectLevel(first)
	if err != nil {
		return nil, 0, err
	}

	packet = make([]byte, len(first), min(total, max(connectFirst, len(first))))
	copy(packet, first)
	for len(packet) < total {
		if len(packet) == cap(packet) {
			// Doubles what has arrived, so a peer that announces much and sends
			// little holds little.
			grown := make([]byte, len(packet), min(total, 2*cap(packet)))
			copy(grown, packet)
			packet = grown
		}
		n, err := r.Read(packet[len(packet):cap(packet)])
		packet = packet[:len(packet)+n]
		if n == 0 && err != nil {
			return nil, 0, fmt.Errorf("read CONNECT: %w", unexpected(err, len(packet)))
		}
	}
	if !known {
		return nil, level, fmt.Errorf("%w %d", ErrProtocolLevel, level)
	}
	return packet, level, nil
}

// connectSize checks the fixed header as far as it is there and returns the size
// of the whole packet, or 0 as long as that is not known.
func connectSize(p []byte, limit int) (int, error) {
	if len(p) > 0 && p[0] != typeConnect {
		return 0, ErrNotConnect
	}
	value := 0
	for i := 1; i < len(p); i++ {
		if i > 4 {
			return 0, fmt.Errorf("%w: remaining length of more than four bytes", ErrMalformed)
		}
		value |= int(p[i]&0x7f) << (7 * (i - 1))
		if p[i]&0x80 != 0 {
			continue
		}
		if value > limit {
			return 0, fmt.Errorf("%w: %d bytes, %d allowed", ErrConnectTooLarge, value, limit)
		}
		if 1+i+value < connectMin {
			return 0, fmt.Errorf("%w: a CONNECT of %d bytes", ErrMalformed, 1+i+value)
		}
		return 1 + i + value, nil
	}
	return 0, nil
}

// connectLevel finds the protocol's name and level in the first connectMin bytes
// of a CONNECT. known tells whether Mochi speaks that level, or would without the
// bridgeBit.
func connectLevel(first []byte) (level byte, known bool, err error) {
	body := 1
	for first[body]&0x80 != 0 {
		body++
	}
	p := first[body+1:]
	if rest, ok := bytes.CutPrefix(p, nameMQTT); ok {
		return rest[0], rest[0]&^bridgeBit == 4 || rest[0] == 5, nil
	}
	if rest, ok := bytes.CutPrefix(p, nameMQIsdp); ok {
		return rest[0], rest[0]&^bridgeBit == 3, nil
	}
	return 0, false, ErrProtocolName
}

// unexpected turns the end of a stream inside a packet into
// io.ErrUnexpectedEOF.
func unexpected(err error, have int) error {
	if err == io.EOF && have > 0 { //nolint:errorlint // an io.Reader returns io.EOF itself
		return io.ErrUnexpectedEOF
	}
	return err
}
