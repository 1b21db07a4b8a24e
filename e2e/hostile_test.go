package e2e_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"mynah/internal/mqttwire"
)

// rawConn is a socket that speaks MQTT by hand.
type rawConn struct {
	net.Conn
	r *bufio.Reader
}

func newRaw(conn net.Conn) *rawConn { return &rawConn{conn, bufio.NewReader(conn)} }

func dialRaw(tb testing.TB, addr string) *rawConn {
	tb.Helper()
	conn, err := (&net.Dialer{Timeout: deadline}).DialContext(tb.Context(), "tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		tb.Fatal(err)
	}
	return newRaw(conn)
}

// write sends bytes; that the other side has closed is for the reader to see.
func (c *rawConn) write(tb testing.TB, p []byte) {
	tb.Helper()
	if _, err := c.Write(p); errors.Is(err, os.ErrDeadlineExceeded) {
		tb.Fatal("the server reads nothing any more")
	}
}

// packet reads one packet: its first byte and what follows the length.
func (c *rawConn) packet() (first byte, body []byte, err error) {
	frame, err := mqttwire.ReadFrame(c.r)
	if err != nil {
		return 0, nil, err
	}
	_, header, err := mqttwire.FrameSize(frame)
	return frame[0], frame[header:], err
}

func (c *rawConn) connack(tb testing.TB) {
	tb.Helper()
	first, body, err := c.packet()
	if err != nil || first != 0x20 || len(body) < 2 || body[1] != 0 {
		tb.Fatalf("CONNACK: %#x %x %v", first, body, err)
	}
}

// ended waits until the server has closed the connection.
func (c *rawConn) ended(tb testing.TB) bool {
	tb.Helper()
	for {
		if _, _, err := c.packet(); err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

// readUntilAnswerOrEnd returns at a PINGRESP or the connection's end.
func (c *rawConn) readUntilAnswerOrEnd(tb testing.TB) {
	tb.Helper()
	for {
		first, _, err := c.packet()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			tb.Fatal("neither an answer nor an end")
		}
		if err != nil || first == 0xd0 {
			return
		}
	}
}

func mqttString(s string) []byte { return mqttwire.AppendString(nil, s) }

func frame(first byte, body []byte) []byte { return mqttwire.AppendFrame(nil, first, body) }

func connectPacket(version byte, clientID, token string) []byte {
	c := mqttwire.Connect{Version: version, ClientID: clientID, Username: "any", Password: token, Clean: true, KeepAlive: 60}
	return c.Append(nil)
}

func publishPacket(version byte, topic string, qos byte, id uint16, payload string) []byte {
	p := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: topic, QoS: qos, ID: id, Payload: []byte(payload)}
	return p.Append(nil, version)
}

// Malformed packets end their own connection and nothing else: neither the
// process nor anybody else's connection.
func TestMalformedPackets(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice := unique("alice")
	bystander := dial(t, n, "bystander", token(t, alice))
	bystander.sub(t, "user/"+alice, 1)

	long := bytes.Repeat([]byte{0xff}, 20)
	beforeConnect := map[string][]byte{
		"not MQTT":                      []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"PINGREQ first":                 {0xc0, 0},
		"PUBLISH first":                 publishPacket(4, "user/bob", 0, 0, "x"),
		"SUBSCRIBE first":               {0x82, 6, 0, 1, 0, 1, 'a', 0},
		"CONNECT of a wrong protocol":   frame(0x10, append(mqttString("HTTP"), 4, 2, 0, 60, 0, 0)),
		"CONNECT of protocol version 9": frame(0x10, append(mqttString("MQTT"), 9, 2, 0, 60, 0, 0)),
		"CONNECT with reserved flag":    frame(0x10, append(mqttString("MQTT"), 4, 3, 0, 60, 0, 0)),
		"truncated CONNECT":             frame(0x10, append(mqttString("MQTT"), 4, 0xc2, 0, 60, 0, 200, 'a')),
		"CONNECT of 256 MB":             {0x10, 0xff, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T'},
		"length without end":            append([]byte{0x10}, long...),
		"packet type 0":                 {0, 0},
		"nothing but zeroes":            make([]byte, 1000),
	}
	for name, raw := range beforeConnect {
		c := dialRaw(t, n.mqtt)
		c.write(t, raw)
		if !c.ended(t) {
			t.Errorf("%s: the connection does not end", name)
		}
	}

	after := map[string]struct {
		version byte
		raw     []byte
	}{
		// Mochi 2.7.9 panics on this one (packets.go:958).
		"truncated MQTT 5 SUBSCRIBE":     {5, []byte{0x82, 6, 0, 1, 0, 0, 1, 'a'}},
		"truncated SUBSCRIBE":            {4, []byte{0x82, 5, 0, 1, 0, 9, 'a'}},
		"SUBSCRIBE without filters":      {4, []byte{0x82, 2, 0, 1}},
		"SUBSCRIBE with wrong flags":     {4, []byte{0x80, 6, 0, 1, 0, 1, 'a', 0}},
		"SUBSCRIBE at QoS 3":             {4, []byte{0x82, 6, 0, 1, 0, 1, 'a', 3}},
		"truncated PUBLISH":              {4, []byte{0x32, 3, 0, 9, 'a'}},
		"PUBLISH at QoS 3":               {4, frame(0x36, append(mqttString("user/bob"), 0, 1, 'x'))},
		"PUBLISH with packet id 0":       {4, publishPacket(4, "user/bob", 1, 0, "x")},
		"PUBLISH, MQTT 5 properties cut": {5, frame(0x32, append(mqttString("user/bob"), 0, 1, 200))},
		"PUBLISH with a topic alias":     {5, frame(0x32, append(mqttString(""), 0, 1, 3, 0x23, 0, 9, 'x'))},
		"PUBLISH with invalid UTF-8":     {4, publishPacket(4, "user/\xff\xfe", 1, 1, "x")},
		"PUBLISH of 200 MB":              {4, []byte{0x30, 0x80, 0x80, 0x80, 0x64, 0, 1, 'a'}},
		"length without end":             {4, append([]byte{0x30}, long...)},
		"second CONNECT":                 {4, connectPacket(4, "again", "x")},
		"CONNACK from a client":          {4, []byte{0x20, 2, 0, 0}},
		"reserved packet type":           {4, []byte{0xf0, 0}},
		"UNSUBSCRIBE without filters":    {5, []byte{0xa2, 3, 0, 1, 0}},
	}
	for name, test := range after {
		c := dialRaw(t, n.mqtt)
		c.write(t, connectPacket(test.version, unique("hostile"), token(t, unique("eve"))))
		c.connack(t)
		c.write(t, test.raw)
		if !c.ended(t) {
			t.Errorf("%s: the connection does not end", name)
		}
	}

	bystander.pub(t, "user/"+alice, 1, "all is well")
	bystander.waitText(t, "all is well")
}

// Who sends no packet, or one byte a second, is out after 10 s.
func TestFirstPacketDeadline(t *testing.T) {
	t.Parallel()
	n := shared(t)
	began := time.Now()
	silent := dialRaw(t, n.mqtt)
	slow := dialRaw(t, n.mqtt)
	go func() { // until the connection ends
		for _, b := range connectPacket(4, "slow", strings.Repeat("x", 300)) {
			if _, err := slow.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(200 * time.Millisecond) // the attack's own pace
		}
	}()
	for name, c := range map[string]*rawConn{"silent": silent, "slow": slow} {
		if !c.ended(t) {
			t.Errorf("the %s connection does not end", name)
		}
		if took := time.Since(began); took < 5*time.Second || took > 20*time.Second {
			t.Errorf("the %s connection ended after %v, want about 10s", name, took)
		}
	}
}

// Many connections that announce huge packets cost what they send, not what they
// announce.
func TestAnnouncedLengthsCostNothing(t *testing.T) {
	t.Parallel()
	n := start(t, "broker", "--data-dir", t.TempDir(), "--jwt-secret", secret,
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	dial(t, n, "warm", token(t, "warm")).pub(t, "user/warm", 1, "up")
	before := residentKiB(t, n)
	for range 200 {
		c := dialRaw(t, n.mqtt)
		c.write(t, []byte{0x10, 0xff, 0xff, 0x3f, 0, 4, 'M', 'Q', 'T', 'T', 4, 0xc2, 0, 60}) // a CONNECT of 1 MB
	}
	authenticated := func() *rawConn {
		c := dialRaw(t, n.mqtt)
		c.write(t, connectPacket(4, unique("c"), token(t, "eve")))
		c.connack(t)
		return c
	}
	for range 50 {
		authenticated().write(t, []byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0, 8, 'u', 's', 'e', 'r'}) // a PUBLISH of 256 MB
	}
	dial(t, n, "after", token(t, "after")).pub(t, "user/after", 1, "still up")
	if grown := residentKiB(t, n) - before; grown > 64<<10 {
		t.Errorf("resident memory grew by %d KiB, want less than 64 MiB", grown)
	}
}

func residentKiB(tb testing.TB, n *node) int {
	tb.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				tb.Fatal(err)
			}
			return kib
		}
	}
	tb.Fatal("no VmRSS")
	return 0
}

// A payload over the packet limit ends the connection, one over the message
// limit is refused; deep JSON is neither a crash nor a delay.
func TestOversize(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice := unique("alice")
	js := connectJS(t, n, token(t, alice), nil)
	js.subscribe(t, "user/"+alice, 1)
	deep := strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000)
	for _, payload := range []string{`{"body":` + deep + `}`, strings.Repeat(`{"body":`, 8_000)} {
		began := time.Now()
		js.publish(t, "user/"+alice, 1, payload)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("deep JSON took %v", took)
		}
	}
	c := dialRaw(t, n.mqtt)
	c.write(t, connectPacket(4, "big", token(t, unique("eve"))))
	c.connack(t)
	c.write(t, publishPacket(4, "user/"+alice, 1, 1, strings.Repeat("x", 4<<20)))
	if !c.ended(t) {
		t.Error("a packet of 4 MiB did not end the connection")
	}
	js.publish(t, "user/"+alice, 1, "fine")
	js.waitText(t, "fine")
}
