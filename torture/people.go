package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mynah/bench/stand"
	"mynah/internal/mqttwire"
	"mynah/torture/client"
	"mynah/torture/ledger"
)

// people are all clients but the archiver.
type people struct {
	w          *world
	publishers []*publisher
	readers    []*reader
	paused     atomic.Bool // nobody begins to publish
	gathered   atomic.Int32
	stop       context.CancelFunc // ends the clients
	clients    sync.WaitGroup
	writers    sync.WaitGroup
	habits     sync.WaitGroup
}

type publisher struct {
	*client.Client
	writer *writer
	rnd    *rand.Rand
}

// reader is a subscriber with a habit.
type reader struct {
	*client.Client
	name  string
	habit habit
	rnd   *rand.Rand
}

type habit int

const (
	stays  habit = iota
	comes        // and goes, every few seconds
	sleeps       // through most of it
	late         // comes when much has been said already
)

var groups = []string{"g0", "g1", "g2", "g3", "g4", "g5"}

// readersSubjects are who gets direct messages.
var readerSubjects = []string{"s0", "s1", "s2", "s3", "s4", "s5"}

// gather connects everybody and waits until all are subscribed.
func gather(ctx context.Context, w *world) (*people, error) {
	cctx, stop := context.WithCancel(ctx)
	p := &people{w: w, stop: stop}
	seed := w.seed
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
		{"s0", groups, false, 2, mqttwire.V5, false, stays},
		{"s0", groups, true, 1, mqttwire.V311, false, stays},
		{"s1", groups[:2], false, 2, mqttwire.V311, true, comes},
		{"s1", groups[:3], false, 1, mqttwire.V5, true, comes},
		{"s2", groups[2:4], false, 1, mqttwire.V311, false, comes},
		{"s2", groups[1:5], true, 2, mqttwire.V5, true, comes},
		{"s3", groups[:4], true, 2, mqttwire.V311, false, sleeps},
		{"s3", groups[3:], false, 1, mqttwire.V5, false, sleeps},
		{"s4", groups[4:], false, 2, mqttwire.V5, false, comes},
		{"s4", groups[5:], false, 1, mqttwire.V311, true, stays},
		{"s5", groups[:1], false, 2, mqttwire.V311, false, late},
		{"s5", groups, true, 1, mqttwire.V5, true, late},
		{"p0", nil, false, 2, mqttwire.V5, false, comes}, // another device of a publisher
		{"p3", nil, false, 1, mqttwire.V311, false, stays},
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
		p.clients.Go(func() { pub.Run(cctx) })
	}
	for _, r := range p.readers {
		if r.habit != late {
			p.clients.Go(func() { r.Run(cctx) })
		}
	}
	if !p.wait(ctx, 30*time.Second, func() bool {
		for _, pub := range p.publishers {
			if !pub.Connected() {
				return false
			}
		}
		for _, r := range p.readers {
			if r.habit != late && !r.Connected() {
				return false
			}
		}
		return true
	}) {
		stop()
		return nil, fmt.Errorf("not everybody could connect and subscribe; the broker says: %s", w.broker.proc.Tail())
	}
	w.say("%d publishers and %d subscribers", len(p.publishers), len(p.readers))
	for _, r := range p.readers {
		p.habits.Go(func() { p.live(cctx, r) })
	}
	return p, nil
}

// config is what all clients have in common.
func (p *people) config(subject, clientID string, version byte, ws bool, groups []string) (*client.Config, error) {
	w := p.w
	name := subject + "/" + clientID
	c := &client.Config{
		Name: name, Subject: subject, ClientID: clientID, Version: version, WebSocket: ws, Window: 12,
		Addr: fmt.Sprintf("127.0.0.1:%d", w.people.Port),
		Odd: func(text string) {
			if text == client.LostSession {
				w.count.lostSessions.Add(1)
			}
			w.ledger.Odd("%s: %s", name, text)
		},
		Note: func(text string) {
			if !strings.HasPrefix(text, "conn") { // its end is our doing, mostly
				w.log("%s: %s", name, text)
			}
		},
	}
	if ws {
		c.Addr = fmt.Sprintf("127.0.0.1:%d", w.peopleWS.Port)
	}
	if w.target == mosquitto {
		c.ClientID = subject + "-" + clientID // there, a client id belongs to nobody
		return c, nil
	}
	token, err := stand.Token(w.secret, subject, "", groups...)
	if err != nil {
		return nil, err
	}
	c.Token = token
	return c, nil
}

func (p *people) newPublisher(subject string, version, qos byte, mid, ws bool, seed uint64) (*publisher, error) {
	w := p.w
	name := fmt.Sprintf("pub-%s-q%d", versionName(version), qos)
	c, err := p.config(subject, name, version, ws, groups)
	if err != nil {
		return nil, err
	}
	if w.target == mynah {
		c.Filters = []mqttwire.Filter{{Topic: "user/" + subject + "/error", QoS: 0}}
	}
	c.Acknowledged = func(m *client.Message) { w.ledger.Acked(m.Key) }
	c.Again = func(m *client.Message, why string) {
		w.ledger.Again(m.Key)
		w.log("%s publishes %s again as new: %s", subject, m.Key, why)
	}
	c.Received = func(d *client.Delivery) {
		// Nothing here is to be refused but for want of room, and that not
		// after an acknowledgement.
		w.log("%s was told %s", subject, d.Payload)
		if !strings.Contains(string(d.Payload), `"log_full"`) && !strings.Contains(string(d.Payload), `"unavailable"`) {
			w.ledger.Odd("%s was refused a message: %s", subject, d.Payload)
		}
	}
	rnd := rand.New(rand.NewPCG(seed, 11)) //nolint:gosec // repeatable by design
	return &publisher{
		Client: client.New(c, seed), rnd: rnd,
		writer: &writer{subject: subject, qos: qos, mid: mid, plain: w.target != mynah, rnd: rnd},
	}, nil
}

func (p *people) newReader(subject string, i int, in []string, all bool, qos, version byte, ws bool, h habit, seed uint64) (*reader, error) {
	w := p.w
	device := fmt.Sprintf("dev%d-%s-q%d", i, versionName(version), qos)
	c, err := p.config(subject, device, version, ws, in)
	if err != nil {
		return nil, err
	}
	subs := []ledger.Subscription{{Topic: "user/" + subject, QoS: qos, Pending: h == late}}
	c.Filters = []mqttwire.Filter{{Topic: "user/" + subject, QoS: qos}}
	for _, g := range in {
		subs = append(subs, ledger.Subscription{Topic: "group/" + g, QoS: qos, Pending: h == late})
		if !all || w.target != mynah {
			c.Filters = append(c.Filters, mqttwire.Filter{Topic: "group/" + g, QoS: qos})
		}
	}
	if all && w.target == mynah {
		c.Filters = append(c.Filters, mqttwire.Filter{Topic: "group/+", QoS: qos})
	}
	w.ledger.Subscribe(c.Name, subs...)
	c.Subscribed = func() { w.ledger.Confirm(c.Name) }
	c.Received = func(d *client.Delivery) { w.received(c.Name, d) }
	return &reader{Client: client.New(c, seed), name: c.Name, habit: h, rnd: rand.New(rand.NewPCG(seed, 13))}, nil //nolint:gosec // as above
}

// received enters a delivery into the ledger.
func (w *world) received(name string, d *client.Delivery) {
	e := &ledger.Delivery{Subscriber: name, Topic: d.Topic, QoS: d.QoS, Dup: d.Dup, Conn: d.Conn}
	var err error
	if w.target == mynah {
		e.Content, err = ledger.ReadEnvelope(d.Payload, false)
	} else {
		e.Content, err = ledger.ReadPlain(d.Payload)
	}
	if err != nil {
		e.Unreadable = err.Error()
	}
	w.ledger.Received(e)
}

// live follows the reader's habit until the clients end.
func (p *people) live(ctx context.Context, r *reader) {
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
	total := p.w.duration
	switch r.habit {
	case stays:
	case comes:
		for pause(between(r.rnd, time.Second, 5*time.Second)) {
			p.away(r, func() bool { return pause(between(r.rnd, 100*time.Millisecond, 3*time.Second)) })
		}
	case sleeps:
		if pause(total / 8) {
			p.away(r, func() bool { return pause(total * 5 / 8) })
		}
	case late:
		if pause(total / 3) {
			p.clients.Go(func() { r.Run(ctx) })
		}
	}
}

// away has a reader sleep, unless everybody is wanted.
func (p *people) away(r *reader, pause func() bool) {
	if p.gathered.Load() > 0 {
		return
	}
	r.Sleep(r.rnd.IntN(2) == 0)
	pause()
	r.Wake()
}

// publish begins the flow of messages.
func (p *people) publish(ctx context.Context) {
	every := time.Duration(float64(len(p.publishers)) / p.w.rate * float64(time.Second))
	for _, pub := range p.publishers {
		p.writers.Go(func() {
			for {
				// A few at a time now and then, so that several are in flight.
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
					if !p.paused.Load() && pub.Room() {
						p.publishOne(pub)
					}
				}
			}
		})
	}
}

func (p *people) publishOne(pub *publisher) {
	topic := "group/" + groups[pub.rnd.IntN(len(groups))]
	switch pub.rnd.IntN(10) {
	case 0, 1:
		topic = "user/" + readerSubjects[pub.rnd.IntN(len(readerSubjects))]
	case 2:
		if other := []string{"p0", "p3"}[pub.rnd.IntN(2)]; other != pub.writer.subject {
			topic = "user/" + other
		}
	}
	key, payload, m := pub.writer.next(topic, pub.writer.qos)
	p.w.ledger.Sent(m)
	pub.Publish(&client.Message{Key: key, Topic: topic, Payload: payload, QoS: pub.writer.qos})
}

func (p *people) stopPublishing() { p.writers.Wait() }

// assemble stops the publishers and wakes all readers.
func (p *people) assemble() {
	p.paused.Store(true)
	p.gathered.Add(1)
	for _, r := range p.readers {
		r.Wake()
	}
}

// dismiss undoes assemble.
func (p *people) dismiss() {
	p.gathered.Add(-1)
	p.paused.Store(false)
}

// waitQuiet waits until everything that was published is acknowledged and no
// packet flows to anybody.
func (p *people) waitQuiet(ctx context.Context, timeout time.Duration) bool {
	return p.wait(ctx, timeout, func() bool {
		for _, pub := range p.publishers {
			if !pub.Quiet(250 * time.Millisecond) {
				return false
			}
		}
		for _, r := range p.readers {
			if r.Begun() && !r.Quiet(250*time.Millisecond) {
				return false
			}
		}
		return true
	})
}

func (p *people) wait(ctx context.Context, timeout time.Duration, done func() bool) bool {
	deadline := time.Now().Add(timeout)
	for !done() {
		if ctx.Err() != nil || time.Now().After(deadline) {
			return false
		}
		time.Sleep(5 * time.Millisecond)
	}
	return true
}

// patience is how long nothing may happen before what is missing is given up.
const patience = 20 * time.Second

// settle waits until everything has arrived everywhere, or nothing comes any
// more.
func (p *people) settle(ctx context.Context, w *world) {
	p.gathered.Add(1)
	for _, r := range p.readers {
		r.Wake()
	}
	last, since := -1, time.Now()
	for ctx.Err() == nil {
		idle := true
		for _, pub := range p.publishers {
			idle = idle && pub.Idle()
		}
		sent, acked, received := w.ledger.Totals()
		rows, err := w.archived(ctx)
		if err != nil {
			rows = 0
		}
		outstanding := w.ledger.Outstanding()
		if idle && outstanding == 0 && rows >= acked {
			w.say("everything has settled: %d sent, %d acknowledged, %d rows, %d deliveries", sent, acked, rows, received)
			break
		}
		if now := acked + received + rows; now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > patience {
			w.say("nothing happens any more: %d sent, %d acknowledged, %d rows, %d deliveries outstanding", sent, acked, rows, outstanding)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, pub := range p.publishers {
		if !pub.Idle() {
			w.ledger.Odd("%s: messages that were never acknowledged", pub.writer.subject)
		}
	}
	// What comes too often comes a little later.
	time.Sleep(500 * time.Millisecond)
}

// leave ends all clients.
func (p *people) leave() {
	p.stop()
	p.habits.Wait()
	p.clients.Wait()
}
