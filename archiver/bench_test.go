package archiver_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"mynah/archiver"
	"mynah/chat"
	"mynah/internal/mqttwire"
	"mynah/internal/pgtest"
	"mynah/internal/waitfor"

	"github.com/jackc/pgx/v5"
)

// BenchmarkCatchUp measures how fast an archiver stores what has gathered in the
// broker, beside a plain COPY of the same rows into the same table of the same
// durable server. The figure:
//
//	go test -run '^$' -bench CatchUp -benchtime 1000000x ./archiver
//
// The broker of the benchmark sends prepared packets as fast as its window allows.
// ratio-text is the archiver's rate by that of COPY in its default text format,
// ratio-binary by that of COPY in binary format.
func BenchmarkCatchUp(b *testing.B) {
	server := pgtest.NewServer(b, "fsync=on", "full_page_writes=on", "autovacuum=on", "shared_buffers=128MB", "max_connections=100", "min_wal_size=4GB", "max_wal_size=8GB")
	conn, err := pgx.Connect(b.Context(), server.URL())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	clean := func() {
		for _, sql := range []string{"TRUNCATE messages", "CHECKPOINT"} {
			if _, err := conn.Exec(b.Context(), sql); err != nil {
				b.Fatal(err)
			}
		}
	}
	warmUp(b, server.URL(), b.N)
	// In turns, since on a shared machine no two minutes are alike.
	const rounds = 4
	var archive, plain, text time.Duration
	for round := range rounds {
		n := b.N/rounds + 1
		clean()
		archive += catchUp(b, server.URL(), n)
		order := []string{"binary", "text"}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, format := range order {
			var rows bytes.Buffer
			tag, err := conn.PgConn().CopyTo(b.Context(), &rows, "COPY messages TO STDOUT (FORMAT "+format+")")
			if err != nil || tag.RowsAffected() != int64(n) {
				b.Fatalf("%d rows of %d, %v", tag.RowsAffected(), n, err)
			}
			clean()
			began := time.Now()
			if _, err := conn.PgConn().CopyFrom(b.Context(), &rows, "COPY messages FROM STDIN (FORMAT "+format+")"); err != nil {
				b.Fatal(err)
			}
			if format == "text" {
				text += time.Since(began)
			} else {
				plain += time.Since(began)
			}
		}
	}
	b.ReportMetric(float64(b.N)/archive.Seconds(), "messages/s")
	b.ReportMetric(float64(b.N)/plain.Seconds(), "copy-binary/s")
	b.ReportMetric(float64(b.N)/text.Seconds(), "copy-text/s")
	b.ReportMetric(plain.Seconds()/archive.Seconds(), "ratio-binary")
	b.ReportMetric(text.Seconds()/archive.Seconds(), "ratio-text")
}

// catchUp returns how long an archiver takes to store n messages.
func catchUp(b *testing.B, address string, n int) time.Duration {
	b.Helper()
	broker := newPump(b, n, 8192) // as many as our own broker lets an archiver have
	a, err := archiver.New(archiver.Config{BrokerURL: broker.url(), DatabaseURL: address})
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if err := a.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := <-broker.done; err != nil {
		b.Fatal(err)
	}
	took := time.Since(began)
	if err := a.Stop(b.Context()); err != nil {
		b.Fatal(err)
	}
	return took
}

// warmUp lets the server make the files of its write-ahead log. Whoever wrote first
// would pay for them, those after it would use them again.
func warmUp(b *testing.B, address string, rows int) {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), address)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(b.Context()) }()
	for _, sql := range []string{
		fmt.Sprintf("CREATE TABLE warm AS SELECT repeat('x', 1000) FROM generate_series(1, %d)", rows),
		"DROP TABLE warm", "CHECKPOINT",
	} {
		if _, err := conn.Exec(b.Context(), sql); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSteady measures how long a message takes from the broker into
// PostgreSQL, and back as an acknowledgement, at 5,000 messages a second:
//
//	go test -run '^$' -bench Steady -benchtime 50000x ./archiver
func BenchmarkSteady(b *testing.B) {
	const rate, every = 5000, 5 * time.Millisecond
	server := pgtest.NewServer(b, "fsync=on", "full_page_writes=on", "autovacuum=on", "shared_buffers=128MB", "max_connections=100")
	broker := newFakeBroker(b)
	sent := make([]time.Time, b.N)
	took := make([]time.Duration, 0, b.N)
	done := make(chan struct{})
	broker.onAck = func(seq uint64) {
		broker.mu.Lock()
		at := sent[seq-1]
		broker.mu.Unlock()
		if took = append(took, time.Since(at)); len(took) == b.N {
			close(done)
		}
	}
	a, err := archiver.New(archiver.Config{BrokerURL: broker.url(), DatabaseURL: server.URL()})
	if err != nil {
		b.Fatal(err)
	}
	if err := a.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	waitfor.MustSucceed(b, "it is connected", func() error {
		if lag := a.Lag(); !lag.Connected || !lag.Database {
			return fmt.Errorf("%+v", lag)
		}
		return nil
	})
	tick := time.NewTicker(every)
	defer tick.Stop()
	b.ResetTimer()
	began := time.Now()
	for n := 0; n < b.N; {
		<-tick.C
		due := min(b.N, int(time.Since(began).Seconds()*rate))
		next := chatter(uint64(n+1), due-n)
		broker.mu.Lock()
		for ; n < due; n++ {
			sent[n] = time.Now()
		}
		broker.mu.Unlock()
		broker.publish(next...)
	}
	<-done
	b.StopTimer()
	if err := a.Stop(b.Context()); err != nil {
		b.Fatal(err)
	}
	slices.Sort(took)
	for _, percent := range []int{50, 99, 100} {
		b.ReportMetric(float64(took[(b.N-1)*percent/100].Microseconds())/1000, fmt.Sprintf("ms-p%d", percent))
	}
}

// pump is a broker that sends n messages to its only client within a window.
type pump struct {
	listener net.Listener
	done     chan error // nil when all are acknowledged
}

func newPump(tb testing.TB, n, window int) *pump {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &pump{listener, make(chan error, 1)}
	tb.Cleanup(func() { _ = listener.Close() })
	go func() { p.done <- p.serve(n, window) }()
	return p
}

func (p *pump) url() string { return "tcp://" + p.listener.Addr().String() }

func (p *pump) serve(n, window int) error {
	conn, err := p.listener.Accept()
	if err != nil {
		return err
	}
	in := bufio.NewReaderSize(conn, 1<<16)
	if _, err := mqttwire.ReadFrame(in); err != nil { // CONNECT
		return err
	}
	if _, err := conn.Write(encode(mqttwire.Packet{Type: mqttwire.CONNACK})); err != nil {
		return err
	}
	subscribe, err := mqttwire.ReadPacket(in, mqttwire.V311)
	if err != nil {
		return err
	}
	if _, err := conn.Write(encode(mqttwire.Packet{Type: mqttwire.SUBACK, ID: subscribe.ID, Codes: []byte{1, 1}})); err != nil {
		return err
	}
	acked := make(chan int, window)
	failed := make(chan error, 1)
	go func() {
		for {
			packet, err := mqttwire.ReadFrame(in)
			if err != nil {
				failed <- err
				close(acked)
				return
			}
			if packet[0]>>4 == mqttwire.PUBACK {
				acked <- 1
			}
		}
	}()
	out := bufio.NewWriterSize(conn, 1<<16)
	// The benchmark shares the processors with its own broker, which therefore
	// does as little as it can.
	tail := []byte(`"type":"text","body":"` + strings.Repeat("It was a bright cold day in April. ", 3) + `"}`)
	var senders, rooms []string
	for i := range 1009 {
		senders, rooms = append(senders, fmt.Sprintf("user%d", i)), append(rooms, fmt.Sprintf("group/room%d", i))
	}
	var payload, frame []byte
	inflight, done := 0, 0
	for sent := 0; done < n; {
		if sent < n && inflight < window {
			seq := uint64(1764000000000000 + sent)
			m := chat.Message{Seq: seq, From: senders[sent%997], To: rooms[sent%1009], TS: 1764000000000 + int64(sent), Tail: tail}
			payload = m.AppendEnvelope(payload[:0], seq-1)
			publish := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: m.To, QoS: 1, ID: uint16(sent%65535 + 1), Payload: payload}
			frame = publish.Append(frame[:0], mqttwire.V311)
			if _, err := out.Write(frame); err != nil {
				return err
			}
			sent++
			inflight++
			select {
			case one, ok := <-acked:
				if !ok {
					return <-failed
				}
				inflight -= one
				done += one
			default:
			}
			continue
		}
		if err := out.Flush(); err != nil {
			return err
		}
		if _, ok := <-acked; !ok {
			return <-failed
		}
		inflight--
		done++
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }() // until the archiver disconnects
	return nil
}
