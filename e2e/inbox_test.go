package e2e_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// delivery is one PUBLISH as a subscriber got it.
type delivery struct {
	Topic    string
	QoS      byte
	Retained bool
	Dup      bool
	Payload  []byte
}

// envelope is a message as PROTOCOL.md describes it.
type envelope struct {
	Seq  uint64          `json:"seq"`
	Prev uint64          `json:"prev"`
	From string          `json:"from"`
	To   string          `json:"to"`
	TS   int64           `json:"ts"`
	Type string          `json:"type"`
	Body json.RawMessage `json:"body"`
	Mid  string          `json:"mid"`
	// On user/<me>/error instead:
	Code   string `json:"code"`
	Topic  string `json:"topic"`
	Reason string `json:"reason"`
}

// open reads a delivery as a message.
func (d delivery) open(tb testing.TB) envelope {
	tb.Helper()
	var e envelope
	if err := json.Unmarshal(d.Payload, &e); err != nil {
		tb.Fatalf("message on %s is not JSON: %v: %q", d.Topic, err, d.Payload)
	}
	return e
}

// text returns the body of a message if it is a string, else "".
func (d delivery) text() string {
	var e envelope
	var text string
	if json.Unmarshal(d.Payload, &e) != nil || json.Unmarshal(e.Body, &text) != nil {
		return ""
	}
	return text
}

// inbox collects what a subscriber got.
type inbox struct {
	mu      sync.Mutex
	got     []delivery
	changed chan struct{}
}

func newInbox() *inbox { return &inbox{changed: make(chan struct{})} }

func (b *inbox) add(d delivery) {
	checkWire().check(d)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = append(b.got, d)
	close(b.changed)
	b.changed = make(chan struct{})
}

// all returns what has come so far.
func (b *inbox) all() []delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clip(b.got)
}

// wait returns the first delivery that matches, when there is one.
func (b *inbox) wait(tb testing.TB, what string, match func(delivery) bool) delivery {
	tb.Helper()
	timeout := time.After(deadline)
	for seen := 0; ; {
		b.mu.Lock()
		fresh, changed := b.got[seen:], b.changed
		b.mu.Unlock()
		for _, d := range fresh {
			if match(d) {
				return d
			}
		}
		seen += len(fresh)
		select {
		case <-changed:
		case <-timeout:
			tb.Fatalf("no %s within %v; got %s", what, deadline, b)
		}
	}
}

// waitText waits for the message with this text.
func (b *inbox) waitText(tb testing.TB, text string) envelope {
	tb.Helper()
	return b.wait(tb, fmt.Sprintf("message %q", text), func(d delivery) bool { return d.text() == text }).open(tb)
}

// count returns how many deliveries have this text.
func (b *inbox) count(text string) (n int) {
	for _, d := range b.all() {
		if d.text() == text {
			n++
		}
	}
	return n
}

// String outlines what has come.
func (b *inbox) String() string {
	var s strings.Builder
	all := b.all()
	fmt.Fprintf(&s, "%d deliveries", len(all))
	for _, d := range all[max(0, len(all)-20):] {
		fmt.Fprintf(&s, "\n  %s qos=%d dup=%t retained=%t %.200s", d.Topic, d.QoS, d.Dup, d.Retained, d.Payload)
	}
	return s.String()
}
