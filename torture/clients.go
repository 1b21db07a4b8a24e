package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mynah/bench/testbed"
	"mynah/internal/mqttwire"
	"mynah/torture/client"
	"mynah/torture/ledger"
)

// clients are all MQTT clients except the archiver.
type clients struct {
	h               *harness
	publishers      []*publisher
	readers         []*reader
	paused          atomic.Bool // no publisher starts a new message
	connectedCount  atomic.Int32
	stop            context.CancelFunc // ends the clients
	running         sync.WaitGroup
	publishing      sync.WaitGroup
	followingHabits sync.WaitGroup
}

type publisher struct {
	*client.Client
	writer *payloadMaker
	rnd    *rand.Rand
}

// reader is a subscriber with a habit of connecting and disconnecting.
type reader struct {
	*client.Client
	name  string
	habit habit
	rnd   *rand.Rand
}

type habit int

const (
	staysConnected  habit = iota
	reconnectsOften       // disconnects and reconnects every few seconds
	mostlyAway            // is disconnected for most of the run
	connectsLate          // connects for the first time when many messages have been sent
)

var groups = []string{"g0", "g1", "g2", "g3", "g4", "g5"}

// readerSubjects are the users who get direct messages.
var readerSubjects = []string{"s0", "s1", "s2", "s3", "s4", "s5"}

// connectClients connects all clients and waits until they are subscribed.
func connectClients(ctx context.Context, h *harness) (*clients, error) {
	cctx, stop := context.WithCancel(ctx)
	p := &clients{h: h, stop: stop}
	seed := h.seed
	for i := range 16 {
		version, qos := byte(mqttwire.V311), byte(1+i>>1&1)
		if i&1 == 1 {
			version = mqttwire.V5
		}
		pub, err := p.newPublisher(fmt.Sprintf("p%d", i), version, qos, i>>2&1 == 1, i>>3&1 == 1, seed+uint64(i)) //nolint:gosec // small
		if err != nil {
			stop()
			return nil, err
		}
		p.publishers = append(p.publishers, pub)
	}
	specs := []struct {
		subject string
		groups  []string
		all     bool // group/+ instead of each group
		qos     byte
		version byte
		ws      bool
		habit   habit
	}{
		{"s0", groups, false, 2, mqttwire.V5, false, staysConnected},
		{"s0", groups, true, 1, mqttwire.V311, false, staysConnected},
		{"s1", groups[:2], false, 2, mqttwire.V311, true, reconnectsOften},
		{"s1", groups[:3], false, 1, mqttwire.V5, true, reconnectsOften},
		{"s2", groups[2:4], false, 1, mqttwire.V311, false, reconnectsOften},
		{"s2", groups[1:5], true, 2, mqttwire.V5, true, reconnectsOften},
		{"s3", groups[:4], true, 2, mqttwire.V311, false, mostlyAway},
		{"s3", groups[3:], false, 1, mqttwire.V5, false, mostlyAway},
		{"s4", groups[4:], false, 2, mqttwire.V5, false, reconnectsOften},
		{"s4", groups[5:], false, 1, mqttwire.V311, true, staysConnected},
		{"s5", groups[:1], false, 2, mqttwire.V311, false, connectsLate},
		{"s5", groups, true, 1, mqttwire.V5, true, connectsLate},
		{"p0", nil, false, 2, mqttwire.V5, false, reconnectsOften}, // another device of a publisher
		{"p3", nil, false, 1, mqttwire.V311, false, staysConnected},
	}
	for i, s := range specs {
		r, err := p.newReader(s.subject, i, s.groups, s.all, s.qos, s.version, s.ws, s.habit, seed+100+uint64(i)) //nolint:gosec // small
		if err != nil {
			stop()
			return nil, err
		}
		p.readers = append(p.readers, r)
	}
	for _, pub := range p.publishers {
		p.running.Go(func() { pub.Run(cctx) })
	}
	for _, r := range p.readers {
		if r.habit != connectsLate {
			p.running.Go(func() { r.Run(cctx) })
		}
	}
	if !p.waitUntil(ctx, 30*time.Second, func() bool {
		for _, pub := range p.publishers {
			if !pub.Connected() {
				return false
			}
		}
		for _, r := range p.readers {
			if r.habit != connectsLate && !r.Connected() {
				return false
			}
		}
		return true
	}) {
		stop()
		return nil, fmt.Errorf("not everybody could connect and subscribe; the broker says: %s", h.broker.proc.LogTail())
	}
	h.logLine("%d publishers and %d subscribers", len(p.publishers), len(p.readers))
	for _, r := range p.readers {
		p.followingHabits.Go(func() { p.followHabit(cctx, r) })
	}
	return p, nil
}

// clientConfig returns the configuration that all clients share.
func (p *clients) clientConfig(subject, clientID string, version byte, ws bool, groups []string) (*client.Config, error) {
	h := p.h
	name := subject + "/" + clientID
	c := &client.Config{
		Name: name, Subject: subject, ClientID: clientID, Version: version, WebSocket: ws, Window: 12,
		Addr: fmt.Sprintf("127.0.0.1:%d", h.clientLink.Port),
		OnViolation: func(text string) {
			if text == client.LostSession {
				h.counts.lostSessions.Add(1)
			}
			h.ledger.Violation("%s: %s", name, text)
		},
		OnNote: func(text string) {
			if !strings.HasPrefix(text, "conn") { // the end is usually a fault that torture has made
				h.logToFile("%s: %s", name, text)
			}
		},
	}
	if ws {
		c.Addr = fmt.Sprintf("127.0.0.1:%d", h.clientWSLink.Port)
	}
	if h.target == mosquitto {
		c.ClientID = subject + "-" + clientID // in Mosquitto, a client id does not belong to a user
		return c, nil
	}
	token, err := testbed.Token(h.secret, subject, "", groups...)
	if err != nil {
		return nil, err
	}
	c.Token = token
	return c, nil
}

func (p *clients) newPublisher(subject string, version, qos byte, mid, ws bool, seed uint64) (*publisher, error) {
	h := p.h
	name := fmt.Sprintf("pub-%s-q%d", versionName(version), qos)
	c, err := p.clientConfig(subject, name, version, ws, groups)
	if err != nil {
		return nil, err
	}
	if h.target == mynah {
		c.Filters = []mqttwire.Filter{{Topic: "user/" + subject + "/error", QoS: 0}}
	}
	c.OnAcknowledged = func(m *client.Message) { h.ledger.Acked(m.Key) }
	c.OnRepublish = func(m *client.Message, why string) {
		h.ledger.Republished(m.Key)
		h.logToFile("%s publishes %s again as new: %s", subject, m.Key, why)
	}
	c.OnReceived = func(d *client.Delivery) {
		// Every message here is allowed. It may be refused only while the disk
		// is full, and never after its acknowledgement.
		h.logToFile("%s was told %s", subject, d.Payload)
		if !strings.Contains(string(d.Payload), `"log_full"`) && !strings.Contains(string(d.Payload), `"unavailable"`) {
			h.ledger.Violation("%s was refused a message: %s", subject, d.Payload)
		}
	}
	rnd := rand.New(rand.NewPCG(seed, 11)) //nolint:gosec // repeatable by design
	return &publisher{
		Client: client.New(c, seed), rnd: rnd,
		writer: &payloadMaker{subject: subject, qos: qos, mid: mid, plain: h.target != mynah, rnd: rnd},
	}, nil
}

func (p *clients) newReader(subject string, i int, in []string, all bool, qos, version byte, ws bool, does habit, seed uint64) (*reader, error) {
	h := p.h
	device := fmt.Sprintf("dev%d-%s-q%d", i, versionName(version), qos)
	c, err := p.clientConfig(subject, device, version, ws, in)
	if err != nil {
		return nil, err
	}
	subs := []ledger.Subscription{{Topic: "user/" + subject, QoS: qos, Pending: does == connectsLate}}
	c.Filters = []mqttwire.Filter{{Topic: "user/" + subject, QoS: qos}}
	for _, g := range in {
		subs = append(subs, ledger.Subscription{Topic: "group/" + g, QoS: qos, Pending: does == connectsLate})
		if !all || h.target != mynah {
			c.Filters = append(c.Filters, mqttwire.Filter{Topic: "group/" + g, QoS: qos})
		}
	}
	if all && h.target == mynah {
		c.Filters = append(c.Filters, mqttwire.Filter{Topic: "group/+", QoS: qos})
	}
	h.ledger.Subscribe(c.Name, subs...)
	c.OnSubscribed = func() { h.ledger.Confirm(c.Name) }
	c.OnReceived = func(d *client.Delivery) { h.recordDelivery(c.Name, d) }
	return &reader{Client: client.New(c, seed), name: c.Name, habit: does, rnd: rand.New(rand.NewPCG(seed, 13))}, nil //nolint:gosec // as above
}

// recordDelivery records a delivery in the ledger.
func (h *harness) recordDelivery(name string, d *client.Delivery) {
	e := &ledger.Delivery{Subscriber: name, Topic: d.Topic, QoS: d.QoS, Dup: d.Dup, Conn: d.Conn}
	var err error
	if h.target == mynah {
		e.Content, err = ledger.ReadEnvelope(d.Payload, false)
	} else {
		e.Content, err = ledger.ReadPlain(d.Payload)
	}
	if err != nil {
		e.Unreadable = err.Error()
	}
	h.ledger.Received(e)
}

// followHabit follows the reader's habit until the clients end.
func (p *clients) followHabit(ctx context.Context, r *reader) {
	pause := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		}
	}
	total := p.h.duration
	switch r.habit {
	case staysConnected:
	case reconnectsOften:
		for pause(randomDuration(r.rnd, time.Second, 5*time.Second)) {
			p.sleepFor(r, func() bool { return pause(randomDuration(r.rnd, 100*time.Millisecond, 3*time.Second)) })
		}
	case mostlyAway:
		if pause(total / 8) {
			p.sleepFor(r, func() bool { return pause(total * 5 / 8) })
		}
	case connectsLate:
		if pause(total / 3) {
			p.running.Go(func() { r.Run(ctx) })
		}
	}
}

// sleepFor disconnects a reader for a while, unless all clients are paused.
func (p *clients) sleepFor(r *reader, pause func() bool) {
	if p.connectedCount.Load() > 0 {
		return
	}
	r.Sleep(r.rnd.IntN(2) == 0)
	pause()
	r.Wake()
}

// startPublishing starts the publishers.
func (p *clients) startPublishing(ctx context.Context) {
	every := time.Duration(float64(len(p.publishers)) / p.h.rate * float64(time.Second))
	for _, pub := range p.publishers {
		p.publishing.Go(func() {
			for {
				// Sometimes a few messages at once, so that several are in
				// flight.
				n := 1
				if pub.rnd.IntN(4) == 0 {
					n = 5
				}
				t := time.NewTimer(every/2 + time.Duration(pub.rnd.Int64N(int64(every)))*time.Duration(n)*3/4)
				select {
				case <-ctx.Done():
					t.Stop()
					return
				case <-t.C:
				}
				for range n {
					if !p.paused.Load() && pub.HasRoom() {
						p.publishOne(pub)
					}
				}
			}
		})
	}
}

func (p *clients) publishOne(pub *publisher) {
	topic := "group/" + groups[pub.rnd.IntN(len(groups))]
	switch pub.rnd.IntN(10) {
	case 0, 1:
		topic = "user/" + readerSubjects[pub.rnd.IntN(len(readerSubjects))]
	case 2:
		if other := []string{"p0", "p3"}[pub.rnd.IntN(2)]; other != pub.writer.subject {
			topic = "user/" + other
		}
	}
	key, payload, m := pub.writer.nextMessage(topic, pub.writer.qos)
	p.h.ledger.Sent(m)
	pub.Publish(&client.Message{Key: key, Topic: topic, Payload: payload, QoS: pub.writer.qos})
}

func (p *clients) stopPublishing() { p.publishing.Wait() }

// pauseAndWakeAll pauses the publishers and connects all readers.
func (p *clients) pauseAndWakeAll() {
	p.paused.Store(true)
	p.connectedCount.Add(1)
	for _, r := range p.readers {
		r.Wake()
	}
}

// resumeHabits ends what pauseAndWakeAll began.
func (p *clients) resumeHabits() {
	p.connectedCount.Add(-1)
	p.paused.Store(false)
}

// waitIdle waits until every published message is acknowledged and no client
// receives packets.
func (p *clients) waitIdle(ctx context.Context, timeout time.Duration) bool {
	return p.waitUntil(ctx, timeout, func() bool {
		for _, pub := range p.publishers {
			if !pub.Quiet(250 * time.Millisecond) {
				return false
			}
		}
		for _, r := range p.readers {
			if r.HasHadSession() && !r.Quiet(250*time.Millisecond) {
				return false
			}
		}
		return true
	})
}

func (p *clients) waitUntil(ctx context.Context, timeout time.Duration, done func() bool) bool {
	deadline := time.Now().Add(timeout)
	for !done() {
		if ctx.Err() != nil || time.Now().After(deadline) {
			return false
		}
		time.Sleep(5 * time.Millisecond)
	}
	return true
}

// settleTimeout is the time without any progress after which missing messages are
// given up.
const settleTimeout = 20 * time.Second

// waitAllDelivered waits until every message has arrived at every receiver, or until
// nothing arrives for settleTimeout.
func (p *clients) waitAllDelivered(ctx context.Context, h *harness) {
	p.connectedCount.Add(1)
	for _, r := range p.readers {
		r.Wake()
	}
	last, since := -1, time.Now()
	for ctx.Err() == nil {
		idle := true
		for _, pub := range p.publishers {
			idle = idle && pub.Idle()
		}
		sent, acked, received := h.ledger.Totals()
		rows, err := h.archived(ctx)
		if err != nil {
			rows = 0
		}
		outstanding := h.ledger.Outstanding()
		if idle && outstanding == 0 && rows >= acked {
			h.logLine("everything has settled: %d sent, %d acknowledged, %d rows, %d deliveries", sent, acked, rows, received)
			break
		}
		if now := acked + received + rows; now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > settleTimeout {
			h.logLine("nothing happens any more: %d sent, %d acknowledged, %d rows, %d deliveries outstanding", sent, acked, rows, outstanding)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, pub := range p.publishers {
		if !pub.Idle() {
			h.ledger.Violation("%s: messages that were never acknowledged", pub.writer.subject)
		}
	}
	// A surplus delivery may come a little later.
	time.Sleep(500 * time.Millisecond)
}

// stopAll stops all clients.
func (p *clients) stopAll() {
	p.stop()
	p.followingHabits.Wait()
	p.running.Wait()
}
