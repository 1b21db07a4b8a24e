package broker

import (
	"fmt"
	"sync"
	"testing"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/session"
	"mynah/chat"
	"mynah/internal/waitfor"
)

// A connection that was taken over puts nothing more into the queue, not even what it was
// waiting to put there. Read late, its bytes stored messages a second time that the client
// had sent again on its new connection.
func TestRetiredConnectionIsOut(t *testing.T) {
	t.Parallel()
	q := newQueue()
	old, fresh := connOf("alice"), connOf("alice")
	for range maxQueuedPerConn {
		if !q.put(publication{c: old}) {
			t.Fatal("the queue takes nothing")
		}
	}
	blocked := make(chan bool)
	go func() { blocked <- q.put(publication{c: old}) }()
	mustBlock(t, q, 1)
	q.retire(old)
	if <-blocked {
		t.Error("what waited was taken from a retired connection")
	}
	if q.put(publication{c: old}) {
		t.Error("a retired connection's publication was taken")
	}
	if !q.put(publication{c: fresh}) {
		t.Error("the new connection's publication was not taken")
	}
	if items := q.take(nil); len(items) != maxQueuedPerConn+1 {
		t.Errorf("%d publications, want those from before and the new one's", len(items))
	}
}

// connOf returns a connection of a subject.
func connOf(subject string) *conn {
	return &conn{session: sessionOf(session.Key{Subject: subject})}
}

// mustPut puts publications into the queue that have n bytes each.
func mustPut(tb testing.TB, q *queue, c *conn, to string, count, n int) {
	tb.Helper()
	for i := range count {
		p := publication{c: c, id: uint16(i + 1), rec: &msglog.Record{Message: chat.Message{To: to, Tail: make([]byte, n)}}} //nolint:gosec // small
		if !q.put(p) {
			tb.Fatal("the queue takes nothing")
		}
	}
}

// mustBlock waits until so many connections wait for room.
func mustBlock(tb testing.TB, q *queue, n int) {
	tb.Helper()
	waitfor.MustHold(tb, fmt.Sprintf("%d connections wait for room", n), func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.blocked.len() == n
	})
}

// Whatever one subject has in the queue, over however many connections and to however many
// receivers, the publication of another one is in the next batch, and that is a small one. The
// queue took everything into one batch, so all waited for what one sent.
func TestNobodyWaitsBehindAnother(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ conns, count, bytes, audience int }{
		"small":       {1, maxQueuedPerConn, 100, 1},
		"large":       {4, 30, 64 << 10, 1},
		"to many":     {1, 100, 100, 1000},
		"to everyone": {1, 10, 10_000, 10_000},
		"connections": {30, 100, 100, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newQueue()
			q.audience = func(topic string) int {
				if topic == "group/crowd" {
					return c.audience
				}
				return 1
			}
			canary := connOf("canary")
			for range c.conns {
				mustPut(t, q, connOf("greedy"), "group/crowd", c.count, c.bytes)
			}
			// Those who have just come are equal, and then the canary is first.
			mustPut(t, q, canary, "user/canary", 1, 0)
			waiting, left := 1, c.conns*c.count
			var dear int32
			for round := 0; left > 0; round++ {
				if round > 0 {
					mustPut(t, q, canary, "user/canary", 1, 0)
					waiting++
				}
				items := q.take(nil)
				cost := int32(0)
				for _, p := range items {
					if cost += p.cost; p.c == canary {
						waiting--
					} else {
						left--
					}
					dear = max(dear, p.cost)
				}
				if waiting > 0 && round > 0 {
					t.Fatalf("round %d: %d publications of the other subject are not in the batch", round, waiting)
				}
				if cost >= batchCost+dear {
					t.Fatalf("round %d: a batch of %d costs %d, want less than %d", round, len(items), cost, batchCost+dear)
				}
				q.done(items)
			}
		})
	}
}

// Those who publish as much as they can get as much as each other, by what it costs: not who
// has more connections, nor who sends larger messages, nor who was there first.
func TestSharesAreEqual(t *testing.T) {
	t.Parallel()
	q := newQueue()
	q.audience = func(string) int { return 1 }
	for subject, c := range map[string]struct{ conns, bytes int }{"a": {1, 100}, "b": {10, 100}, "c": {1, 8000}} {
		for range c.conns {
			mustPut(t, q, connOf(subject), "group/crowd", 200, c.bytes)
		}
	}
	cost := map[string]int{}
	for range 200 {
		items := q.take(nil)
		for _, p := range items {
			cost[p.c.subject()] += int(p.cost)
		}
		q.done(items)
		for _, p := range items {
			mustPut(t, q, p.c, "group/crowd", 1, len(p.rec.Tail))
		}
	}
	for subject, n := range cost {
		if least := cost["a"] * 9 / 10; n < least || n > cost["a"]*11/10 {
			t.Errorf("%s got %d, a got %d", subject, n, cost["a"])
		}
	}
}

// One who publishes alone has all of it taken at a time: a batch costs an fsync, and those
// to whom a group's messages go are written to once for a batch.
func TestAloneIsNotCut(t *testing.T) {
	t.Parallel()
	q := newQueue()
	q.audience = func(string) int { return 500 }
	mustPut(t, q, connOf("alice"), "group/crowd", 64, 128) // what the row fan1 of the benchmark has under way
	if items := q.take(nil); len(items) != 64 {
		t.Errorf("a batch of %d, want all 64", len(items))
	}
}

// What is put is taken once, in the order of each connection, and nothing of those who have
// gone is kept.
func TestQueueKeepsTheOrder(t *testing.T) {
	t.Parallel()
	q := newQueue()
	const subjects, conns, count = 5, 3, 2000
	var putters sync.WaitGroup
	for s := range subjects {
		for range conns {
			c := connOf(fmt.Sprint("subject", s))
			putters.Go(func() {
				for i := range count {
					r := &msglog.Record{Message: chat.Message{Tail: make([]byte, i*7%5000)}}
					if !q.put(publication{c: c, id: uint16(i), rec: r}) { //nolint:gosec // small
						t.Error("the queue takes nothing")
					}
				}
			})
		}
	}
	closed := make(chan struct{})
	go func() {
		putters.Wait()
		q.close()
		close(closed)
	}()
	next := map[*conn]uint16{}
	taken := 0
	for items := q.take(nil); items != nil; items = q.take(items) {
		for _, p := range items {
			if p.id != next[p.c] {
				t.Fatalf("publication %d of a connection comes when it is the turn of %d", p.id, next[p.c])
			}
			next[p.c]++
		}
		taken += len(items)
		q.done(items)
	}
	<-closed
	if taken != subjects*conns*count {
		t.Errorf("%d publications were taken, want %d", taken, subjects*conns*count)
	}
	if len(q.shares) != 0 || q.all != (held{}) || q.fresh.len()+q.old.len() != 0 {
		t.Errorf("%d subjects that hold %v are left, %d of them listed", len(q.shares), q.all, q.fresh.len()+q.old.len())
	}
}

// What waits is bounded by bytes too, by connection and by subject, and by what all have
// together; and whoever has nothing there may always put one. A connection had 1,024
// publications in the queue, however large, and who filled it had all others wait.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	q := newQueue()
	const size = 64 << 10
	blocked := make(chan bool)
	put := func(c *conn) {
		go func() {
			for q.put(publication{c: c, rec: &msglog.Record{Message: chat.Message{Tail: make([]byte, size)}}}) {
			}
			blocked <- true
		}()
	}
	subjects := 20
	for i := range subjects {
		for range 10 {
			put(connOf(fmt.Sprint("greedy", i)))
		}
	}
	mustBlock(t, q, subjects*10)
	q.mu.Lock()
	all := q.all
	for subject, s := range q.shares {
		if most := maxOfSubject.bytes + 10*(size+1024); s.held.bytes > most {
			t.Errorf("%s holds %d bytes, want at most %d", subject, s.held.bytes, most)
		}
	}
	q.mu.Unlock()
	if most := maxOfAll.bytes + subjects*10*(size+1024); all.bytes > most {
		t.Errorf("all hold %d bytes, want at most %d", all.bytes, most)
	}
	if canary := connOf("canary"); !q.put(publication{c: canary}) { // it does not wait
		t.Error("the queue takes nothing")
	}
	q.close()
	for range subjects * 10 {
		<-blocked
	}
}

// sessionOf returns a session that has nothing but a key.
func sessionOf(k session.Key) *delivery.Session {
	s := &delivery.Session{}
	s.Key = k
	return s
}
