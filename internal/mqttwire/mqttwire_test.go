package mqttwire_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"mynah/internal/mqttwire"
)

// all returns one packet of each type, with every field that it may have.
func all() map[string]mqttwire.Packet {
	message := mqttwire.Properties{}.WithInt(mqttwire.PayloadFormatIndicator, 1).WithInt(mqttwire.MessageExpiryInterval, 1<<31).
		WithText(mqttwire.ContentType, "text/plain").WithText(mqttwire.ResponseTopic, "a/b").WithText(mqttwire.CorrelationData, "\x00\xff").
		WithInt(mqttwire.SubscriptionIdentifier, 300000).WithUser("k", "v").WithUser("k", "w")
	reason := mqttwire.Properties{}.WithText(mqttwire.ReasonString, "because").WithUser("seq", "9")
	return map[string]mqttwire.Packet{
		"CONNECT": {Type: mqttwire.CONNECT, Connect: &mqttwire.Connect{ClientID: "c", Username: "u", Password: "p", Clean: true, KeepAlive: 300}},
		"CONNECT with a will": {Type: mqttwire.CONNECT, Connect: &mqttwire.Connect{
			ClientID: "", Username: "u", Will: &mqttwire.Will{Topic: "w", Payload: []byte("gone"), QoS: 2, Retain: true, Properties: message},
			Properties: mqttwire.Properties{}.WithInt(mqttwire.SessionExpiryInterval, 7).WithInt(mqttwire.ReceiveMaximum, 10),
		}},
		"CONNACK":      {Type: mqttwire.CONNACK, SessionPresent: true, Reason: 0x87, Properties: reason},
		"PUBLISH":      {Type: mqttwire.PUBLISH, Topic: "group/a", Payload: []byte("hello"), Retain: true, Properties: message},
		"PUBLISH at 1": {Type: mqttwire.PUBLISH, Topic: "group/a", QoS: 1, ID: 513, Dup: true},
		"PUBACK":       {Type: mqttwire.PUBACK, ID: 0x1234},
		"PUBREC":       {Type: mqttwire.PUBREC, ID: 7, Reason: 0x97, Properties: reason},
		"PUBREL":       {Type: mqttwire.PUBREL, ID: 7, Reason: 0x92},
		"PUBCOMP":      {Type: mqttwire.PUBCOMP, ID: 7},
		"SUBSCRIBE": {Type: mqttwire.SUBSCRIBE, ID: 9, Properties: mqttwire.Properties{}.WithInt(mqttwire.SubscriptionIdentifier, 1), Filters: []mqttwire.Filter{
			{Topic: "a/#", QoS: 2}, {Topic: "b", NoLocal: true, RetainAsPublished: true, RetainHandling: 2},
		}},
		"SUBACK":      {Type: mqttwire.SUBACK, ID: 9, Codes: []byte{1, 0x80}, Properties: reason},
		"UNSUBSCRIBE": {Type: mqttwire.UNSUBSCRIBE, ID: 9, Filters: []mqttwire.Filter{{Topic: "a/#"}}},
		"UNSUBACK":    {Type: mqttwire.UNSUBACK, ID: 9, Codes: []byte{0, 17}},
		"PINGREQ":     {Type: mqttwire.PINGREQ},
		"PINGRESP":    {Type: mqttwire.PINGRESP},
		"DISCONNECT":  {Type: mqttwire.DISCONNECT, Reason: 0x8b, Properties: reason},
		"AUTH":        {Type: mqttwire.AUTH, Reason: 0x18, Properties: mqttwire.Properties{}.WithText(mqttwire.AuthenticationMethod, "m")},
	}
}

// Guards against a codec that misreads the wire: its tests would report errors
// of the broker that are its own.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for name, want := range all() {
		if want.Connect != nil {
			want.Connect.Version = mqttwire.V5
		}
		b := want.Append(nil, mqttwire.V5)
		if b[0]>>4 != want.Type {
			t.Errorf("%s: first byte %#x", name, b[0])
		}
		got, err := mqttwire.Decode(b, mqttwire.V5)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(&want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", name, diff)
		}
		r := bufio.NewReader(bytes.NewReader(append(slices.Clone(b), b...)))
		for range 2 {
			if got, err := mqttwire.ReadFrame(r); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: ReadFrame = %x, %v", name, got, err)
			}
		}
		if _, err := mqttwire.ReadFrame(r); err != io.EOF { //nolint:errorlint // not wrapped, as documented
			t.Errorf("%s: end of the stream: %v", name, err)
		}
		for cut := 1; cut < len(b); cut++ {
			if _, err := mqttwire.ReadFrame(bufio.NewReader(bytes.NewReader(b[:cut]))); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: the stream ends after %d bytes: %v", name, cut, err)
			}
			if n, _, err := mqttwire.FrameSize(b[:cut]); n != 0 || err != nil {
				t.Errorf("%s: Frame of %d bytes = %d, %v", name, cut, n, err)
			}
		}
	}
}

// Before MQTT 5 there are no properties and no reason codes but CONNACK's.
func TestRoundTripOf311(t *testing.T) {
	t.Parallel()
	for name, want := range all() {
		if want.Type == mqttwire.AUTH {
			continue
		}
		for _, version := range []byte{mqttwire.V31, mqttwire.V311} {
			want := want
			if want.Connect != nil {
				c := *want.Connect
				c.Version, c.Properties = version, nil
				if c.Will != nil {
					w := *c.Will
					w.Properties = nil
					c.Will = &w
				}
				want.Connect = &c
			}
			b := want.Append(nil, version)
			want.Properties = nil
			if want.Type != mqttwire.CONNACK {
				want.Reason = 0
			}
			if want.Type == mqttwire.UNSUBACK {
				want.Codes = nil
			}
			got, err := mqttwire.Decode(b, version)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if diff := cmp.Diff(&want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s: (-want +got)\n%s", name, diff)
			}
		}
	}
}

// Compares with the specification's examples and with bytes written by hand. Guards
// against a codec that agrees only with itself.
func TestBytes(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]mqttwire.Packet{
		"\x32\x0a\x00\x03a/b\x00\x0a\x00xy":            {Type: mqttwire.PUBLISH, Topic: "a/b", QoS: 1, ID: 10, Payload: []byte("xy")},
		"\x62\x02\x00\x07":                             {Type: mqttwire.PUBREL, ID: 7},
		"\x40\x0f\x00\x07\x97\x0b\x1f\x00\x08log_full": {Type: mqttwire.PUBACK, ID: 7, Reason: 0x97, Properties: mqttwire.Properties{}.WithText(mqttwire.ReasonString, "log_full")},
		"\x82\x0f\x00\x0a\x00\x00\x03a/b\x01\x00\x03c/d\x02": {
			Type: mqttwire.SUBSCRIBE, ID: 10, Filters: []mqttwire.Filter{{Topic: "a/b", QoS: 1}, {Topic: "c/d", QoS: 2}},
		},
		"\xe0\x00": {Type: mqttwire.DISCONNECT},
	} {
		if got := p.Append(nil, mqttwire.V5); string(got) != want {
			t.Errorf("got %x, want %x", got, want)
		}
	}
	c := mqttwire.Connect{Version: mqttwire.V31, ClientID: "c", Clean: true, KeepAlive: 10, Username: "u", Password: "p"}
	if got, want := string(c.Append(nil)), "\x10\x15\x00\x06MQIsdp\x03\xc2\x00\x0a\x00\x01c\x00\x01u\x00\x01p"; got != want {
		t.Errorf("got %x, want %x", got, want)
	}
}

// The remaining length takes one to four bytes.
func TestLengths(t *testing.T) {
	t.Parallel()
	for _, version := range []byte{mqttwire.V311, mqttwire.V5} {
		for _, size := range []int{0, 1, 120, 128, 16383, 16384, 2_100_000} {
			want := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: "group/a", QoS: 1, ID: 1, Payload: bytes.Repeat([]byte("x"), size)}
			if version == mqttwire.V5 {
				want.Properties = mqttwire.Properties{}.WithText(mqttwire.ContentType, string(bytes.Repeat([]byte("y"), size%50000)))
			}
			b := want.Append(nil, version)
			n, _, err := mqttwire.FrameSize(append(b, 0xff))
			if err != nil || n != len(b) {
				t.Fatalf("Frame = %d, %v; want %d", n, err, len(b))
			}
			got, err := mqttwire.Decode(b, version)
			if err != nil || !bytes.Equal(got.Payload, want.Payload) || !bytes.Equal(got.Properties, want.Properties) {
				t.Fatalf("version %d, %d bytes: %d bytes, %v", version, size, len(got.Payload), err)
			}
		}
	}
}

// Bytes that are no packet are an error, and never a panic.
func TestMalformed(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]string{
		"nothing":              "",
		"type 0":               "\x00\x00",
		"length of 5 bytes":    "\x30\x80\x80\x80\x80\x01",
		"too short":            "\x40\x03\x00\x07",
		"too long":             "\x40\x02\x00\x07\x00",
		"trailing bytes":       "\xd0\x01\x00",
		"property beyond all":  "\x40\x0a\x00\x07\x97\x06\x1f\x00\xc8full",
		"unknown property":     "\x40\x06\x00\x07\x97\x02\x7f\x00",
		"length of a property": "\x30\x09\x00\x01x\x05\x0b\x80\x80\x80\x80",
	} {
		if _, err := mqttwire.Decode([]byte(b), mqttwire.V5); !errors.Is(err, mqttwire.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, p := range all() {
		if p.Connect != nil {
			p.Connect.Version = mqttwire.V5
		}
		b := p.Append(nil, mqttwire.V5)
		for range 2000 {
			damaged := slices.Clone(b)
			for range 1 + rnd.IntN(3) {
				damaged[rnd.IntN(len(damaged))] = byte(rnd.Uint32())
			}
			if got, err := mqttwire.Decode(damaged, mqttwire.V5); err == nil {
				for range got.Properties.All() { //nolint:revive // must not panic
				}
			}
		}
	}
}

func BenchmarkAppendPublish(b *testing.B) {
	p := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: "group/bench", QoS: 1, ID: 1, Payload: bytes.Repeat([]byte("x"), 200)}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = p.Append(buf[:0], mqttwire.V311)
	}
}

func BenchmarkDecodePublish(b *testing.B) {
	p := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: "group/bench", QoS: 1, ID: 1, Payload: bytes.Repeat([]byte("x"), 200), Properties: mqttwire.Properties{}.WithUser("k", "v")}
	frame := p.Append(nil, mqttwire.V5)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := mqttwire.Decode(frame, mqttwire.V5); err != nil {
			b.Fatal(err)
		}
	}
}
