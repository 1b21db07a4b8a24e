package e2e_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/internal/waitfor"
)

// ledger is what a publisher knows to be acknowledged: the outside world's view,
// kept by this test and nobody else.
type ledger struct {
	mu    sync.Mutex
	acked map[string]bool // mids
	count atomic.Int64
}

func (l *ledger) ack(mid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.acked[mid] {
		l.acked[mid] = true
		l.count.Add(1)
	}
}

// publisher keeps a window of QoS 1 publishes in flight, over as many connections
// as it takes. What was not acknowledged when a connection ended it sends again
// with the same mid. It speaks MQTT by hand, so that an acknowledgement is what
// came over the wire and not what a library makes of it.
func (l *ledger) publisher(stop <-chan struct{}, addr, clientID, token, topic string) {
	const window = 32
	var (
		next     int
		inFlight []string // mids, oldest first
	)
	for {
		select {
		case <-stop:
			return
		default:
		}
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			time.Sleep(20 * time.Millisecond) // between two attempts at a server that is down
			continue
		}
		l.session(stop, conn, clientID, token, topic, window, &next, &inFlight)
		_ = conn.Close()
	}
}

func (l *ledger) session(stop <-chan struct{}, conn net.Conn, clientID, token, topic string, window int, next *int, inFlight *[]string) {
	_ = conn.SetDeadline(time.Now().Add(deadline)) // a socket's deadline cannot fail here
	raw := newRaw(conn)
	if _, err := conn.Write(connectPacket(4, clientID, token)); err != nil {
		return
	}
	if first, body, err := raw.packet(); err != nil || first != 0x20 || body[1] != 0 {
		return
	}
	ids := map[uint16]string{}
	var packetID uint16
	send := func(mid string) error {
		packetID++
		ids[packetID] = mid
		payload := fmt.Sprintf(`{"body":%q,"mid":%q}`, "text of "+mid, mid)
		_, err := conn.Write(publishPacket(4, topic, 1, packetID, payload))
		return err
	}
	for _, mid := range *inFlight {
		if send(mid) != nil {
			return
		}
	}
	for {
		stopping := false
		select {
		case <-stop:
			stopping = true
		default:
		}
		for !stopping && len(*inFlight) < window {
			mid := fmt.Sprintf("%s-%d", clientID, *next)
			*next++
			*inFlight = append(*inFlight, mid)
			if send(mid) != nil {
				return
			}
		}
		if len(*inFlight) == 0 {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(deadline))
		first, body, err := raw.packet()
		if err != nil {
			return
		}
		if first != 0x40 || len(body) < 2 {
			continue
		}
		mid := ids[binary.BigEndian.Uint16(body)]
		l.ack(mid)
		for i, m := range *inFlight {
			if m == mid {
				*inFlight = append((*inFlight)[:i], (*inFlight)[i+1:]...)
				break
			}
		}
	}
}

// kill -9 of broker, archiver and PostgreSQL, each once and the broker twice,
// under load: every acknowledged message is in the archive once.
func TestKill(t *testing.T) {
	t.Parallel()
	pg := mustOwnPostgres(t)
	data := t.TempDir()
	broker := func(addr string) *node {
		return start(t, "broker", "--data-dir", data, "--jwt-secret", secret, "--mqtt-addr", addr,
			"--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	}
	b := broker("127.0.0.1:0")
	addr := b.mqtt
	archiver := func() *node {
		return start(t, "archiver", "--database-url", pg.url, "--broker-url", "mqtt://"+addr,
			"--jwt-secret", secret, "--metrics-addr", "127.0.0.1:0")
	}
	a := archiver()

	l := &ledger{acked: map[string]bool{}}
	stop := make(chan struct{})
	var publishers sync.WaitGroup
	for i := range 4 {
		tok := token(t, fmt.Sprintf("sender-%d", i), groups("g"))
		topic := []string{"group/g", fmt.Sprintf("user/receiver-%d", i)}[i%2]
		publishers.Go(func() { l.publisher(stop, addr, fmt.Sprintf("p%d", i), tok, topic) })
	}
	// more waits for load: this many acknowledgements from now on.
	more := func(n int64) {
		t.Helper()
		target := l.count.Load() + n
		waitfor.MustHold(t, fmt.Sprintf("%d more acknowledgements", n), func() bool { return l.count.Load() >= target })
	}

	more(1000)
	b.kill()
	b = broker(addr)
	more(1000)
	a.kill()
	more(1000)
	a = archiver()
	more(1000)
	died := pg.Exited()
	if err := pg.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-died // and is started again by its keeper
	more(1000)
	ctx, cancel := context.WithTimeout(t.Context(), 4*deadline)
	defer cancel()
	var conn *pgx.Conn
	waitfor.MustHold(t, "PostgreSQL to answer", func() bool {
		var err error
		conn, err = pgx.Connect(ctx, pg.url)
		return err == nil
	})
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	b.kill()
	a.kill()
	broker(addr)
	archiver()
	more(1000)
	close(stop)
	publishers.Wait()

	archivedMids := func() map[string]int {
		rows, err := conn.Query(ctx, `SELECT mid, message->>'body' FROM messages`)
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]int{}
		var mid, body string
		if _, err := pgx.ForEachRow(rows, []any{&mid, &body}, func() error {
			counts[mid]++
			if body != "text of "+mid {
				t.Errorf("message %s has the content %q", mid, body)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return counts
	}
	missing := func(counts map[string]int) (n int) {
		for mid := range l.acked {
			if counts[mid] == 0 {
				n++
			}
		}
		return n
	}
	waitfor.MustHold(t, "every acknowledged message in the archive", func() bool { return missing(archivedMids()) == 0 })
	counts := archivedMids()
	for mid, n := range counts {
		if n != 1 {
			t.Errorf("message %s is in the archive %d times", mid, n)
		}
	}
	t.Logf("acknowledged %d, archived %d, each once, after 5 kills", l.count.Load(), len(counts))
}

// kill -9 of `serve`, private PostgreSQL and all: the next start takes over what
// was left behind.
func TestKillServe(t *testing.T) {
	t.Parallel()
	args := []string{
		"serve", "--data-dir", t.TempDir(), "--jwt-secret", secret,
		"--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--mqtt-addr",
	}
	n := start(t, append(args, "127.0.0.1:0")...)
	alice, bob := unique("alice"), unique("bob")
	for i := range 3 {
		c := dial(t, n, "c", token(t, alice))
		for j := range 50 {
			c.pub(t, "user/"+bob, 1, fmt.Sprintf("%d/%d", i, j))
		}
		n.kill()
		n = start(t, append(args, n.mqtt)...)
	}
	waitfor.MustHold(t, "all in the archive", func() bool { return len(query(t, n.database, "sender = $1", alice)) == 150 })
}
