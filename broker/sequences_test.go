package broker_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/internal/mqttest"
)

// The byte sequences of this file are made from the specification by rule: for both versions,
// every first byte, every property in every packet, every kind of name, every length. They
// cover what Mosquitto's own sequences cover (test/broker/data there), and more. Where we
// differ from Mosquitto on purpose, ARCHITECTURE.md says so.

// sequence is what a client sends and what becomes of its connection.
type sequence struct {
	name    string
	version byte
	connect string // its CONNECT, "" for a sound one
	send    string
	ends    bool
	reason  byte // of MQTT 5's DISCONNECT, or of CONNACK if it is about CONNECT; 0 for whichever
}

const (
	stays     = byte(0)
	malformed = byte(0x81)
	protocol  = byte(0x82)
)

// packetOf puts a packet together.
func packetOf(head byte, body ...string) string {
	all := strings.Join(body, "")
	return string(append([]byte{head}, binary.AppendUvarint(nil, uint64(len(all)))...)) + all
}

// str is a UTF-8 encoded string.
func str(s string) string { return string(binary.BigEndian.AppendUint16(nil, uint16(len(s)))) + s }

// props puts properties together: in MQTT 3.1.1 there are none.
func props(version byte, all string) string {
	if version < 5 {
		return ""
	}
	return string(binary.AppendUvarint(nil, uint64(len(all)))) + all
}

// connectOf puts a CONNECT together, with what its flags say that it has.
func connectOf(version, flags byte, properties, clientID, willProps, willTopic, userName, token string) string {
	body := str("MQTT") + string([]byte{version, flags, 0, 0}) + props(version, properties) + str(clientID)
	if flags&0x04 != 0 {
		body += props(version, willProps) + str(willTopic) + str("gone")
	}
	if flags&0x80 != 0 {
		body += str(userName)
	}
	if flags&0x40 != 0 {
		body += str(token)
	}
	return packetOf(0x10, body)
}

// propertyOf says of each property of MQTT 5 (table 2-4) a value and in which packets of a
// client it may be: C connect, W will, P publish, A acknowledgements, S subscribe,
// U unsubscribe, D disconnect.
var propertyOf = map[byte]struct{ value, in string }{
	0x01: {"\x01", "PW"}, 0x02: {"\x00\x00\x00\x05", "PW"}, 0x03: {"\x00\x01x", "PW"}, 0x08: {"\x00\x01x", "PW"},
	0x09: {"\x00\x01x", "PW"}, 0x0B: {"\x05", "S"}, 0x11: {"\x00\x00\x00\x00", "CD"}, 0x12: {"\x00\x01x", ""},
	0x13: {"\x00\x05", ""}, 0x15: {"\x00\x01x", ""}, 0x16: {"\x00\x01x", ""}, 0x17: {"\x01", "C"},
	0x18: {"\x00\x00\x00\x05", "W"}, 0x19: {"\x01", "C"}, 0x1A: {"\x00\x01x", ""}, 0x1C: {"\x00\x01x", ""},
	0x1F: {"\x00\x01x", "AD"}, 0x21: {"\x00\x05", "C"}, 0x22: {"\x00\x05", "C"}, 0x23: {"\x00\x05", ""},
	0x24: {"\x01", ""}, 0x25: {"\x01", ""}, 0x26: {"\x00\x01k\x00\x01v", "CWPASUD"}, 0x27: {"\x00\x00\x10\x00", "C"},
	0x28: {"\x01", ""}, 0x29: {"\x01", ""}, 0x2A: {"\x01", ""},
}

// sequences makes them all. token is one that may publish and subscribe outside the chat.
func sequences(token string) (all []sequence) {
	add := func(version byte, name, send string, reason byte) {
		all = append(all, sequence{name: fmt.Sprintf("v%d %s", version, name), version: version, send: send, ends: reason != stays, reason: reason})
	}
	for _, v := range []byte{4, 5} {
		addFirstBytes(v, add)
		addNames(v, add)
		addLengths(v, add)
	}
	addProperties(add)
	addReasons(add)
	return append(all, connects(token)...)
}

type adder func(version byte, name, send string, reason byte)

// addFirstBytes has every first byte, with a body that is sound for its type.
func addFirstBytes(v byte, add adder) {
	filter := str("seq/+")
	bodies := map[byte]string{
		1: str("MQTT") + string([]byte{v, 2, 0, 0}) + props(v, "") + str("x"), 2: "\x00\x00", 9: "\x00\x01\x00", 11: "\x00\x01",
		4: "\x00\x07", 5: "\x00\x07", 6: "\x00\x07", 7: "\x00\x07", 8: "\x00\x07" + props(v, "") + filter + "\x00", 10: "\x00\x07" + props(v, "") + filter,
	}
	for head := range 256 {
		kind, flags := byte(head>>4), byte(head&15)
		body, reason := bodies[kind], stays
		switch kind {
		case 3:
			body = str("seq/a")
			if flags>>1&3 > 0 {
				body += "\x00\x07"
			}
			body += props(v, "") + "x"
			if flags>>1&3 == 3 || flags&6 == 0 && flags&8 != 0 {
				reason = malformed
			}
		case 0, 2, 9, 11, 13: // nobody's, or the server's
			reason = protocol
		case 1, 15: // the second of its kind; authentication that nobody has begun
			if reason = protocol; flags != 0 {
				reason = malformed
			}
		case 6, 8, 10:
			if flags != 2 {
				reason = malformed
			}
		case 14:
			if flags == 0 {
				continue // the client has ended it
			}
			reason = malformed
		default:
			if flags != 0 {
				reason = malformed
			}
		}
		add(v, fmt.Sprintf("first byte %#02x", head), packetOf(byte(head), body), reason)
	}
}

// addNames has topics and filters of all kinds.
func addNames(v byte, add adder) {
	publish := func(topic string) string { return packetOf(0x30, str(topic), props(v, ""), "x") }
	subscribe := func(filter string) string { return packetOf(0x82, "\x00\x07", props(v, ""), str(filter), "\x00") }
	unsubscribe := func(filter string) string { return packetOf(0xA2, "\x00\x07", props(v, ""), str(filter)) }
	names := map[string]byte{
		"seq/\x00": malformed, "seq/\xed\xa0\x80": malformed, "seq/\xed\xbf\xbf": malformed, "seq/\xff": malformed, "seq/\xc3": malformed,
		"seq/\xc0\x80": malformed, "seq/\U0002A6D4": stays, "seq/\uFEFF": stays, "seq//": stays, "seq/ ": stays, "seq/字": stays,
	}
	for r := range rune(0xA1) {
		switch {
		case r < 0x20, r >= 0x7F && r <= 0x9F:
			names["seq/"+string(r)] = malformed
		case r != '+' && r != '#':
			names["seq/"+string(r)] = stays
		}
	}
	for name, reason := range names {
		add(v, fmt.Sprintf("PUBLISH to %q", name), publish(name), reason)
		add(v, fmt.Sprintf("SUBSCRIBE %q", name), subscribe(name), reason)
		add(v, fmt.Sprintf("UNSUBSCRIBE %q", name), unsubscribe(name), reason)
	}
	for _, topic := range []string{"+", "#", "seq/+", "seq/#", "+/seq", "se+q", "s#", "user/+", "group/#", "$SYS/#"} {
		add(v, fmt.Sprintf("PUBLISH to %q", topic), publish(topic), malformed)
	}
	add(v, "PUBLISH to nothing", publish(""), protocol) // no topic alias was announced
	for filter, reason := range map[string]byte{
		"": malformed, "#/a": malformed, "a#": malformed, "a/#/b": malformed, "##": malformed, "a+": malformed, "+a/b": malformed, "a/b+/c": malformed,
		"$share": malformed, "$share/": malformed, "$share/g": malformed, "$share/g/": malformed, "$share//a": malformed, "$share/+/a": malformed,
		"$share/#/a": malformed, "$share/g+/a": malformed, "$share/g/a#": malformed,
		"#": stays, "+": stays, "/": stays, "+/+": stays, "seq/#": stays, "$share/g/seq/#": stays, "$SYS/#": stays, "user/other": stays, "$other/x": stays,
	} {
		add(v, fmt.Sprintf("SUBSCRIBE %q", filter), subscribe(filter), reason)
		add(v, fmt.Sprintf("UNSUBSCRIBE %q", filter), unsubscribe(filter), reason)
		// A sound one before it does not help, nor one behind it.
		add(v, fmt.Sprintf("SUBSCRIBE a, %q", filter), packetOf(0x82, "\x00\x07", props(v, ""), str("seq/a"), "\x00", str(filter), "\x00"), reason)
		add(v, fmt.Sprintf("SUBSCRIBE %q, a", filter), packetOf(0x82, "\x00\x07", props(v, ""), str(filter), "\x00", str("seq/a"), "\x00"), reason)
		add(v, fmt.Sprintf("UNSUBSCRIBE a, %q", filter), packetOf(0xA2, "\x00\x07", props(v, ""), str("seq/a"), str(filter)), reason)
	}
	for options := range 256 {
		reason := stays
		switch {
		case v == 4 && options > 2, options&0xC0 != 0, options&3 == 3:
			reason = malformed
		case options>>4&3 == 3:
			reason = protocol
		}
		add(v, fmt.Sprintf("SUBSCRIBE with options %#02x", options), packetOf(0x82, "\x00\x07", props(v, ""), str("seq/a"), string([]byte{byte(options)})), reason)
	}
	shared := protocol
	if v == 4 {
		shared = malformed
	}
	add(v, "SUBSCRIBE shared with No Local", packetOf(0x82, "\x00\x07", props(v, ""), str("$share/g/seq/a"), "\x04"), shared)
}

// addLengths has packets that are cut short at each byte, or longer than they say, and packet
// id 0.
func addLengths(v byte, add adder) {
	more := "\x26\x00\x01k\x00\x01v"
	for name, p := range map[string]struct {
		head       byte
		body       string
		whole, id0 int // up to how many bytes must be there; where the packet id is
		tail       byte
	}{
		"PUBLISH": {0x32, str("seq/a") + "\x00\x07" + props(v, more), 9 + len(props(v, more)), 7, stays},
		// Without a second filter, so that no shorter one is sound.
		"SUBSCRIBE":   {0x82, "\x00\x07" + props(v, more) + str("seq/a") + "\x01", 10 + len(props(v, more)), 0, malformed},
		"UNSUBSCRIBE": {0xA2, "\x00\x07" + props(v, more) + str("seq/a"), 9 + len(props(v, more)), 0, malformed},
		"PUBACK":      {0x40, "\x00\x07", 2, 0, malformed},
		"PUBREC":      {0x50, "\x00\x07", 2, 0, malformed},
		"PUBREL":      {0x62, "\x00\x07", 2, 0, malformed},
		"PUBCOMP":     {0x70, "\x00\x07", 2, 0, malformed},
	} {
		for n := range p.whole {
			reason := malformed
			if strings.HasSuffix(name, "SUBSCRIBE") && n == 2+len(props(v, more)) {
				reason = protocol // no filter
			}
			add(v, fmt.Sprintf("%s of %d bytes", name, n), packetOf(p.head, p.body[:n]), reason)
		}
		add(v, name, packetOf(p.head, p.body), stays)
		add(v, name+" with packet id 0", packetOf(p.head, p.body[:p.id0], "\x00\x00", p.body[p.id0+2:]), protocol)
		tail := "\x00"
		if v == 5 && len(p.body) == 2 {
			tail = "\x00\x00\x00" // a reason code, no properties, and one more
		}
		add(v, name+" with a byte more", packetOf(p.head, p.body, tail), p.tail)
	}
	add(v, "PINGREQ with a byte", packetOf(0xC0, "\x00"), malformed)
	for _, body := range []string{"\x00\x00\x00", "\x00\x01", "\x00\x05\x11\x00\x00\x00", "\x00\x80"} {
		add(v, fmt.Sprintf("DISCONNECT with %x", body), packetOf(0xE0, body), malformed)
	}
	add(v, "a length of five bytes", "\x30\xff\xff\xff\xff\x7f", malformed)
	add(v, "a packet of 268 MB", "\x30\xff\xff\xff\x7f", 0x95)
}

// addProperties has every property in every packet of MQTT 5: once, twice, cut short.
func addProperties(add adder) {
	for _, p := range []struct {
		name, kind string
		with       func(props string) string
	}{
		{"PUBLISH", "P", func(s string) string { return packetOf(0x30, str("seq/a"), props(5, s), "x") }},
		{"PUBACK", "A", func(s string) string { return packetOf(0x40, "\x00\x07\x00", props(5, s)) }},
		{"PUBREC", "A", func(s string) string { return packetOf(0x50, "\x00\x07\x00", props(5, s)) }},
		{"PUBREL", "A", func(s string) string { return packetOf(0x62, "\x00\x07\x00", props(5, s)) }},
		{"PUBCOMP", "A", func(s string) string { return packetOf(0x70, "\x00\x07\x00", props(5, s)) }},
		{"SUBSCRIBE", "S", func(s string) string { return packetOf(0x82, "\x00\x07", props(5, s), str("seq/a"), "\x00") }},
		{"UNSUBSCRIBE", "U", func(s string) string { return packetOf(0xA2, "\x00\x07", props(5, s), str("seq/a")) }},
		{"DISCONNECT", "D", func(s string) string { return packetOf(0xE0, "\x00", props(5, s)) }},
	} {
		for id := range byte(0x30) {
			property, known := propertyOf[id]
			if !known {
				property.value = "\x01"
			}
			one := string([]byte{id}) + property.value
			allowed := strings.Contains(property.in, p.kind)
			once, twice, cut := stays, protocol, malformed
			switch {
			case p.kind == "P" && id == 0x23: // an alias, of which there are none
				once = 0x94
			case p.kind == "P" && id == 0x0B: // what only a server says
				once = protocol
			case !allowed:
				once, twice = malformed, malformed
			case id == 0x26:
				twice = stays
			}
			if p.kind != "D" || once != stays { // a sound DISCONNECT is an end that says nothing
				add(5, fmt.Sprintf("%s with property %#02x", p.name, id), p.with(one), once)
			}
			if p.kind != "D" || twice != stays {
				add(5, fmt.Sprintf("%s with property %#02x twice", p.name, id), p.with(one+one), twice)
			}
			add(5, fmt.Sprintf("%s with property %#02x cut short", p.name, id), p.with(one[:len(one)-1]), cut)
		}
	}
	for name, s := range map[string]string{
		"format 2": "\x01\x02", "no response topic": "\x08\x00\x00", "response topic with a wildcard": "\x08\x00\x03a/#",
	} {
		add(5, "PUBLISH with "+name, packetOf(0x30, str("seq/a"), props(5, s), "x"), protocol)
	}
	for id, reason := range map[string]byte{"\x00": protocol, "\x80\x00": protocol, "\x80\x80\x80\x80\x01": malformed, "\xff\xff\xff\x7f": stays} {
		add(5, fmt.Sprintf("SUBSCRIBE with identifier %x", id), packetOf(0x82, "\x00\x07", props(5, "\x0B"+id), str("seq/a"), "\x00"), reason)
	}
}

// addReasons has reason codes, each with and without properties.
func addReasons(add adder) {
	published := "\x00\x10\x80\x83\x87\x90\x91\x97\x99"
	for name, p := range map[string]struct {
		head  byte
		codes string
	}{
		"PUBACK": {0x40, published}, "PUBREC": {0x50, published}, "PUBREL": {0x62, "\x00\x92"}, "PUBCOMP": {0x70, "\x00\x92"},
	} {
		for _, code := range []byte("\x00\x01\x04\x10\x11\x18\x7f\x80\x81\x82\x83\x87\x8e\x90\x91\x92\x97\x98\x99\x9b\xa2\xff") {
			want := protocol
			if slices.Contains([]byte(p.codes), code) {
				want = stays
			}
			for _, rest := range []string{"", "\x00", "\x04\x1f\x00\x01x"} {
				add(5, fmt.Sprintf("%s with reason %#02x and %x", name, code, rest), packetOf(p.head, "\x00\x07", string([]byte{code}), rest), want)
			}
		}
	}
	for _, code := range []byte("\x01\x10\x87\x8b\x92\xa2\xff") {
		add(5, fmt.Sprintf("DISCONNECT with reason %#02x", code), packetOf(0xE0, string([]byte{code})), protocol)
	}
}

// connects are CONNECTs: every byte of flags, every property, names.
func connects(token string) (all []sequence) {
	add := func(v byte, name, connect string, ends bool, reason byte) {
		all = append(all, sequence{name: fmt.Sprintf("v%d CONNECT %s", v, name), version: v, connect: connect, ends: ends, reason: reason})
	}
	n := 0
	id := func() string { // or one would take over from another
		n++
		return fmt.Sprint("hostile", n)
	}
	for _, v := range []byte{4, 5} {
		sound := func(clientID, willTopic, user string) string {
			return connectOf(v, 0xC6, "", clientID, "", willTopic, user, token)
		}
		for flags := range 256 {
			f, reason := byte(flags), stays
			switch {
			case f&1 != 0, f&4 == 0 && f&0x38 != 0, f&0x18 == 0x18:
				reason = protocol
			case f&0x40 == 0:
				reason = 0x87 // no token; the reasons for that are the hook's
			}
			ends := reason != stays
			if reason == 0x87 {
				reason = 0
			}
			add(v, fmt.Sprintf("with flags %#02x", f), connectOf(v, f, "", id(), "", "seq/will", "any", token), ends, reason)
		}
		for what, s := range map[string]string{"U+0000": "a\x00", "a surrogate": "\xed\xa0\x80", "U+0001": "a\x01", "U+001F": "\x1f", "U+007F": "a\x7f", "U+0085": "\u0085", "bad UTF-8": "\xff"} {
			add(v, "with a client id with "+what, sound(s, "seq/will", "any"), true, malformed)
			add(v, "with a will on a topic with "+what, sound(id(), s, "any"), true, malformed)
			add(v, "with a user name with "+what, sound(id(), "seq/will", s), true, malformed)
		}
		add(v, "with a will on no topic", sound(id(), "", "any"), true, malformed)
		add(v, "with a will on many topics", sound(id(), "seq/#", "any"), true, 0x90)
		whole := sound(id(), "seq/will", "any")
		body := whole[3:]
		if whole[1] < 0x80 {
			body = whole[2:]
		}
		for n := 12; n < 40; n++ {
			add(v, fmt.Sprintf("of %d bytes", n), packetOf(0x10, body[:n]), true, malformed)
		}
		add(v, "with a byte more", packetOf(0x10, body, "x"), true, malformed)
		for flags := byte(1); flags < 16; flags++ {
			add(v, fmt.Sprintf("with first byte %#02x", 0x10|flags), string([]byte{0x10 | flags})+whole[1:], true, 0)
		}
		add(v, "twice", "", false, 0)
		all[len(all)-1].send, all[len(all)-1].ends, all[len(all)-1].reason = whole, true, protocol
	}
	for property := range byte(0x30) {
		of, known := propertyOf[property]
		if !known {
			of.value = "\x01"
		}
		one := string([]byte{property}) + of.value
		for where, with := range map[string]func(string) string{
			"C": func(s string) string { return connectOf(5, 0xC2, s, id(), "", "", "any", token) },
			"W": func(s string) string { return connectOf(5, 0xC6, "", id(), s, "seq/will", "any", token) },
		} {
			once, twice := malformed, malformed
			switch {
			case where == "C" && property == 0x15:
				once, twice = 0x8C, protocol // an authentication method, of which there is none but the token
			case where == "C" && property == 0x16:
				once, twice = protocol, protocol // data without a method
			case strings.Contains(of.in, where):
				if once, twice = stays, protocol; property == 0x26 {
					twice = stays
				}
			}
			add(5, fmt.Sprintf("%s with property %#02x", where, property), with(one), once != stays, once)
			add(5, fmt.Sprintf("%s with property %#02x twice", where, property), with(one+one), twice != stays, twice)
			add(5, fmt.Sprintf("%s with property %#02x cut short", where, property), with(one[:len(one)-1]), true, malformed)
		}
	}
	for _, s := range []string{"\x21\x00\x00", "\x27\x00\x00\x00\x00", "\x17\x02", "\x19\x02"} {
		add(5, fmt.Sprintf("with property %x", s), connectOf(5, 0xC2, s, id(), "", "", "any", token), true, protocol)
	}
	add(5, "of a client that takes no CONNACK", connectOf(5, 0xC2, "\x27\x00\x00\x00\x02", id(), "", "", "any", token), true, 0)
	for name, connect := range map[string]string{
		"another name":  packetOf(0x10, str("MQTU"), "\x04\x02\x00\x00", str("x")),
		"no name":       packetOf(0x10, str(""), "\x04\x02\x00\x00", str("hostile")),
		"level 0":       packetOf(0x10, str("MQTT"), "\x00\x02\x00\x00", str("x")),
		"level 6":       packetOf(0x10, str("MQTT"), "\x06\x02\x00\x00", str("x")),
		"level 3":       packetOf(0x10, str("MQTT"), "\x03\x02\x00\x00", str("x")),
		"a bridge of 5": packetOf(0x10, str("MQTT"), "\x85\x02\x00\x00\x00", str("x")),
	} {
		add(4, "with "+name, connect, true, 0)
	}
	return all
}

// answer is what came of a sequence.
type answer struct {
	connack int  // reason, -1 if none came
	pong    bool // the connection is as before
	reason  int  // of DISCONNECT, -1 if none came
}

// replay sends a sequence on a connection of its own.
func (q *sequence) replay(addr, token string) (a answer, err error) {
	a.connack, a.reason = -1, -1
	conn, err := net.DialTimeout("tcp", addr, mqttest.Timeout)
	if err != nil {
		return a, err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(mqttest.Timeout))
	connect := q.connect
	if connect == "" {
		connect = connectOf(q.version, 0xC2, "", "hostile"+q.name, "", "", "any", token)
	}
	all := connect + q.send
	if !q.ends {
		all += "\xc0\x00"
	}
	if _, err := conn.Write([]byte(all)); err != nil {
		return a, err
	}
	for r := bufio.NewReader(conn); ; {
		head, err := r.ReadByte()
		if err != nil {
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				return a, fmt.Errorf("nothing has become of it: %w", err)
			}
			return a, nil // it has ended
		}
		length, err := binary.ReadUvarint(r)
		if err != nil {
			return a, nil
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(r, body); err != nil {
			return a, nil
		}
		switch head >> 4 {
		case packets.Connack:
			a.connack = int(body[1])
		case packets.Disconnect:
			a.reason = int(body[0])
		case packets.Pingresp:
			a.pong = true
			return a, nil
		}
	}
}

// wrong says what is wrong with what came of a sequence, "" if nothing is.
func (q *sequence) wrong(a answer) string {
	switch {
	case !q.ends && (a.connack != 0 || !a.pong):
		return "the connection did not stay"
	case q.ends && a.pong:
		return "the connection stays"
	case q.ends && q.connect != "" && a.connack == 0:
		return "it was let in"
	case q.ends && q.connect != "" && q.version == 5 && q.reason != 0 && a.connack != int(q.reason):
		return fmt.Sprintf("CONNACK should say %#x", q.reason)
	case q.ends && q.connect == "" && q.version == 5 && a.reason != int(q.reason):
		return fmt.Sprintf("DISCONNECT should say %#x", q.reason)
	case q.version < 5 && a.reason >= 0:
		return "a server of 3.1.1 has no DISCONNECT"
	}
	return ""
}

// Whoever breaks MQTT is cut off and told why (MQTT-4.13.1-1), whoever does not stays, and a
// conversation beside them all loses nothing.
func TestByteSequences(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	token := wide(t, "hostile").Token
	all := sequences(token)
	if len(all) < 1826 {
		t.Fatalf("%d sequences", len(all))
	}
	t.Logf("%d sequences", len(all))

	work, done := make(chan *sequence), make(chan struct{})
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for q := range work {
				a, err := q.replay(addr, token)
				if err != nil {
					t.Errorf("%s: %v", q.name, err)
				} else if wrong := q.wrong(a); wrong != "" {
					t.Errorf("%s: %s; got %+v for %.60x", q.name, wrong, a, q.send)
				}
			}
		})
	}
	go func() {
		defer close(done)
		for i := range all {
			work <- &all[i]
		}
		close(work)
		workers.Wait()
	}()

	alice, bob := mqttest.Dial(t, addr, v5(user(t, "alice", "phone"))), mqttest.Dial(t, addr, v5(user(t, "bob", "phone")))
	bob.Subscribe(1, "user/bob")
	var last uint64
	said := 0
	for running := true; running; said++ {
		select {
		case <-done:
			running = false
		default:
		}
		alice.PublishAcked("user/bob", 1, fmt.Sprint("message ", said))
		m := bob.ReceiveAcked()
		if m.Body != fmt.Sprint("message ", said) || m.Prev != last {
			t.Fatalf("message %d: got %v after %d, want it after %d", said, m.Body, m.Prev, last)
		}
		last = m.Seq
	}
	bob.ExpectNothing()
	if said < 100 {
		t.Errorf("the conversation had %d messages only", said)
	}
}

// An acknowledgement that is not a step of the exchange that is open ends the connection
// (MQTT 5, 4.3.2 and 4.3.3); the message comes again.
func TestWrongAcknowledgementsEndTheConnection(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	pub := mqttest.Dial(t, addr, v5(wide(t, "pub")))
	for _, topic := range []string{"user/", "seq/"} {
		for _, version := range []byte{4, 5} {
			for i, tc := range []struct {
				qos  byte
				acks []byte
				want byte
			}{
				{1, []byte{packets.Pubrec}, protocol},
				{1, []byte{packets.Pubcomp}, protocol},
				{2, []byte{packets.Puback}, protocol},
				{2, []byte{packets.Pubcomp}, protocol},
				{2, []byte{packets.Pubrec, packets.Puback}, protocol},
				{2, []byte{packets.Pubrec, packets.Pubrec, packets.Pubcomp}, stays}, // a repetition
				{1, []byte{packets.Puback, packets.Puback}, stays},                  // of nothing that is open
				{1, []byte{packets.Puback, packets.Pubcomp}, stays},
			} {
				subject := fmt.Sprintf("sub%d-%d-%d", len(topic), version, i)
				o := keep(mqttest.Options{ClientID: "d", Version: version, Token: mustToken(t, authhook.TokenClaims{Subject: subject, Sub: []string{"#"}})})
				if version == 5 {
					o = v5(o)
				}
				sub := mqttest.Dial(t, addr, o)
				sub.Subscribe(tc.qos, topic+subject)
				pub.PublishAcked(topic+subject, 2, "hello")
				m := sub.ReceivePlain()
				for _, ack := range tc.acks {
					sub.Ack(ack, m.PacketID)
					if ack == packets.Pubrec && tc.qos == 2 {
						sub.Expect(packets.Pubrel)
					}
				}
				if tc.want == stays {
					sub.Sync()
					continue
				}
				if pk := sub.ExpectEnd(); version == 5 && (pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode != tc.want) {
					t.Errorf("QoS %d, %v: got type %d with %#x", tc.qos, tc.acks, pk.FixedHeader.Type, pk.ReasonCode)
				}
				sub = mqttest.Dial(t, addr, o)
				if tc.acks[0] == packets.Pubrec && tc.qos == 2 {
					if rel := sub.Expect(packets.Pubrel); rel.PacketID != m.PacketID {
						t.Errorf("PUBREL of %d, want %d", rel.PacketID, m.PacketID)
					}
				} else if again := sub.ReceivePlain(); again.PacketID != m.PacketID || !again.FixedHeader.Dup {
					t.Errorf("QoS %d, %v: then got %d, dup %v", tc.qos, tc.acks, again.PacketID, again.FixedHeader.Dup)
				}
			}
		}
	}
}
