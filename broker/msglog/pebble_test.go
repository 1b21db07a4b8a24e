package msglog_test

import (
	"context"
	"testing"

	"mynah/broker/msglog"
	"mynah/chat"
)

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	l, err := msglog.Open(dir, msglog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		var recs []*msglog.Record
		for range 100 {
			recs = append(recs, &msglog.Record{Message: chat.Message{From: "a", To: "user/b", TS: int64(i), Type: "text", Tail: []byte("x}")}, QoS: 1, PacketID: 1, Client: "c"})
		}
		p, err := l.Append(recs)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	first, last := l.Bounds()
	for _, topic := range []string{"user/a", "user/b"} {
		err = l.ReadTopic(context.Background(), topic, 0, last, func(r *msglog.Record) bool { n++; return true })
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Log(first, last, n)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = msglog.Open(dir, msglog.Options{}); err != nil {
		t.Fatal(err)
	}
	f2, l2 := l.Bounds()
	t.Log(f2, l2)
	l.Close()
}
