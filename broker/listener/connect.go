package listener

import (
	"bytes"
	"fmt"
	"io"
)

const (
	// minConnectSize is the size of the smallest CONNECT, its fixed header included
	// (3.1.1 with an empty client id). So many bytes can be read without reading
	// into the next packet. They contain the protocol's name and level even if
	// the length takes four bytes.
	minConnectSize = 14
	// connectInitialBuffer is the buffer's first size for a longer CONNECT.
	// Most packets fit, with their token.
	connectInitialBuffer = 1 << 10

	typeConnect = 0x10 // packet type 1 with its flags, which must be 0

	// bridgeBit is set in the protocol level by Mosquitto's bridges, with MQTT
	// 3.1 and 3.1.1. Such a client must not receive its own messages.
	bridgeBit = 0x80
)

// connackUnsupportedLevel is the CONNACK for an unsupported protocol level:
// return code 1 in the form of 3.1.1 (section 3.1.2.2). Clients that probe for
// a level, such as Mosquitto's bridge, understand it.
var connackUnsupportedLevel = []byte{0x20, 0x02, 0x00, 0x01}

var (
	nameMQTT   = []byte{0, 4, 'M', 'Q', 'T', 'T'}
	nameMQIsdp = []byte{0, 6, 'M', 'Q', 'I', 's', 'd', 'p'}
)

// readConnect reads exactly one CONNECT from r. It returns the whole packet and the protocol
// level, with the bridgeBit. It checks only the size, the protocol name and the level, before it
// allocates memory; Mochi decodes the rest.
//
// With ErrProtocolLevel the whole packet has been read. Otherwise the
// connection's end would be a reset, and the answer could be lost.
func readConnect(r io.Reader, limit int) (packet []byte, level byte, err error) {
	first := make([]byte, minConnectSize)
	var total int
	for have := 0; have < len(first); {
		n, err := r.Read(first[have:])
		if n == 0 && err != nil {
			return nil, 0, fmt.Errorf("read CONNECT: %w", unexpectedEOF(err, have))
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

	packet = make([]byte, len(first), min(total, max(connectInitialBuffer, len(first))))
	copy(packet, first)
	for len(packet) < total {
		if len(packet) == cap(packet) {
			// The buffer doubles as bytes arrive, so a peer that announces much
			// and sends little takes little memory.
			grown := make([]byte, len(packet), min(total, 2*cap(packet)))
			copy(grown, packet)
			packet = grown
		}
		n, err := r.Read(packet[len(packet):cap(packet)])
		packet = packet[:len(packet)+n]
		if n == 0 && err != nil {
			return nil, 0, fmt.Errorf("read CONNECT: %w", unexpectedEOF(err, len(packet)))
		}
	}
	if !known {
		return nil, level, fmt.Errorf("%w %d", ErrProtocolLevel, level)
	}
	return packet, level, nil
}

// connectSize checks the bytes of the fixed header that have come. It returns
// the size of the whole packet, or 0 if that is not known yet.
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
		if 1+i+value < minConnectSize {
			return 0, fmt.Errorf("%w: a CONNECT of %d bytes", ErrMalformed, 1+i+value)
		}
		return 1 + i + value, nil
	}
	return 0, nil
}

// connectLevel finds the protocol's name and level in the first connectMin bytes
// of a CONNECT. known reports whether Mochi supports that level, without the
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

// unexpectedEOF replaces io.EOF inside a packet by io.ErrUnexpectedEOF.
func unexpectedEOF(err error, have int) error {
	if err == io.EOF && have > 0 { //nolint:errorlint // an io.Reader returns io.EOF itself
		return io.ErrUnexpectedEOF
	}
	return err
}
