package e2e_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// What one client sends as fast as it can, without a rate set, others do not feel: the 99th
// percentile of a conversation beside it is at most three times that of the conversation
// beside a client that sends as fast as it can past the queue, on one connection, to nobody
// and at QoS 0, and so has its part of the processors. The rounds alternate, so that what else the machine does is in
// all. Everything in the queue went into one batch before, for which the conversation waited.
func TestOneClientIsNotFelt(t *testing.T) {
	const (
		rounds   = 5
		messages = 120 // a round and kind
	)
	n := start(t, "broker", "--data-dir", t.TempDir(), "--jwt-secret", secret, "--no-archive",
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	crowd := unique("crowd")
	for range 100 {
		member := dialRawAs(t, n, "member", token(t, unique("member"), groups(crowd)))
		member.subscribe(t, "group/"+crowd, 0)
		go func() { _, _ = io.Copy(io.Discard, member) }()
	}
	alone := newCanary(t, n)
	alone.round(t, messages) // warm
	for name, g := range map[string]greedy{
		"small":       {conns: 1, to: "user/nobody", text: strings.Repeat("x", 100)},
		"large":       {conns: 1, to: "user/nobody", text: strings.Repeat("x", 60_000)},
		"to a crowd":  {conns: 1, to: "group/" + crowd, text: strings.Repeat("x", 100)},
		"connections": {conns: 30, to: "user/nobody", text: strings.Repeat("x", 100)},
	} {
		t.Run(name, func(t *testing.T) {
			sender := unique("greedy")
			past := greedy{conns: 1, to: "elsewhere/nobody", text: g.text, qos0: true}
			var quiet, control, loaded, ratios []float64
			sent := 0
			for range rounds {
				q := alone.round(t, messages)
				stop := past.start(t, n, token(t, sender, jwt.MapClaims{"acl": map[string]any{"pub": []string{"elsewhere/#"}}}))
				c := alone.round(t, messages)
				stop()
				stop = g.start(t, n, token(t, sender, groups(crowd)))
				l := alone.round(t, messages)
				sent += stop()
				quiet, control, loaded, ratios = append(quiet, q), append(control, c), append(loaded, l), append(ratios, l/c)
			}
			t.Logf("p99 alone %.1f ms, beside what goes past the queue %.1f ms, beside it %.1f ms, ratio %.1f of %.1f; it sent %d",
				median(quiet), median(control), median(loaded), median(ratios), ratios, sent)
			if sent < rounds*50 {
				t.Errorf("it sent %d, which is not much", sent)
			}
			if r := median(ratios); r > 3 {
				t.Errorf("the 99th percentile is %.1f times what it is without the queue, want at most 3", r)
			}
		})
	}
}

// dialRawAs connects as a token's subject.
func dialRawAs(tb testing.TB, n *node, clientID, token string) *rawConn {
	tb.Helper()
	c := dialRaw(tb, n.mqtt)
	if err := c.SetDeadline(time.Time{}); err != nil { // the test's own bounds what it takes
		tb.Fatal(err)
	}
	c.write(tb, connectPacket(4, clientID, token))
	c.connack(tb)
	return c
}

// subscribe subscribes and waits for the SUBACK.
func (c *rawConn) subscribe(tb testing.TB, filter string, qos byte) {
	tb.Helper()
	c.write(tb, frame(0x82, append(append([]byte{0, 1}, mqttString(filter)...), qos)))
	if first, body, err := c.packet(); err != nil || first != 0x90 || body[2] > 2 {
		tb.Fatalf("SUBACK of %s: %#x %x %v", filter, first, body, err)
	}
}

// canary is a conversation of two, in which the one says something when the other has heard
// what it said before.
type canary struct {
	from, to *rawConn
	topic    string
	said     uint16
}

func newCanary(tb testing.TB, n *node) *canary {
	tb.Helper()
	alice, bob := unique("alice"), unique("bob")
	c := &canary{from: dialRawAs(tb, n, "canary", token(tb, alice)), to: dialRawAs(tb, n, "canary", token(tb, bob)), topic: "user/" + bob}
	c.to.subscribe(tb, c.topic, 0)
	return c
}

// round returns the 99th percentile of the times of some messages, in milliseconds: until the
// message is there and its sender has the acknowledgement.
func (c *canary) round(tb testing.TB, messages int) float64 {
	tb.Helper()
	for _, conn := range []*rawConn{c.from, c.to} {
		if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
			tb.Fatal(err)
		}
	}
	times := make([]float64, messages)
	for i := range times {
		c.said++
		began := time.Now()
		c.from.write(tb, publishPacket(4, c.topic, 1, c.said, fmt.Sprint("canary ", c.said)))
		if first, body, err := c.to.packet(); err != nil || first>>4 != 3 || !strings.Contains(string(body), fmt.Sprint("canary ", c.said)) {
			tb.Fatalf("message %d: %#x %s %v", c.said, first, body, err)
		}
		if first, body, err := c.from.packet(); err != nil || first != 0x40 || binary.BigEndian.Uint16(body) != c.said {
			tb.Fatalf("PUBACK %d: %#x %x %v", c.said, first, body, err)
		}
		times[i] = float64(time.Since(began).Microseconds()) / 1000
	}
	slices.Sort(times)
	return times[len(times)*99/100]
}

// greedy is a client that publishes as fast as it is let.
type greedy struct {
	conns    int
	to, text string
	qos0     bool // nothing is acknowledged
}

// start begins to publish, and returns when it does; stop ends that and returns how many
// publications were acknowledged.
func (g greedy) start(tb testing.TB, n *node, token string) (stop func() int) {
	tb.Helper()
	var (
		sent   atomic.Int64
		ended  sync.WaitGroup
		closed []*rawConn
	)
	for i := range g.conns {
		c := dialRawAs(tb, n, fmt.Sprint("greedy", i), token)
		closed = append(closed, c)
		room, gone := make(chan struct{}, 1000), make(chan struct{}) // more than 1,024 in flight are not read
		if g.qos0 {
			batch := bytes.Repeat(publishPacket(4, g.to, 0, 0, g.text), 1+(32<<10)/len(g.text))
			ended.Go(func() {
				for {
					if _, err := c.Write(batch); err != nil {
						return
					}
					sent.Add(1)
				}
			})
			continue
		}
		ended.Go(func() {
			var batch []byte
			for id := uint16(1); ; id = id%60_000 + 1 {
				wait := false
				select {
				case room <- struct{}{}:
				default:
					wait = true
				}
				if wait || len(batch) > 32<<10 {
					if _, err := c.Write(batch); err != nil {
						return
					}
					batch = batch[:0]
				}
				if wait {
					select {
					case room <- struct{}{}:
					case <-gone:
						return
					}
				}
				batch = append(batch, publishPacket(4, g.to, 1, id, g.text)...)
			}
		})
		ended.Go(func() {
			defer close(gone)
			for {
				if _, _, err := c.packet(); err != nil {
					return
				}
				sent.Add(1)
				<-room
			}
		})
	}
	for began := time.Now(); sent.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Since(began) > deadline {
			tb.Fatal("nothing of what it sends is acknowledged")
		}
	}
	return func() int {
		for _, c := range closed {
			_ = c.Close()
		}
		ended.Wait()
		return int(sent.Load())
	}
}
