package packet_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker/packet"
)

// A SUBSCRIBE that is truncated anywhere or invalid is refused before Mochi's codec
// gets it. What Mochi decodes of a valid one is not changed.
func TestCheckSubscribe(t *testing.T) {
	t.Parallel()
	const filter = "\x00\x03a/b"
	for _, tc := range []struct {
		name, body string
		v5         bool
		want       error
	}{
		{"3.1.1", "\x00\x01" + filter + "\x02", false, nil},
		{"two filters", "\x00\x01" + filter + "\x02" + filter + "\x00", false, nil},
		{"5", "\x00\x01\x00" + filter + "\x2e", true, nil},
		{"identifier and user property", "\x00\x01\x0c\x0b\x80\x01\x26\x00\x01k\x00\x03val" + filter + "\x00", true, nil},
		{"shared", "\x00\x01\x00\x00\x0a$share/g/t\x01", true, nil},
		{"no filter", "\x00\x01", false, packets.ErrProtocolViolationNoFilters},
		{"no filter in 5", "\x00\x01\x00", true, packets.ErrProtocolViolationNoFilters},
		{"QoS 3", "\x00\x01" + filter + "\x03", false, packets.ErrMalformedQos},
		{"3.1.1 has no options", "\x00\x01" + filter + "\x04", false, packets.ErrMalformedQos},
		{"reserved bit", "\x00\x01\x00" + filter + "\x40", true, packets.ErrMalformedQos},
		{"Retain Handling 3", "\x00\x01\x00" + filter + "\x30", true, packets.ErrProtocolViolation},
		{"No Local on a shared one", "\x00\x01\x00\x00\x0a$share/g/t\x05", true, packets.ErrProtocolViolationInvalidSharedNoLocal},
		{"identifier 0", "\x00\x01\x02\x0b\x00" + filter + "\x00", true, packets.ErrProtocolViolation},
		{"two identifiers", "\x00\x01\x04\x0b\x01\x0b\x02" + filter + "\x00", true, packets.ErrProtocolViolation},
		{"another property", "\x00\x01\x05\x11\x00\x00\x00\x01" + filter + "\x00", true, packets.ErrMalformedBadProperty},
		{"endless property length", "\x00\x01\xff\xff\xff\xff\xff" + filter + "\x00", true, packets.ErrMalformedProperties},
	} {
		err := packet.CheckSubscribe([]byte(tc.body), tc.v5)
		if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
		if tc.want != nil || strings.HasPrefix(tc.name, "two filters") {
			continue
		}
		for n := range len(tc.body) {
			if packet.CheckSubscribe([]byte(tc.body[:n]), tc.v5) == nil {
				t.Errorf("%s: the first %d of %d bytes are taken for sound", tc.name, n, len(tc.body))
			}
		}
	}
}

// MQTT 5, 4.7.1, 4.7.3 and 4.8.2: where wildcards may stand, and what a share needs.
func TestValidFilter(t *testing.T) {
	t.Parallel()
	for _, filter := range []string{"a", "/", "//", "+", "#", "+/+", "a/#", "/#", "$SYS/#", "$share/g/a", "$share/g/#", "$share/g//"} {
		if !packet.ValidFilter(filter) {
			t.Errorf("%q is refused", filter)
		}
	}
	for _, filter := range []string{
		"", "a#", "a/b#", "#a", "#/a", "a/#/b", "##", "a+", "+a", "a/b+/c", "++", "+#", "a/+#",
		"$share", "$share/", "$share/g", "$share/g/", "$share//a", "$share/g+/a", "$share/#/a", "$share/+/a", "$share/g/a#", "$share/g#/a/+",
	} {
		if packet.ValidFilter(filter) {
			t.Errorf("%q is taken", filter)
		}
	}
}
