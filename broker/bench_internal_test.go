package broker

import (
	"fmt"
	"strings"
	"testing"

	"mynah/authhook"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/session"
	"mynah/chat"
)

// BenchmarkRecord is what a PUBLISH costs on its reader's goroutine: is it allowed, parsed,
// made into a record.
func BenchmarkRecord(b *testing.B) {
	pub := &publisher{rights: &rights{ctx: b.Context(), policy: authhook.NewPolicy(nil)}}
	id := &authhook.Identity{Subject: "alice", Role: authhook.RoleUser, Groups: []string{"room"}}
	text := strings.Repeat("x", 100)
	for name, payload := range map[string]string{
		"text": text, "json": fmt.Sprintf(`{"type":"text","body":%q,"mid":"5f1c"}`, text),
		"binary": "\xff" + text,
	} {
		b.Run(name, func(b *testing.B) {
			p := []byte(payload)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := pub.authorise(id, "group/room"); err != nil {
					b.Fatal(err)
				}
				if _, _, err := pub.record(id, "group/room", p, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAck is the encoding of an acknowledgement.
func BenchmarkAck(b *testing.B) {
	pipe := &pipeline{}
	for _, version := range []int{4, 5} {
		b.Run(fmt.Sprintf("v%d", version), func(b *testing.B) {
			c := &conn{Conn: &outbox.Conn{}}
			c.v5.Store(version == 5)
			p := publication{c: c, qos: 1, id: 7, rec: &msglog.Record{Message: chat.Message{Seq: 1764000000000042}}}
			dst := make([]byte, 0, 64)
			b.ReportAllocs()
			for b.Loop() {
				dst = pipe.appendAck(dst[:0], &p)
			}
		})
	}
}

// BenchmarkQueue is the way of a publication through the queue, in batches of 64.
func BenchmarkQueue(b *testing.B) {
	q := newQueue()
	c := &conn{session: sessionOf(session.Key{Subject: "alice"})}
	var spare []publication
	b.ReportAllocs()
	for b.Loop() {
		for range 64 {
			q.put(publication{c: c})
		}
		items := q.take(spare)
		q.done(items)
		spare = items
	}
}
