package listener_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mynah/broker/listener"
	"mynah/internal/waitfor"
)

// Guards against lost, repeated or reordered bytes. However the stream is cut,
// the handler gets the client's stream from its first byte.
func TestStreamIsWhole(t *testing.T) {
	t.Parallel()
	long := connect(4, strings.Repeat("c", 60_000), 60)
	for name, packet := range map[string][]byte{
		"3.1": connect(3, "a", 60), "3.1.1": connect(4, "", 60), "5": connect(5, "abc", 60), "long": long,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: echo}})
			all := append(bytes.Clone(packet), bytes.Repeat(append(publish("t", []byte("hello")), pingreq...), 3)...)

			whole := dial(t, l.Addr())
			mustWrite(t, whole, all)
			mustRead(t, whole, all)

			if name == "long" {
				return
			}
			slow := dial(t, l.Addr())
			for i := range all {
				mustWrite(t, slow, all[i:i+1])
			}
			mustRead(t, slow, all)
		})
	}
}

// Guards against a broker that spends resources on a peer whose first packet
// is not a CONNECT of reasonable size.
func TestFirstPacketIsGuarded(t *testing.T) {
	t.Parallel()
	badName := connect(4, "abc", 60)
	copy(badName[4:], "HTTP")
	cases := map[string]struct {
		send   []byte
		reason string
		answer []byte
	}{
		"publish first":        {publish("t", []byte("x")), "not_connect", nil},
		"http":                 {[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "not_connect", nil},
		"proxy header":         {[]byte("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"), "not_connect", nil},
		"tls hello":            {[]byte{0x16, 3, 1, 0, 200}, "not_connect", nil},
		"flags":                {append([]byte{0x11}, connect(4, "abc", 60)[1:]...), "not_connect", nil},
		"length of five bytes": {[]byte{0x10, 0x8d, 0x80, 0x80, 0x80, 0x00}, "malformed", nil},
		"length never ends":    {append([]byte{0x10}, bytes.Repeat([]byte{0x80}, 100)...), "malformed", nil},
		"too short":            {[]byte{0x10, 2, 0, 0}, "malformed", nil},
		"too large":            {header(0x10, 2001), "too_large", nil},
		"256 MiB":              {[]byte{0x10, 0xff, 0xff, 0xff, 0x7f}, "too_large", nil},
		"name":                 {badName, "protocol", nil},
		// mosquitto's bridge probes with such levels and wants this answer to fall back.
		"level":        {connect(0x86, "abc", 60), "protocol", []byte{0x20, 2, 0, 1}},
		"bridge of 5":  {connect(0x85, "abc", 60), "protocol", []byte{0x20, 2, 0, 1}}, // which has No Local for that
		"MQTT 5 as 6":  {connect(6, "abc", 60), "protocol", []byte{0x20, 2, 0, 1}},
		"breaks off":   {connect(4, "abc", 60)[:8], "closed", nil},
		"says nothing": {nil, "closed", nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var served atomic.Int32
			m := listener.NewMetrics()
			l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{
				Handler:      func(string, *listener.Conn) error { served.Add(1); return nil },
				ConnectLimit: 2000, Metrics: m,
			}})
			conn := dial(t, l.Addr())
			_, _ = conn.Write(c.send)
			if c.reason == "closed" {
				_ = conn.CloseWrite()
			}
			if c.answer != nil {
				mustRead(t, conn, c.answer)
			}
			mustEnd(t, conn)
			waitfor.MustHold(t, "the refusal is counted", func() bool { return count(t, m, "refused_total", c.reason) == 1 })
			mustStop(t, l)
			if served.Load() != 0 {
				t.Error("the handler was called")
			}
			if n := count(t, m, "open"); n != 0 {
				t.Errorf("%d connections still counted as open", n)
			}
		})
	}
}

// Guards against connections that stay open without a CONNECT. A silent peer,
// or one that sends a byte now and then, does not extend the deadline.
func TestFirstPacketDeadline(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"silent", "slow loris"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := listener.NewMetrics()
			l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: echo, FirstPacketTimeout: 200 * time.Millisecond, Metrics: m}})
			conn := dial(t, l.Addr())
			if name == "slow loris" {
				packet := connect(4, strings.Repeat("c", 2000), 60)
				for i := range packet {
					if _, err := conn.Write(packet[i : i+1]); err != nil {
						break
					}
					time.Sleep(10 * time.Millisecond) // is the attack, not a synchronisation
				}
			}
			mustEnd(t, conn)
			waitfor.MustHold(t, "the timeout is counted", func() bool { return count(t, m, "refused_total", "timeout") == 1 })
		})
	}
}

// Guards against the first-packet deadline staying on the connection.
func TestDeadlineEndsWithTheFirstPacket(t *testing.T) {
	t.Parallel()
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: echo, FirstPacketTimeout: peerDeadline}})
	conn := dial(t, l.Addr())
	packet := connect(4, "abc", 60)
	mustWrite(t, conn, packet)
	mustRead(t, conn, packet)
	_ = conn.SetReadDeadline(time.Now().Add(peerDeadline + peerDeadline/8))
	if _, err := conn.Read(make([]byte, 1)); !isTimeout(err) {
		t.Fatalf("the connection ended: %v", err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	mustWrite(t, conn, pingreq)
	mustRead(t, conn, pingreq)
}

// Guards against over-long lengths after the CONNECT, which Mochi accepts. The
// packets before still count, and the connection ends.
func TestOverlongLengthEndsTheConnection(t *testing.T) {
	t.Parallel()
	m := listener.NewMetrics()
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: mochiHandler(newMochi(t)), Metrics: m}})
	other := dial(t, l.Addr())
	mustWrite(t, other, connect(4, "other", 60))
	mustRead(t, other, connack)

	for _, cut := range []int{0, 1, 3, 5} {
		conn := dial(t, l.Addr())
		mustWrite(t, conn, connect(4, "", 60))
		mustRead(t, conn, connack)
		mustWrite(t, conn, append(bytes.Clone(pingreq), overlong[:cut]...))
		mustRead(t, conn, pingresp)
		mustWrite(t, conn, append(bytes.Clone(overlong[cut:]), pingreq...))
		mustEnd(t, conn)
	}
	if n := count(t, m, "framing_errors_total"); n != 4 {
		t.Errorf("%d framing errors counted, want 4", n)
	}
	mustWrite(t, other, pingreq)
	mustRead(t, other, pingresp)
}

// Fails when the framer is no longer needed: Mochi without it answers a
// PINGREQ whose length has six bytes.
func TestMochiTakesOverlongLengths(t *testing.T) {
	t.Parallel()
	s := newMochi(t)
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: func(id string, c *listener.Conn) error {
		packet := make([]byte, len(connect(4, "raw", 60)))
		if _, err := c.Read(packet); err != nil {
			return err
		}
		return s.EstablishConnection(id, &replayed{Conn: c.Conn, first: packet})
	}}})
	conn := dial(t, l.Addr())
	mustWrite(t, conn, connect(4, "raw", 60))
	mustRead(t, conn, connack)
	mustWrite(t, conn, overlong)
	mustRead(t, conn, pingresp)
}

// Fails if the framer has to limit the size of packets too: Mochi's limit
// refuses the largest lengths before it allocates memory.
func TestMochiBoundsPackets(t *testing.T) {
	t.Parallel()
	mochi := newMochi(t)
	mochi.Options.Capabilities.MaximumPacketSize = 1000
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: mochiHandler(mochi)}})
	for _, packet := range [][]byte{{0x30, 0xff, 0xff, 0xff, 0x7f}, header(0x30, 1001), header(0x82, 1001)} {
		conn := dial(t, l.Addr())
		mustWrite(t, conn, connect(4, "", 60))
		mustRead(t, conn, connack)
		mustWrite(t, conn, packet)
		mustEnd(t, conn)
	}
}

// Guards against a client that ends the broker: Mochi panics on a truncated
// MQTT 5 SUBSCRIBE. All other connections continue, the session can be cleaned
// up, and the log has the stack once and no payload.
func TestPanicEndsOneConnection(t *testing.T) {
	t.Parallel()
	var (
		logs  logBuffer
		mochi = newMochi(t)
		m     = listener.NewMetrics()
		gone  = make(chan string, 3)
	)
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{
		Metrics: m, Logger: slog.New(slog.NewJSONHandler(&logs, nil)),
		Handler: func(id string, c *listener.Conn) error {
			defer func() {
				for id, cl := range mochi.Clients.GetAll() {
					if cl.Net.Conn == c {
						mochi.UnsubscribeClient(cl)
						mochi.Clients.Delete(id)
						gone <- id
					}
				}
			}()
			return mochiHandler(mochi)(id, c)
		},
	}})
	connack5 := []byte{0x20}
	other := dial(t, l.Addr())
	mustWrite(t, other, connect(4, "other", 60))
	mustRead(t, other, connack)

	for _, id := range []string{"first", "second"} {
		bad := dial(t, l.Addr())
		mustWrite(t, bad, connect(5, id, 60))
		mustRead(t, bad, connack5)
		mustWrite(t, bad, panicPacket)
		select {
		case got := <-gone:
			if got != id {
				t.Errorf("cleaned up %q, want %q", got, id)
			}
		case <-time.After(wait):
			t.Fatal("nothing was cleaned up")
		}
	}
	waitfor.MustHold(t, "both connections are closed", func() bool { return count(t, m, "open") == 1 })
	if n := count(t, m, "panics_total"); n != 2 {
		t.Errorf("%d panics counted, want 2", n)
	}
	out := logs.String()
	if n := strings.Count(out, "ended by a panic"); n != 2 {
		t.Errorf("%d log lines, want 2", n)
	}
	if n := strings.Count(out, "SubscribeDecode"); n != 1 {
		t.Errorf("the stack was logged %d times, want once", n)
	}
	mustWrite(t, other, pingreq)
	mustRead(t, other, pingresp)
}

// Guards against payloads in the log (a panic's value may contain one) and
// against a clean-up that panics too.
func TestPanicValueStaysOutOfTheLog(t *testing.T) {
	t.Parallel()
	var logs logBuffer
	m := listener.NewMetrics()
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{
		Handler: func(string, *listener.Conn) error {
			defer func() { panic("SECRET") }()
			panic("SECRET")
		},
		Metrics: m, Logger: slog.New(slog.NewTextHandler(&logs, nil)),
	}})
	conn := dial(t, l.Addr())
	mustWrite(t, conn, connect(4, "abc", 60))
	mustEnd(t, conn)
	waitfor.MustHold(t, "the connection is gone", func() bool { return count(t, m, "open") == 0 })
	if out := logs.String(); strings.Contains(out, "SECRET") || strings.Count(out, "ended by a panic") != 1 {
		t.Errorf("log: %s", out)
	}
}
