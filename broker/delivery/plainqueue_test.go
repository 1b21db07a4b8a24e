package delivery_test

import (
	"log/slog"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/pubsub"
	"mynah/internal/waitfor"
)

// What a client may not read any more is forgotten, but for what it has been sent on its
// present connection: it acknowledges that, and the packet id is taken until then.
func TestForgetPlain(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, ReceiveMaximum: 2}
	p := r.mute(a)
	for i := range 4 {
		r.queues.Put(&p.session.Session, plainMessage(1, i), atMost2)
	}
	p.wantPlain(t, "0", "1")
	gone := map[string]struct{}{"plant/x": {}}
	r.queues.ForgetTopics(&p.session.Session, gone)
	r.queues.Put(&p.session.Session, &pubsub.Message{Topic: "plant/y", QoS: 1, Payload: []byte("y")}, atMost2)
	p.session.Acknowledged(p.out, 4, p.arrivals()[0].id, false)
	p.wantPlain(t, "0", "1", "y")
	if topics := r.queues.Topics(&p.session.Session); len(topics) != 2 {
		t.Errorf("messages of %v are under way, want one of each", topics)
	}
	p.offline(time.Hour)
	r.queues.ForgetTopics(&p.session.Session, gone) // on the next connection it would be sent again
	p = r.online(a)
	p.wantPlain(t, "y")
	waitfor.MustHold(t, "nothing is held", func() bool { return r.queues.Held() == 0 })
}

// That a session's queue is full is logged once, and again when it has been empty in between.
func TestFullQueueIsLogged(t *testing.T) {
	t.Parallel()
	logged := newLines()
	r := mustRig(t, delivery.Config{})
	r.plain.Messages, r.cfg.Logger = 2, slog.New(logged)
	r.restart()
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	for range 2 {
		p := r.online(a)
		waitfor.MustHold(t, "the queue is empty", func() bool { return len(r.queues.Topics(&p.session.Session)) == 0 && p.session.Live() })
		p.offline(time.Hour)
		for i := range 5 {
			r.queues.Put(&p.session.Session, plainMessage(1, i), atMost2)
		}
		if got := logged.take(); len(got) != 1 || !contains(got[0], "too much waiting") {
			t.Errorf("logged %q, want one line", got)
		}
	}
}

// A retained message goes out at the QoS of the subscription if that is the lower, and what
// is added for one session does not get into what all have of it.
func TestRetainedQoSAndProps(t *testing.T) {
	t.Parallel()
	plain := newPlainTopics()
	r := mustRigWith(t, delivery.Config{}, pubsub.QueuesConfig{Source: plain})
	props := append(make([]byte, 0, 64), 0x01, 0x01) // Payload Format Indicator
	m := &pubsub.Message{Topic: "plant/x", QoS: 2, Payload: []byte("r"), Props: props, Retain: true}
	plain.retain(m)
	p := r.mute(delivery.Attachment{Key: key("alice"), V5: true})
	for qos := range byte(3) {
		r.queues.PutRetained(&p.session.Session, "plant/#", []string{"plant/x"}, pubsub.Options{QoS: qos, Retain: true, IDs: []int{7}})
		got := p.wantPlain(t, []string{"r", "r", "r"}[:qos+1]...)[qos]
		if got.qos != qos {
			t.Errorf("it came at QoS %d, want %d", got.qos, qos)
		}
		if string(got.props) != "\x01\x01\x0B\x07" {
			t.Errorf("it came with properties %x", got.props)
		}
	}
	for i, b := range props[2:cap(props)] {
		if b != 0 {
			t.Fatalf("byte %d behind the properties of all has become %x", i, b)
		}
	}
}
