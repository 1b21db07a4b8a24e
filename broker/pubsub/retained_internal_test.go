package pubsub

import (
	"log/slog"
	"testing"
	"time"

	"mynah/broker/msglog"
)

// Retained messages whose time is over are forgotten, on disk too; others stay.
func TestRetainedMessagesExpire(t *testing.T) {
	t.Parallel()
	l, err := msglog.Open(t.TempDir(), msglog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing is to be kept
	topics, err := New(Config{Store: l.State(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for topic, seconds := range map[string]int{"plant/short": 5, "plant/long": 500, "plant/ever": 0} {
		m := &Message{Topic: topic, Payload: []byte("x"), QoS: 1, Retain: true}
		if seconds > 0 {
			m.Expires = now.Add(time.Duration(seconds) * time.Second).UnixMilli()
		}
		topics.Publish(m)
	}
	topics.ForgetExpired(now.Add(time.Minute).UnixMilli())
	stored := map[string]bool{}
	if err := l.State().Scan(retainedPrefix, func(key string, _ []byte) bool { stored[key] = true; return true }); err != nil {
		t.Fatal(err)
	}
	for topic, want := range map[string]bool{"plant/short": false, "plant/long": true, "plant/ever": true} {
		m, _ := topics.Retained(topic)
		if kept := m != nil; kept != want || stored[retainedPrefix+topic] != want {
			t.Errorf("%s: retained %t, stored %t, want %t", topic, kept, stored[retainedPrefix+topic], want)
		}
	}
}

// All retained messages together are bounded; what replaces or deletes one is taken as long
// as it is not larger.
func TestRetainedIsBounded(t *testing.T) {
	t.Parallel()
	r := &retained{maxBytes: DefaultRetainedBytes}
	keep := func(topic string, size int) error {
		payload := make([]byte, size)
		if err := r.admit(topic, payload, true); err != nil {
			return err
		}
		r.retain(&Message{Topic: topic, Payload: payload}, false)
		return nil
	}
	for topic, size := range map[string]int{"plant/a": 1000, "plant/b": 2000} {
		if err := keep(topic, size); err != nil {
			t.Fatal(err)
		}
	}
	others := r.maxBytes - r.bytes
	r.bytes += others // of as many other messages
	for _, step := range []struct {
		topic string
		size  int
		full  bool
	}{
		{"plant/c", 1, true},
		{"plant/a", 1001, true},
		{"plant/a", 1000, false},
		{"plant/a", 900, false},
		{"plant/b", 2100, false},
		{"plant/b", 2101, true},
		{"plant/a", 0, false},
		{"plant/c", 900, false},
		{"plant/d", 1, true},
	} {
		if err := keep(step.topic, step.size); (err != nil) != step.full {
			t.Errorf("%s with %d bytes: %v, want a refusal: %t", step.topic, step.size, err, step.full)
		}
	}
	for _, topic := range []string{"plant/b", "plant/c"} {
		if err := keep(topic, 0); err != nil {
			t.Error(err)
		}
	}
	if r.bytes != others || r.count() != 0 {
		t.Errorf("%d bytes and %d messages are counted when all are gone", r.bytes-others, r.count())
	}
}
