package broker

import (
	"sync"
	"time"

	"mynah/broker/msglog"
	"mynah/chat"
)

// publication is a PUBLISH on its way through the pipeline. Refused ones go through
// it as well, since acknowledgements are due in the order of the publishes (MQTT 5,
// 4.6).
type publication struct {
	c       *conn          // nil for a will
	rec     *msglog.Record // nil if there is nothing to store
	refusal *chat.Error    // nil if accepted so far
	topic   string
	mid     string
	id      uint16
	qos     byte
	nobody  bool // it is of a topic outside the chat to which nobody has subscribed

	unlessStored *chat.Error // the refusal if the log does not have it; nil if it is to be stored
}

// Bounds of what waits for the log.
const (
	maxQueued        = 16384 // publications of all clients
	maxQueuedPerConn = 1024  // publications of one connection; Receive Maximum says so too
)

// queue is where publications wait for the sequencer. A client that has too many there
// is not read from until some are on disk.
type queue struct {
	mu       sync.Mutex
	items    []publication
	taken    int // items in the pipeline behind the queue
	closed   bool
	arrived  sync.Cond // the queue is not empty, or closed
	finished sync.Cond // publications have left the pipeline
	waiting  int       // goroutines that wait for finished
}

func newQueue() *queue {
	q := &queue{}
	q.arrived.L, q.finished.L = &q.mu, &q.mu
	return q
}

// put adds a publication. It blocks while the pipeline is full and reports false when
// it is closed.
func (q *queue) put(p publication) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && (p.c == nil || !p.c.retired) && (len(q.items)+q.taken >= maxQueued || p.c != nil && p.c.queued >= maxQueuedPerConn) {
		q.waiting++
		q.finished.Wait()
		q.waiting--
		if p.c != nil {
			p.c.in.fresh = true // it was not listened to, which is not its silence
		}
	}
	if q.closed || p.c != nil && p.c.retired {
		return false
	}
	if p.c != nil {
		p.c.queued++
	}
	q.items = append(q.items, p)
	if len(q.items) == 1 {
		q.arrived.Signal()
	}
	return true
}

// retire takes nothing more from a connection whose session another one has taken over.
// What the client sends again on the new one would otherwise be stored twice: once as
// that, and once more when the old connection's bytes are read at last.
func (q *queue) retire(c *conn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	c.retired = true
	q.finished.Broadcast()
}

// take returns all that waits, in spare's memory for the next, or nil when the queue is
// closed and empty.
func (q *queue) take(spare []publication) []publication {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 {
		if q.closed {
			return nil
		}
		q.arrived.Wait()
	}
	items := q.items
	q.items = spare[:0]
	q.taken += len(items)
	return items
}

// done says that publications have left the pipeline.
func (q *queue) done(items []publication) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.taken -= len(items)
	for _, p := range items {
		if p.c != nil {
			p.c.queued--
		}
	}
	if q.waiting > 0 {
		q.finished.Broadcast()
	}
}

// close refuses further publications; those that wait are still taken.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.arrived.Broadcast()
	q.finished.Broadcast()
}

// batch is what the sequencer has appended and the committer waits for.
type batch struct {
	items   []publication
	recs    []*msglog.Record
	pending msglog.Pending
	err     error
}

// pipelined is how many batches may be on their way to the disk beside the one that is
// being put together. More would make batches smaller and fsyncs more.
const pipelined = 1

// sequence gives every message its place in the order: it appends all that waits as one
// batch, and while that is being synced, puts together the next.
func (b *Broker) sequence() {
	defer close(b.batches)
	for {
		var spare []publication
		select {
		case spare = <-b.spares:
		default:
		}
		items := b.queue.take(spare)
		if items == nil {
			return
		}
		t := batch{items: items}
		// One clock reading for the batch, and never backwards, so that ts does
		// not contradict seq.
		b.lastTS = max(b.lastTS, time.Now().UnixMilli())
		for _, p := range items {
			if p.rec != nil && p.refusal == nil {
				p.rec.TS = b.lastTS
				t.recs = append(t.recs, p.rec)
			}
		}
		if len(t.recs) > 0 {
			t.pending, t.err = b.log.Append(t.recs)
		}
		b.batches <- t
	}
}
