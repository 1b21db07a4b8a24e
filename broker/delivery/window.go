package delivery

import (
	"cmp"
	"math/bits"
	"slices"
	"sort"

	"mynah/broker/outbox"
)

// inflightState is how far a message has got on its way to the client.
type inflightState uint8

const (
	stateSent      inflightState = iota // PUBLISH was sent, no acknowledgement yet
	stateReceived                       // QoS 2: PUBREC came, PUBREL is due or sent
	stateDone                           // acknowledged; kept only until those before it are
	stateReceiving                      // QoS 2: PUBREC came and is being stored; PUBREL must wait
)

// inflight is one message that was sent at QoS 1 or 2.
type inflight struct {
	seq   uint64 // 0 for a plain message, which plainQueue.sent has
	topic string // delivery topic; "" for a plain message
	id    uint16 // packet id
	qos   byte
	state inflightState
	wire  bool // it was sent on the present connection
	sent  bool // it was sent on whichever
}

// window holds the unacknowledged messages of a session in the order in which they
// were sent. Packet ids are given out in that order too, so that the entry of an id is
// found by subtraction. The ids of a client's own publishes are another space (MQTT 5,
// 2.2.1) and never meet these.
//
// What is acknowledged before its turn stays until the oldest is, or until its room is
// wanted: a client that keeps back one message and takes ten thousand after it must not
// make the window as long as that. Then ids are missing between the entries, and an entry
// that is not where it would be without that is searched for.
type window struct {
	ring    []inflight // power of two long, or nil
	head    int        // index of the oldest
	n       int        // entries in use; the oldest is not done
	undone  int        // entries that are not done
	next    uint16     // packet id for the next one
	open    int        // messages of the chat not yet done
	started bool
	most    int // undone at the most since fit was last called
}

// smallRing is how many entries a ring has at the least, and may have for ever: a quarter
// of a KiB.
const smallRing = 8

// maxWindow is how many packet ids there are.
const maxWindow = 65535

func (w *window) at(i int) *inflight { return &w.ring[(w.head+i)&(len(w.ring)-1)] }

// push adds a message and returns its packet id. The caller has checked spare.
func (w *window) push(e inflight) uint16 {
	if w.n == len(w.ring) {
		w.extend()
	}
	if !w.started {
		w.started, w.next = true, 1
	}
	e.id = w.next
	w.next = outbox.NextPacketID(e.id)
	*w.at(w.n) = e
	w.n++
	w.undone++
	w.most = max(w.most, w.undone)
	if e.seq != 0 {
		w.open++
	}
	return e.id
}

// extend makes room for another entry in a full ring. If half of what is there is done,
// that goes, so that a ring is at most four times as long as what is unacknowledged at a
// time, and its entries are not moved more often than they are added.
func (w *window) extend() {
	if w.undone <= len(w.ring)/2 && len(w.ring) > 0 {
		w.pack(len(w.ring))
		return
	}
	w.pack(max(smallRing, 2*len(w.ring)))
}

// pack moves the entries that are not done to a ring of a size that is a power of two or 0,
// maybe the same ring.
func (w *window) pack(size int) {
	from := *w
	if size != len(w.ring) {
		w.ring, w.head = make([]inflight, size), 0
	}
	w.n = 0
	for i := range from.n {
		e := *from.at(i)
		*from.at(i) = inflight{}
		if e.state != stateDone {
			*w.at(w.n) = e
			w.n++
		}
	}
}

// ringFor returns how long a ring of n entries is.
func ringFor(n int) int {
	if n == 0 {
		return 0
	}
	return max(smallRing, 1<<bits.Len(uint(n-1))) //nolint:gosec // not negative
}

// fit gives back the room that has not been needed since it was last called.
func (w *window) fit() {
	if size := ringFor(w.most); size < len(w.ring) {
		w.pack(size)
	}
	w.most = w.undone
}

// shrink gives back all the room that is not needed now.
func (w *window) shrink() {
	w.most = w.undone
	w.fit()
}

// roomy reports whether a ring that is not small has become larger than its entries need.
func (w *window) roomy() bool { return len(w.ring) > smallRing && ringFor(w.undone) < len(w.ring) }

// nextID returns the packet id that the next push gives.
func (w *window) nextID() uint16 {
	if !w.started {
		return 1
	}
	return w.next
}

// spare returns how many more packet ids may be given out. Half of them stay unused, so
// that an id that the client still remembers is not soon another message's.
func (w *window) spare() int {
	if w.n == 0 {
		return maxWindow / 2
	}
	return max(maxWindow/2-idsFrom(w.at(0).id, w.next), 0)
}

// idsFrom returns how many packet ids after first id is, on their circle.
func idsFrom(first, id uint16) int {
	n := int(id) - int(first)
	if n < 0 {
		n += maxWindow
	}
	return n
}

// get returns the entry of a packet id, nil if it is not in the window or done.
func (w *window) get(id uint16) *inflight {
	if w.n == 0 {
		return nil
	}
	i := idsFrom(w.at(0).id, id)
	if i >= w.n || w.at(i).id != id {
		if i = w.search(id); i < 0 {
			return nil
		}
	}
	if e := w.at(i); e.state != stateDone {
		return e
	}
	return nil
}

// search returns where the entry of a packet id is if entries before it are missing, -1 if
// it is not there. It can only be nearer to the oldest than its id is.
func (w *window) search(id uint16) int {
	first := w.at(0).id
	far := idsFrom(first, id)
	i := sort.Search(min(far, w.n), func(i int) bool { return idsFrom(first, w.at(i).id) >= far })
	if i == w.n || w.at(i).id != id {
		return -1
	}
	return i
}

// done marks an entry as acknowledged and forgets the oldest that are.
func (w *window) done(e *inflight) {
	if e.seq != 0 {
		w.open--
	}
	e.state = stateDone
	w.undone--
	for w.n > 0 && w.at(0).state == stateDone {
		*w.at(0) = inflight{}
		w.head = (w.head + 1) & (len(w.ring) - 1)
		w.n--
	}
}

// oldest returns the lowest seq of the chat messages that are not acknowledged, 0 if all
// are. It is the first of them, but for messages that were restored.
func (w *window) oldest(restored bool) uint64 {
	var lowest uint64
	if w.open == 0 {
		return 0
	}
	for i := range w.n {
		e := w.at(i)
		if e.seq == 0 || e.state == stateDone {
			continue
		}
		if !restored {
			return e.seq
		}
		if lowest == 0 || e.seq < lowest {
			lowest = e.seq
		}
	}
	return lowest
}

// restore fills an empty window with exchanges under the packet ids that they have, which
// are all different. The widest gap between ids, on their circle from 65,535 to 1, stays
// free for new ones; the ids in the other gaps are not given out.
func (w *window) restore(xs []exchange) {
	if len(xs) == 0 {
		return
	}
	slices.SortFunc(xs, func(a, b exchange) int { return cmp.Compare(a.id, b.id) })
	first, widest := 0, 0
	for i, x := range xs {
		before := int(xs[(i+len(xs)-1)%len(xs)].id)
		if gap := (int(x.id) - before + maxWindow) % maxWindow; gap > widest {
			first, widest = i, gap
		}
	}
	w.started = true
	for i := range xs {
		x := xs[(first+i)%len(xs)]
		w.next = x.id
		w.push(inflight{seq: x.seq, topic: x.topic, qos: 2, state: x.state, sent: true})
	}
}
