package wire_test

import (
	"bytes"
	"testing"

	"mynah/bench/wire"
)

// A tool that misreads the wire blames the broker for its own mistake.
func TestPublishRoundTrip(t *testing.T) {
	t.Parallel()
	for _, version := range []byte{wire.V311, wire.V5} {
		for qos := range byte(3) {
			for _, size := range []int{0, 1, 120, 128, 20000, 2_100_000} {
				want := wire.Publish{Topic: "group/a", Payload: bytes.Repeat([]byte("x"), size), QoS: qos, Dup: qos > 0}
				if qos > 0 {
					want.ID = 513
				}
				b := wire.AppendPublish(nil, version, &want)
				if n, _, err := wire.Frame(b[:len(b)-1]); n != 0 || err != nil {
					t.Fatalf("Frame of a packet without its last byte = %d, %v", n, err)
				}
				n, _, err := wire.Frame(append(b, 0xff))
				if err != nil || n != len(b) {
					t.Fatalf("Frame = %d, %v; want %d", n, err, len(b))
				}
				got, err := wire.Decode(b, version)
				if err != nil {
					t.Fatal(err)
				}
				if got.Topic != want.Topic || got.QoS != want.QoS || got.ID != want.ID || got.Dup != want.Dup || !bytes.Equal(got.Payload, want.Payload) {
					t.Fatalf("version %d, QoS %d, %d bytes: got %q QoS %d id %d dup %v", version, qos, size, got.Topic, got.QoS, got.ID, got.Dup)
				}
			}
		}
	}
}

func TestDecodeAcknowledgements(t *testing.T) {
	t.Parallel()
	for _, kind := range []byte{wire.PUBACK, wire.PUBREC, wire.PUBREL, wire.PUBCOMP} {
		p, err := wire.Decode(wire.AppendAck(nil, kind, 0x1234), wire.V5)
		if err != nil || p.Type != kind || p.ID != 0x1234 || p.Reason != 0 {
			t.Errorf("kind %d: %+v, %v", kind, p, err)
		}
	}
	// PUBACK of MQTT 5 with a reason, a reason string and the seq as user property.
	frame := []byte{0x40, 0, 0, 7, 0x97, 0, 0x1f, 0, 4, 'f', 'u', 'l', 'l', 0x26, 0, 3, 's', 'e', 'q', 0, 1, '9'}
	frame[1] = byte(len(frame) - 2)
	frame[5] = byte(len(frame) - 6)
	p, err := wire.Decode(frame, wire.V5)
	if err != nil || p.ID != 7 || p.Reason != 0x97 || p.ReasonString != "full" {
		t.Errorf("PUBACK with properties: %+v, %v", p, err)
	}
	frame[8] = 200
	if _, err := wire.Decode(frame, wire.V5); err == nil {
		t.Error("a property that is longer than its packet was accepted")
	}
}
