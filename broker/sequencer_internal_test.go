package broker

import (
	"testing"

	"mynah/internal/waitfor"
)

// A connection that was taken over puts nothing more into the queue, not even what it was
// waiting to put there. Read late, its bytes stored messages a second time that the client
// had sent again on its new connection.
func TestRetiredConnectionIsOut(t *testing.T) {
	t.Parallel()
	q := newQueue()
	old, fresh := &conn{}, &conn{}
	for range maxQueuedPerConn {
		if !q.put(publication{c: old}) {
			t.Fatal("the queue takes nothing")
		}
	}
	blocked := make(chan bool)
	go func() { blocked <- q.put(publication{c: old}) }()
	waitfor.MustHold(t, "a connection with a full share waits", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.waiting == 1
	})
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
