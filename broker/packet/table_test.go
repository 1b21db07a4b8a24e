package packet_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker/packet"
)

// values holds a valid value of every property of MQTT 5, table 2-4, and the packets of
// clients in which it may come, independent of the table that is tested.
var values = map[byte]struct {
	value string
	in    []packet.Type
}{
	packet.PayloadFormat:        {"\x01", []packet.Type{packet.Publish, packet.Will}},
	packet.MessageExpiry:        {"\x00\x00\x00\x05", []packet.Type{packet.Publish, packet.Will}},
	packet.ContentType:          {"\x00\x03a/b", []packet.Type{packet.Publish, packet.Will}},
	packet.ResponseTopic:        {"\x00\x03a/b", []packet.Type{packet.Publish, packet.Will}},
	packet.CorrelationData:      {"\x00\x02\xff\x00", []packet.Type{packet.Publish, packet.Will}},
	packet.SubscriptionID:       {"\x85\x01", []packet.Type{packet.Publish, packet.Subscribe}},
	packet.SessionExpiry:        {"\x00\x00\x00\x05", []packet.Type{packet.Connect, packet.Disconnect}},
	packet.AssignedClientID:     {"\x00\x01x", nil},
	packet.ServerKeepAlive:      {"\x00\x05", nil},
	packet.AuthMethod:           {"\x00\x01x", []packet.Type{packet.Connect}},
	packet.AuthData:             {"\x00\x01x", []packet.Type{packet.Connect}},
	packet.RequestProblemInfo:   {"\x01", []packet.Type{packet.Connect}},
	packet.WillDelay:            {"\x00\x00\x00\x05", []packet.Type{packet.Will}},
	packet.RequestResponseInfo:  {"\x01", []packet.Type{packet.Connect}},
	packet.ResponseInfo:         {"\x00\x01x", nil},
	packet.ServerReference:      {"\x00\x01x", nil},
	packet.ReasonString:         {"\x00\x01x", []packet.Type{packet.Puback, packet.Pubrec, packet.Pubrel, packet.Pubcomp, packet.Disconnect}},
	packet.ReceiveMaximum:       {"\x00\x05", []packet.Type{packet.Connect}},
	packet.TopicAliasMaximum:    {"\x00\x05", []packet.Type{packet.Connect}},
	packet.TopicAlias:           {"\x00\x05", []packet.Type{packet.Publish}},
	packet.MaximumQoS:           {"\x01", nil},
	packet.RetainAvailable:      {"\x01", nil},
	packet.User:                 {"\x00\x01k\x00\x01v", carriers},
	packet.MaximumPacketSize:    {"\x00\x00\x10\x00", []packet.Type{packet.Connect}},
	packet.WildcardSubAvailable: {"\x01", nil},
	packet.SubscriptionIDAvail:  {"\x01", nil},
	packet.SharedSubAvailable:   {"\x01", nil},
}

// carriers are the packets of clients that have properties.
var carriers = []packet.Type{
	packet.Connect, packet.Will, packet.Publish, packet.Puback, packet.Pubrec, packet.Pubrel, packet.Pubcomp,
	packet.Subscribe, packet.Unsubscribe, packet.Disconnect,
}

var names = map[packet.Type]string{
	packet.Connect: "CONNECT", packet.Will: "will", packet.Publish: "PUBLISH", packet.Puback: "PUBACK", packet.Pubrec: "PUBREC",
	packet.Pubrel: "PUBREL", packet.Pubcomp: "PUBCOMP", packet.Subscribe: "SUBSCRIBE", packet.Unsubscribe: "UNSUBSCRIBE",
	packet.Disconnect: "DISCONNECT",
}

func withLength(props string) string {
	return string(binary.AppendUvarint(nil, uint64(len(props)))) + props
}

// check builds a packet with the properties and checks it. In MQTT 3.1.1, which has
// none, the same bytes stand where they would be.
func check(t packet.Type, props string, v5 bool) error {
	p := withLength(props)
	level := "\x04"
	if v5 {
		level = "\x05"
	}
	var err error
	switch t {
	case packet.Connect:
		return packet.CheckConnect([]byte("\x00\x04MQTT" + level + "\x02\x00\x3c" + p + "\x00\x02id"))
	case packet.Will:
		connect := "\x00"
		if !v5 {
			connect = ""
		}
		return packet.CheckConnect([]byte("\x00\x04MQTT" + level + "\x06\x00\x3c" + connect + "\x00\x02id" + p + "\x00\x01t\x00\x01p"))
	case packet.Publish:
		_, _, err = packet.CutProperties(t, []byte(p+"payload"))
	case packet.Subscribe:
		return packet.CheckSubscribe([]byte("\x00\x01"+p+"\x00\x01t\x01"), v5)
	case packet.Unsubscribe:
		return packet.CheckUnsubscribe([]byte("\x00\x01"+p+"\x00\x01t"), v5)
	case packet.Disconnect:
		_, err = packet.CheckDisconnect([]byte("\x00"+p), v5)
	default:
		_, _, err = packet.ParseAck(t, []byte("\x00\x01\x00"+p), v5)
	}
	return err
}

func code(err error) byte {
	var c packets.Code
	if err == nil || !errors.As(err, &c) {
		return 0
	}
	return c.Code
}

// Every property, known or not, in every packet: once, twice, and cut short after each of its
// bytes (MQTT 5, 2.2.2.2; 2.2.2: an unknown one, or one of another packet, is malformed).
func TestEveryPropertyInEveryPacket(t *testing.T) {
	t.Parallel()
	tried := 0
	for _, in := range carriers {
		for id := range 256 {
			known, ok := values[byte(id)]
			value := known.value
			if !ok {
				value = "\x01"
			}
			id, prop := byte(id), string([]byte{byte(id)})+value
			also := ""
			if id == packet.AuthData { // which does not stand alone
				also = string([]byte{packet.AuthMethod}) + values[packet.AuthMethod].value
			}
			once, twice, cut := byte(0), byte(0x82), byte(0x81)
			switch {
			case !slices.Contains(known.in, in):
				once, twice = 0x81, 0x81
			case id == packet.User:
				twice = 0
			}
			expect := func(how, props string, want byte) {
				tried++
				if err := check(in, props, true); code(err) != want || (err == nil) != (want == 0) {
					t.Errorf("%s with property %#x %s: %v, want %#x", names[in], id, how, err, want)
				}
			}
			expect("once", also+prop, once)
			expect("twice", also+prop+prop, twice)
			for n := 1; n < len(prop); n++ {
				expect(fmt.Sprintf("cut to %d bytes", n), also+prop[:n], cut)
			}
			if in != packet.Publish { // there it is the payload
				tried++
				if err := check(in, prop, false); err == nil {
					t.Errorf("%s of 3.1.1 with property %#x is taken", names[in], id)
				}
			}
		}
		// With a length that exceeds the packet, and one in more than four bytes.
		for _, length := range []string{"\x80", "\xff\xff\xff\xff\x7f", "\x80\x80\x80\x80\x00"} {
			var err error
			switch in {
			case packet.Connect, packet.Will, packet.Publish, packet.Subscribe, packet.Unsubscribe, packet.Disconnect:
				_, _, err = packet.CutProperties(in, []byte(length))
			default:
				_, _, err = packet.ParseAck(in, []byte("\x00\x01\x00"+length), true)
			}
			if code(err) != 0x81 {
				t.Errorf("%s with properties of length %x: %v", names[in], length, err)
			}
		}
	}
	if tried < 6000 {
		t.Errorf("tried %d", tried)
	}
}

// Values at and beyond their bounds.
func TestPropertyValues(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		in    packet.Type
		props string
		want  byte
	}{
		{packet.Publish, "\x01\x00", 0},
		{packet.Publish, "\x01\x02", 0x82},
		{packet.Publish, "\x02\x00\x00\x00\x00", 0},
		{packet.Publish, "\x02\xff\xff\xff\xff", 0},
		{packet.Publish, "\x08\x00\x00", 0x82}, // no topic name
		{packet.Will, "\x08\x00\x00", 0x82},
		{packet.Publish, "\x08\x00\x03a/+", 0x82},
		{packet.Publish, "\x08\x00\x01\x01", 0x81}, // a control character in a topic
		{packet.Publish, "\x03\x00\x01\x01", 0},    // and in other text
		{packet.Publish, "\x03\x00\x01\x00", 0x81},
		{packet.Publish, "\x03\x00\x03\xed\xa0\x80", 0x81}, // half of a surrogate pair
		{packet.Publish, "\x09\x00\x00", 0},
		{packet.Connect, "\x21\x00\x00", 0x82},
		{packet.Connect, "\x21\x00\x01", 0},
		{packet.Connect, "\x27\x00\x00\x00\x00", 0x82},
		{packet.Connect, "\x17\x02", 0x82},
		{packet.Connect, "\x19\xff", 0x82},
		{packet.Connect, "\x16\x00\x01x", 0x82},
		{packet.Will, "\x01\x02", 0x82},
		{packet.Will, "\x08\x00\x01#", 0x82},
		{packet.Subscribe, "\x0b\x00", 0x82},
		{packet.Subscribe, "\x0b\x80\x80\x00", 0x82}, // also 0
		{packet.Subscribe, "\x0b\xff\xff\xff\x7f", 0},
		{packet.Subscribe, "\x0b\xff\xff\xff\xff\x7f", 0x81},
		{packet.Puback, "\x26\x00\x00\x00\x00", 0},
		{packet.Puback, "\x26\x00\x01a", 0x81},
		{packet.Puback, "\x1f\x00\x02\xff\xff", 0x81},
		{packet.Puback, "\x1f\x00\x00", 0},
	} {
		if err := check(tc.in, tc.props, true); code(err) != tc.want || (err == nil) != (tc.want == 0) {
			t.Errorf("%s with %x: %v, want %#x", names[tc.in], tc.props, err, tc.want)
		}
	}
}

// Reason codes (MQTT 5, 3.4.2.1, 3.5.2.1, 3.6.2.1, 3.7.2.1, 3.14.2.1): those that a client has
// for the packet and no other; what may be left out, and what may not follow.
func TestReasonCodes(t *testing.T) {
	t.Parallel()
	published := "\x00\x10\x80\x83\x87\x90\x91\x97\x99"
	for in, codes := range map[packet.Type]string{
		packet.Puback: published, packet.Pubrec: published, packet.Pubrel: "\x00\x92", packet.Pubcomp: "\x00\x92",
		packet.Disconnect: "\x00\x04\x80\x81\x82\x83\x90\x93\x94\x95\x96\x97\x98\x99",
	} {
		run := func(body string, v5 bool) (reason byte, err error) {
			if in == packet.Disconnect {
				return packet.CheckDisconnect([]byte(body), v5)
			}
			id, failed, err := packet.ParseAck(in, []byte("\x12\x34"+body), v5)
			if err == nil && id != 0x1234 {
				t.Errorf("%s: packet id %#x", names[in], id)
			}
			if failed {
				reason = 0x80
			}
			return reason, err
		}
		for reason := range 256 {
			want := byte(0x82)
			if slices.Contains([]byte(codes), byte(reason)) {
				want = 0
			}
			for _, rest := range []string{"", "\x00", "\x05\x26\x00\x00\x00\x00"} {
				got, err := run(string([]byte{byte(reason)})+rest, true)
				if code(err) != want || (err == nil) != (want == 0) {
					t.Errorf("%s with reason %#x and %x: %v, want %#x", names[in], reason, rest, err, want)
				}
				if err == nil && (got >= 0x80) != (reason >= 0x80) {
					t.Errorf("%s with reason %#x is taken for %#x", names[in], reason, got)
				}
			}
			if _, err := run(string([]byte{byte(reason)}), false); code(err) != 0x81 {
				t.Errorf("%s of 3.1.1 with a byte more: %v", names[in], err)
			}
		}
		for _, v5 := range []bool{false, true} {
			if _, err := run("", v5); err != nil {
				t.Errorf("%s without a reason: %v", names[in], err)
			}
		}
		for _, rest := range []string{"\x00\x00\x00", "\x00\x05\x26\x00\x00\x00\x00\x00", "\x00\x01"} {
			if _, err := run(rest, true); code(err) != 0x81 {
				t.Errorf("%s with %x: %v", names[in], rest, err)
			}
		}
	}
}

// The first byte of a packet (MQTT 5, 2.1.2 and 2.1.3).
func TestFirstByte(t *testing.T) {
	t.Parallel()
	flags := map[int]int{1: 0, 4: 0, 5: 0, 6: 2, 7: 0, 8: 2, 10: 2, 12: 0, 14: 0, 15: 0}
	for head := range 256 {
		want := byte(0)
		switch only, sent := flags[head>>4]; {
		case head>>4 == 3: // what a PUBLISH says with its flags is looked at elsewhere
		case !sent:
			want = 0x82
		case head&15 != only:
			want = 0x81
		}
		if err := packet.CheckFirstByte(byte(head)); code(err) != want || (err == nil) != (want == 0) {
			t.Errorf("%#x: %v, want %#x", head, err, want)
		}
	}
}

// Names must not have control characters (MQTT 5, 1.5.4), and topics no wildcards.
func TestNames(t *testing.T) {
	t.Parallel()
	for r := range rune(0x3000) {
		want := r >= 0x20 && (r < 0x7F || r > 0x9F)
		if got := packet.ValidName("a" + string(r) + "b"); got != want {
			t.Errorf("U+%04X: %t", r, got)
		}
		if got := packet.ValidTopic([]byte("a" + string(r) + "b")); got != (want && r != '+' && r != '#') {
			t.Errorf("topic with U+%04X: %t", r, got)
		}
	}
	for s, want := range map[string]bool{
		"": true, "\xff": false, "\xc2": false, "a\xed\xa0\x80": false, "\U0002A6D4": true, "\uFFFF": true, "\uFFFD": true, "\xc0\x80": false, "\xf8\x88\x80\x80\x80": false,
	} {
		if got := packet.ValidName(s); got != want {
			t.Errorf("%q: %t", s, got)
		}
	}
	if packet.ValidTopic("") || packet.ValidFilter("a\x01") || packet.ValidFilter("a/\u0085") || !packet.ValidFilter("字/+") {
		t.Error("topics or filters")
	}
}
