package broker

import (
	"math"
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
	line    *line // set by put
	cost    int32 // what the pipeline is expected to take for it, in nanoseconds; set by put
	size    int32 // about what it takes in memory, in bytes; set by put
	id      uint16
	qos     byte
	nobody  bool // it is of a topic outside the chat to which nobody has subscribed

	unlessStored *chat.Error // the refusal if the log does not have it; nil if it is to be stored
}

// Bounds of what is between the connections and the disk. A connection may have one
// publication there in any case, so that nobody waits until those of others are stored.
var (
	maxOfConn    = held{maxQueuedPerConn, 2 << 20}
	maxOfSubject = held{4096, 8 << 20}
	maxOfAll     = held{16384, 64 << 20}
)

// maxQueuedPerConn is how many publications of one connection there may be; Receive Maximum
// says so too.
const maxQueuedPerConn = 1024

// What publications are expected to cost, in nanoseconds. Only their relation matters, and
// not much: it says whose turn it is, and how large a batch may be.
const (
	costPerPublication  = 4000
	costPerByte         = 4
	costPerDelivery     = 400
	deliveredBytesPerNs = 4
)

const (
	// turnCost is what a subject may cost before it is another one's turn.
	turnCost = batchCost
	// batchCost bounds a batch while several subjects publish, of which one may have much
	// there. Who publishes waits for those batches that are under way, and for no others.
	batchCost = 150_000
	// equalCost is by how much that grows for each subject that has something there beside
	// those two. Many who publish as much as each other share an fsync: they would wait for
	// each other in any case.
	equalCost = 330_000
	// maxBatchCost bounds any batch, also if one subject has been alone for aloneAfter.
	maxBatchCost = 16_000_000
	aloneAfter   = time.Second
	// smallBatchCost is how little a batch costs that tells what the disk takes.
	smallBatchCost = 40_000
)

// queue is where publications wait for the sequencer, in a line for each connection. Their
// subjects take turns: the queue is a deficit round robin in which those who have just come
// are first (RFC 8290, 4.2), and everybody is charged what the publications cost that were
// taken. So whoever publishes much, or to many, waits for that, and others do not. A client
// that has too many publications here, or behind the queue, is not read from until some are
// on disk.
type queue struct {
	// audience returns how many sessions get the messages of a topic; nil for none.
	audience func(topic string) int

	mu       sync.Mutex
	shares   map[string]*share // by subject
	fresh    fifo[*share]      // have something that waits since a moment ago
	old      fifo[*share]      // have had a turn since
	waiting  int               // publications in the lines
	busy     int               // shares in whose lines something waits
	behind   int               // what those cost that were taken and are not done
	all      held
	closed   bool
	arrived  sync.Cond   // there may be something to take, or closed
	blocked  fifo[*line] // whose connections wait for room, longest first
	last     *share      // of the last publication
	several  bool        // not all publications since the last batch were of one subject
	until    time.Time   // for how long the subjects are taken for several; zero if they are not
	underWay fifo[taken] // batches that are taken and not done
	disk     int         // what a batch with little in it takes, in nanoseconds
	noShares []*share    // to be used again
	noLines  []*line     // to be used again
}

// held is what is in the queue and behind it.
type held struct{ publications, bytes int }

func (h *held) add(p *publication, n int) {
	h.publications += n
	h.bytes += n * int(p.size)
}

func (h held) reaches(most held) bool {
	return h.publications >= most.publications || h.bytes >= most.bytes
}

// halves reports whether there is room for half of the most.
func (h held) halves(most held) bool {
	return h.publications <= most.publications/2 && h.bytes <= most.bytes/2
}

// sizeOf returns about what a publication takes in memory.
func sizeOf(p *publication) int32 {
	const overhead = 256
	if p.rec == nil {
		return overhead
	}
	return int32(overhead + len(p.rec.Tail)) //nolint:gosec // a packet is bounded
}

// taken is a batch that is under way.
type taken struct {
	at   time.Time // when it was the only one, zero if it never was
	cost int
}

// share is what the queue has of a subject.
type share struct {
	subject string
	held    held
	lines   fifo[*line] // those in which something waits; they take turns
	listed  bool        // it is in queue.fresh or queue.old
	credit  int         // what may be taken from it before it is another one's turn
}

// line is what the queue has of a connection, or a will. It is there while that is
// something.
type line struct {
	share   *share
	held    held
	conn    *conn // nil for a will
	items   fifo[publication]
	awaited bool          // its connection waits until there is room
	room    chan struct{} // has a value when it is to look
}

// wake has the connection look whether there is room.
func (l *line) wake() {
	select {
	case l.room <- struct{}{}:
	default:
	}
}

// fifo is a queue in a slice. Its zero value is empty.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

func (f *fifo[T]) first() T { return f.items[f.head] }

func (f *fifo[T]) peek() *T { return &f.items[f.head] }

func (f *fifo[T]) push(v T) {
	if f.head > len(f.items)/2 && len(f.items) == cap(f.items) {
		n := copy(f.items, f.items[f.head:]) // under load it is never empty
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
	f.items = append(f.items, v)
}

func (f *fifo[T]) pop() T {
	v := f.items[f.head]
	f.drop()
	return v
}

// drop takes the first out.
func (f *fifo[T]) drop() {
	var zero T
	f.items[f.head] = zero
	if f.head++; f.head == len(f.items) {
		f.items, f.head = f.items[:0], 0
	}
}

// shrink gives the memory of an empty fifo back if it is much.
func (f *fifo[T]) shrink() {
	if cap(f.items) > 128 {
		*f = fifo[T]{}
	}
}

func newQueue() *queue {
	q := &queue{shares: map[string]*share{}}
	q.arrived.L = &q.mu
	return q
}

// put adds a publication. It blocks while its connection has too many in the pipeline, and
// reports false when the pipeline is closed.
func (q *queue) put(p publication) bool {
	p.cost, p.size = q.costOf(&p), sizeOf(&p)
	q.mu.Lock()
	defer q.mu.Unlock()
	if p.c != nil {
		q.awaitRoomLocked(p.c)
	}
	if q.closed || p.c != nil && p.c.retired {
		return false
	}
	l := q.lineLocked(&p)
	s := l.share
	q.all.add(&p, 1)
	s.held.add(&p, 1)
	l.held.add(&p, 1)
	p.line = l
	if l.items.push(p); l.items.len() == 1 {
		s.lines.push(l)
		if s.lines.len() == 1 {
			q.busy++
		}
	}
	switch {
	case s.listed:
	case s.credit < 0: // it has to pay first
		s.listed = true
		q.old.push(s)
	default:
		s.listed, s.credit = true, turnCost
		q.fresh.push(s)
	}
	if s != q.last {
		q.several = q.several || q.last != nil
		q.last = s
	}
	if q.waiting++; q.waiting == 1 {
		q.arrived.Signal()
	}
	return true
}

// costOf returns what the pipeline is expected to take for a publication.
func (q *queue) costOf(p *publication) int32 {
	cost := costPerPublication
	if p.rec != nil {
		cost += len(p.rec.Tail) * costPerByte
		if q.audience != nil {
			cost += q.audience(p.rec.To) * (costPerDelivery + len(p.rec.Tail)/deliveredBytesPerNs)
		}
	}
	return int32(min(cost, math.MaxInt32)) //nolint:gosec // bounded
}

// awaitRoomLocked waits until a connection may have another publication in the pipeline, or
// nothing more is to be taken from it.
func (q *queue) awaitRoomLocked(c *conn) {
	l := c.line
	if l == nil || !q.fullLocked(l) {
		return
	}
	l.awaited = true
	for !q.closed && !c.retired && q.fullLocked(l) {
		q.blocked.push(l)
		q.mu.Unlock()
		<-l.room
		c.in.fresh = true // it was not listened to, which is not its silence
		q.mu.Lock()
	}
	l.awaited = false
	q.releaseLocked(l)
}

// fullLocked reports whether no more is to be taken from a connection for now.
func (q *queue) fullLocked(l *line) bool {
	return l.held.reaches(maxOfConn) || l.share.held.reaches(maxOfSubject) || q.all.reaches(maxOfAll)
}

// lineLocked returns the line of a publication's connection.
func (q *queue) lineLocked(p *publication) *line {
	if p.c != nil && p.c.line != nil {
		return p.c.line
	}
	var subject string
	switch {
	case p.c != nil:
		subject = p.c.subject()
	case p.rec != nil:
		subject = p.rec.From
	}
	s := q.shares[subject]
	if s == nil {
		s = reuse(&q.noShares)
		if s == nil {
			s = &share{}
		}
		s.subject = subject
		q.shares[subject] = s
	}
	l := reuse(&q.noLines)
	if l == nil {
		l = &line{room: make(chan struct{}, 1)}
	}
	l.share, l.conn = s, p.c
	if p.c != nil {
		p.c.line = l
	}
	return l
}

// maxReused is how many shares and lines that are not in use are kept.
const maxReused = 64

// reuse takes something out of a list, nil if it is empty.
func reuse[T any](list *[]*T) *T {
	n := len(*list) - 1
	if n < 0 {
		return nil
	}
	v := (*list)[n]
	(*list)[n], *list = nil, (*list)[:n]
	return v
}

// keep puts something into a list from which reuse takes.
func keep[T any](list *[]*T, v *T) {
	if len(*list) < maxReused {
		*list = append(*list, v)
	}
}

// take returns the next batch, in spare's memory, or nil when the queue is closed and empty.
// It waits for something to take, and while as much as two batches may cost is under way:
// what comes next would wait for them anyhow, and here the others can still go first.
func (q *queue) take(spare []publication) []publication {
	q.mu.Lock()
	defer q.mu.Unlock()
	bound := q.boundLocked()
	for q.waiting == 0 || q.behind >= 2*bound {
		if q.waiting == 0 && q.closed {
			return nil
		}
		q.arrived.Wait()
		bound = q.boundLocked()
	}
	items, cost := spare[:0], 0
	for cost < bound && q.waiting > 0 {
		list, fresh := &q.fresh, true
		if list.len() == 0 {
			list, fresh = &q.old, false
		}
		s := list.first()
		if s.lines.len() == 0 || s.credit <= 0 {
			list.pop()
			q.endTurnLocked(s, fresh)
			continue
		}
		l := s.lines.first()
		items = append(items, *l.items.peek())
		l.items.drop()
		if l.items.len() == 0 || s.lines.len() > 1 {
			if s.lines.drop(); l.items.len() > 0 {
				s.lines.push(l)
			} else if s.lines.len() == 0 {
				q.busy--
			}
		}
		c := int(items[len(items)-1].cost)
		q.waiting--
		s.credit -= c
		cost += c
	}
	t := taken{cost: cost}
	if q.underWay.len() == 0 && cost < smallBatchCost {
		t.at = time.Now()
	}
	q.underWay.push(t)
	q.behind += cost
	if q.waiting == 0 { // then nobody is before anybody
		for _, list := range [...]*fifo[*share]{&q.fresh, &q.old} {
			for list.len() > 0 {
				q.endTurnLocked(list.pop(), false)
			}
		}
	}
	return items
}

// boundLocked returns what the next batch may cost. Half of what the disk takes for any
// batch nobody feels.
func (q *queue) boundLocked() int {
	if q.several || !q.until.IsZero() {
		switch now := time.Now(); {
		case q.several:
			q.several, q.until = false, now.Add(aloneAfter)
		case !now.Before(q.until):
			q.until = time.Time{}
		}
	}
	if q.until.IsZero() {
		return maxBatchCost
	}
	return min(max(batchCost+max(q.busy-2, 0)*equalCost, q.disk/2), maxBatchCost)
}

// endTurnLocked puts a share that has had its turn behind the others. One of which nothing
// waits leaves only when it is its turn once more: it would be fresh with every publication
// otherwise.
func (q *queue) endTurnLocked(s *share, fresh bool) {
	if s.lines.len() == 0 && !fresh {
		s.listed = false
		q.forgetLocked(s)
		return
	}
	if s.credit <= 0 {
		s.credit += turnCost
	}
	q.old.push(s)
}

// done says that publications have left the pipeline.
func (q *queue) done(items []publication) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.underWay.pop()
	q.behind -= t.cost
	if !t.at.IsZero() {
		q.disk += (int(time.Since(t.at)) - q.disk) / 8
	}
	for i := range items {
		p := &items[i]
		q.all.add(p, -1)
		p.line.share.held.add(p, -1)
		p.line.held.add(p, -1)
		if p.line.held.publications == 0 {
			q.releaseLocked(p.line)
		}
	}
	if q.waiting > 0 {
		q.arrived.Signal()
	}
	for range q.blocked.len() {
		switch l := q.blocked.pop(); {
		case !l.awaited: // it has given up
		case l.held.halves(maxOfConn) && !q.fullLocked(l):
			l.wake()
		default:
			q.blocked.push(l)
		}
	}
}

// releaseLocked forgets a line that holds nothing and for which nobody waits.
func (q *queue) releaseLocked(l *line) {
	if l.share == nil || l.held.publications > 0 || l.awaited {
		return
	}
	s := l.share
	if l.conn != nil {
		l.conn.line = nil
	}
	l.share, l.conn = nil, nil
	l.items.shrink()
	keep(&q.noLines, l)
	q.forgetLocked(s)
}

// forgetLocked forgets a share that holds nothing.
func (q *queue) forgetLocked(s *share) {
	if s.held.publications > 0 || s.listed || q.shares[s.subject] != s {
		return
	}
	delete(q.shares, s.subject)
	if q.last == s {
		q.last = nil
	}
	s.lines.shrink()
	s.subject, s.credit = "", 0
	keep(&q.noShares, s)
}

// retire takes nothing more from a connection whose session another one has taken over.
// What the client sends again on the new one would otherwise be stored twice: once as
// that, and once more when the old connection's bytes are read at last.
func (q *queue) retire(c *conn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	c.retired = true
	if c.line != nil {
		c.line.wake()
	}
}

// close refuses further publications; those that wait are still taken.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.arrived.Broadcast()
	for q.blocked.len() > 0 {
		q.blocked.pop().wake()
	}
}
