package delivery

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/packet"
	"mynah/broker/session"
	"mynah/chat"
	"mynah/internal/waitfor"
)

// nowhere is a connection that takes everything at once.
type nowhere struct{ net.Conn }

func (nowhere) Write(p []byte) (int, error)      { return len(p), nil }
func (nowhere) Read([]byte) (int, error)         { return 0, io.EOF }
func (nowhere) Close() error                     { return nil }
func (nowhere) SetDeadline(time.Time) error      { return nil }
func (nowhere) SetReadDeadline(time.Time) error  { return nil }
func (nowhere) SetWriteDeadline(time.Time) error { return nil }

// batchOf returns messages as the committer hands them over.
func batchOf(n int, qos byte, after uint64) []*msglog.Record {
	recs := make([]*msglog.Record, n)
	tail := []byte(`"type":"text","body":"` + fmt.Sprintf("%0100d", 7) + `"}`)
	for i := range recs {
		recs[i] = &msglog.Record{QoS: qos, Prev: after + uint64(i), Message: chat.Message{
			Seq: after + uint64(i) + 1, From: "alice", To: "group/room", TS: 1764000000123, Type: "text", Tail: tail,
		}}
	}
	return recs
}

// BenchmarkDeliver measures the fan-out of batches of 64 messages of 100 bytes to live
// sessions, with their acknowledgements for QoS 1. One operation is a batch.
func BenchmarkDeliver(b *testing.B) {
	const batch = 64
	for _, qos := range []byte{0, 1} {
		for _, sessions := range []int{1, 500} {
			b.Run(fmt.Sprintf("qos%d/sessions=%d", qos, sessions), func(b *testing.B) {
				l, err := msglog.Open(b.TempDir(), msglog.Options{NoSync: true})
				if err != nil {
					b.Fatal(err)
				}
				e, err := New(Config{
					Log: l, State: l.State(), Logger: slog.New(slog.DiscardHandler), Window: 8192, Limits: &outbox.Limits{PerConn: 16 << 20},
				})
				if err != nil {
					b.Fatal(err)
				}
				e.Start()
				b.Cleanup(func() { e.Stop(); _ = l.Close() })
				all, conns := make([]*Session, sessions), make([]*outbox.Conn, sessions)
				for i := range all {
					conns[i] = outbox.NewConn(nowhere{}, e.Limits())
					s, _, err := e.Attach(Attachment{
						Key: session.Key{Subject: fmt.Sprint(i), ClientID: "c"}, Conn: conns[i], Groups: []string{"room"}, V5: i%2 == 0,
					})
					if err == nil {
						err = s.Subscribe([]session.Subscription{{Filter: "group/room", QoS: qos}}, []string{"room"})
					}
					if err != nil {
						b.Fatal(err)
					}
					s.Start(conns[i])
					waitfor.MustHold(b, "the session is live", func() bool { return s.Cursor() != 0 && s.Live() })
					all[i] = s
				}
				_, last := l.Bounds()
				recs := batchOf(batch, qos, last)
				id := uint16(1)
				b.ReportAllocs()
				b.ResetTimer()
				for b.Loop() {
					for i, rec := range recs {
						last++
						rec.Seq, rec.Prev = last, last-1
						recs[i] = rec
					}
					e.Deliver(recs)
					if qos == 0 {
						continue
					}
					for i, s := range all {
						at := id
						for range batch {
							s.Acknowledged(conns[i], packet.Puback, at, false)
							at = outbox.NextPacketID(at)
						}
					}
					for range batch {
						id = outbox.NextPacketID(id)
					}
				}
				b.StopTimer()
				for _, s := range all {
					if !s.Live() {
						b.Fatal("a session fell behind, which is not what is measured")
					}
				}
				n := float64(b.N) * batch * float64(sessions)
				b.ReportMetric(b.Elapsed().Seconds()*1e9/n, "ns/delivery")
			})
		}
	}
}

// BenchmarkEncode renders and encodes a batch of 64 messages once.
func BenchmarkEncode(b *testing.B) {
	recs := batchOf(64, 1, 1764000000000000)
	for _, v5 := range []bool{false, true} {
		b.Run(fmt.Sprintf("v5=%v", v5), func(b *testing.B) {
			var r run
			b.ReportAllocs()
			for b.Loop() {
				r.reset("group/room", false, recs, time.Time{})
				r.encode(1, v5)
			}
			b.SetBytes(int64(len(r.encoded[2].frames) + len(r.encoded[3].frames)))
		})
	}
}
