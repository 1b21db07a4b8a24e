package broker

import (
	"fmt"
	"testing"
	"time"

	"mynah/broker/msglog"
	"mynah/broker/session"
)

// What a device has published is settled when it has been heard of twice, ten seconds
// apart, after the acknowledgement: not by time alone, and not by the first packet.
func TestPaceSettles(t *testing.T) {
	t.Parallel()
	p := pace{tracked: true}
	now := time.Unix(1_800_000_000, 0)
	for i, step := range []struct {
		after   time.Duration
		last    uint64
		settled uint64
	}{
		{0, 100, 0}, {9 * time.Second, 150, 0}, {time.Second, 200, 100}, {time.Second, 300, 100}, {time.Hour, 400, 200}, {10 * time.Second, 500, 400},
	} {
		now = now.Add(step.after)
		if p.due(now) {
			p.heard(now, step.last)
		}
		if p.settled != step.settled {
			t.Errorf("step %d: settled is %d, want %d", i, p.settled, step.settled)
		}
	}
	if (&pace{}).due(now) {
		t.Error("a connection that has published nothing is followed")
	}
	// While it is slowed down, what is read may have been sent long before.
	for range 5 {
		if now = now.Add(4 * time.Second); p.due(now) {
			t.Error("a device is heard of by what was not read in time")
		}
		p.paused(now)
	}
	if !p.due(now.Add(settling)) {
		t.Error("a device that was slowed down once is never heard of again")
	}
}

// What is remembered of devices is bounded, and forgetting one takes nothing for new that
// may be a retransmission.
func TestDevicesAreBounded(t *testing.T) {
	t.Parallel()
	d := newDevices()
	for i := range maxDevices + 1000 {
		d.settle(session.Key{Subject: fmt.Sprint(i), ClientID: "c"}, 7)
	}
	if n := len(d.known); n > maxDevices {
		t.Errorf("%d devices are remembered, want at most %d", n, maxDevices)
	}
	r := &msglog.Record{QoS: 2, PacketID: 1, Dup: true}
	d.opened(session.Key{Subject: "new", ClientID: "c"}, r, 100)
	if r.DupAfter != 0 || r.DupUpTo != 0 {
		t.Errorf("a DUP of an unknown device is narrowed to %d…%d", r.DupAfter, r.DupUpTo)
	}
}

// What sessions that have ended leave open is forgotten when it is more than a few: anybody
// can begin session after session, with 65,535 packet ids each.
func TestLeftExchangesAreBounded(t *testing.T) {
	t.Parallel()
	d := newDevices()
	k := session.Key{Subject: "alice", ClientID: "phone"}
	again := func(id uint16) bool {
		r := &msglog.Record{QoS: 2, PacketID: id, Dup: true}
		d.opened(k, r, 100)
		return r.DupUpTo == 0 // known to be the same, wherever it is in the log
	}
	for i := range uint16(maxLeft) {
		d.opened(k, &msglog.Record{QoS: 2, PacketID: 1000 * i}, 100)
	}
	if n := d.exchanges(k); n != maxLeft {
		t.Errorf("%d are open, want %d", n, maxLeft)
	}
	d.over(k)
	if n := d.exchanges(k); n != 0 {
		t.Errorf("%d are open in the next session", n)
	}
	if !again(3000) {
		t.Error("what the session before left open is forgotten")
	}
	d.closed(k, 3000)
	d.closed(k, 4000)
	for i := range uint16(3) {
		d.opened(k, &msglog.Record{QoS: 2, PacketID: 1 + i}, 100)
	}
	d.over(k)
	if dev := d.known[k]; dev.left.len() != 0 || dev.open.len() != 0 {
		t.Errorf("%d are remembered, want none, as there were more than %d", dev.left.len(), maxLeft)
	}
}
