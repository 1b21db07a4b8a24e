package session

import (
	"cmp"
	"math/bits"
	"slices"
	"sort"

	"mynah/broker/outbox"
)

// State is how far a message has got on its way to the client.
type State uint8

// The states of a message on its way to the client.
const (
	StateSent      State = iota // PUBLISH was sent, no acknowledgement yet
	StateReceived               // QoS 2: PUBREC came, PUBREL is due or sent
	StateDone                   // acknowledged; kept only until those before it are
	StateReceiving              // QoS 2: PUBREC came and is being stored; PUBREL must wait
)

// Kind is where a message comes from.
type Kind uint8

// The kinds of messages.
const (
	Logged Kind = iota // it is in the log, and read there again if need be
	Queued             // it is outside the chat, and the session's Queue has it
)

// Inflight is one message that was sent at QoS 1 or 2.
type Inflight struct {
	Seq    uint64 // of a logged message
	Topic  string // of a logged message, by which the session gets it
	ID     uint16 // packet id
	QoS    byte
	State  State
	Kind   Kind
	OnWire bool // it was sent on the present connection
	Sent   bool // it was sent on whichever
}

// Exchange is a QoS 2 message on its way to a client.
type Exchange struct {
	Seq   uint64
	ID    uint16 // its packet id
	Topic string
	State State
}

// Window holds the unacknowledged messages of a session in the order in which they
// were sent. Packet ids are given out in that order too, so that the entry of an id is
// found by subtraction. The ids of a client's own publishes are another space (MQTT 5,
// 2.2.1) and never meet these.
//
// What is acknowledged before its turn stays until the oldest is, or until its room is
// wanted: a client that keeps back one message and takes ten thousand after it must not
// make the window as long as that. Then ids are missing between the entries, and an entry
// that is not where it would be without that is searched for.
type Window struct {
	ring    []Inflight // power of two long, or nil
	head    int        // index of the oldest
	n       int        // entries in use; the oldest is not done
	undone  int        // entries that are not done
	next    uint16     // packet id for the next one
	open    int        // logged messages not yet done
	started bool
	peak    int // undone at the most since Fit was last called
}

// SmallRing is how many entries a ring has at the least, and may have for ever: a quarter
// of a KiB.
const SmallRing = 8

// StepID returns the packet id that is n after id.
func StepID(id uint16, n int) uint16 {
	return uint16((int(id)-1+n)%MaxPacketIDs) + 1 //nolint:gosec // below 65536 by construction
}

// MaxPacketIDs is how many packet ids there are.
const MaxPacketIDs = 65535

// Len returns how many entries the window has, done ones between others included.
func (w *Window) Len() int { return w.n }

// Capacity returns for how many entries the window has memory.
func (w *Window) Capacity() int { return len(w.ring) }

// At returns the i-th entry, the oldest first.
func (w *Window) At(i int) *Inflight { return &w.ring[(w.head+i)&(len(w.ring)-1)] }

// Push adds a message and returns its packet id. The caller has checked FreeIDs.
func (w *Window) Push(e Inflight) uint16 {
	if w.n == len(w.ring) {
		w.extend()
	}
	if !w.started {
		w.started, w.next = true, 1
	}
	e.ID = w.next
	w.next = outbox.NextPacketID(e.ID)
	*w.At(w.n) = e
	w.n++
	w.undone++
	w.peak = max(w.peak, w.undone)
	if e.Kind == Logged {
		w.open++
	}
	return e.ID
}

// extend makes room for another entry in a full ring. If half of what is there is done,
// that goes, so that a ring is at most four times as long as what is unacknowledged at a
// time, and its entries are not moved more often than they are added.
func (w *Window) extend() {
	if w.undone <= len(w.ring)/2 && len(w.ring) > 0 {
		w.pack(len(w.ring))
		return
	}
	w.pack(max(SmallRing, 2*len(w.ring)))
}

// pack moves the entries that are not done to a ring of a size that is a power of two or 0,
// maybe the same ring.
func (w *Window) pack(size int) {
	from := *w
	if size != len(w.ring) {
		w.ring, w.head = make([]Inflight, size), 0
	}
	w.n = 0
	for i := range from.n {
		e := *from.At(i)
		*from.At(i) = Inflight{}
		if e.State != StateDone {
			*w.At(w.n) = e
			w.n++
		}
	}
}

// ringFor returns how long a ring of n entries is.
func ringFor(n int) int {
	if n == 0 {
		return 0
	}
	return max(SmallRing, 1<<bits.Len(uint(n-1))) //nolint:gosec // not negative
}

// Fit gives back the room that has not been needed since it was last called.
func (w *Window) Fit() {
	if size := ringFor(w.peak); size < len(w.ring) {
		w.pack(size)
	}
	w.peak = w.undone
}

// Shrink gives back all the room that is not needed now.
func (w *Window) Shrink() {
	w.peak = w.undone
	w.Fit()
}

// Oversized reports whether a ring that is not small has become larger than its entries need.
func (w *Window) Oversized() bool { return len(w.ring) > SmallRing && ringFor(w.undone) < len(w.ring) }

// NextID returns the packet id that the next Push gives.
func (w *Window) NextID() uint16 {
	if !w.started {
		return 1
	}
	return w.next
}

// FreeIDs returns how many more packet ids may be given out. Half of them stay unused, so
// that an id that the client still remembers is not soon another message's.
func (w *Window) FreeIDs() int {
	if w.n == 0 {
		return MaxPacketIDs / 2
	}
	return max(MaxPacketIDs/2-idsFrom(w.At(0).ID, w.next), 0)
}

// idsFrom returns how many packet ids after first id is, on their circle.
func idsFrom(first, id uint16) int {
	n := int(id) - int(first)
	if n < 0 {
		n += MaxPacketIDs
	}
	return n
}

// Get returns the entry of a packet id, nil if it is not in the window or done.
func (w *Window) Get(id uint16) *Inflight {
	if w.n == 0 {
		return nil
	}
	i := idsFrom(w.At(0).ID, id)
	if i >= w.n || w.At(i).ID != id {
		if i = w.search(id); i < 0 {
			return nil
		}
	}
	if e := w.At(i); e.State != StateDone {
		return e
	}
	return nil
}

// search returns where the entry of a packet id is if entries before it are missing, -1 if
// it is not there. It can only be nearer to the oldest than its id is.
func (w *Window) search(id uint16) int {
	first := w.At(0).ID
	far := idsFrom(first, id)
	i := sort.Search(min(far, w.n), func(i int) bool { return idsFrom(first, w.At(i).ID) >= far })
	if i == w.n || w.At(i).ID != id {
		return -1
	}
	return i
}

// Done marks an entry as acknowledged and forgets the oldest that are.
func (w *Window) Done(e *Inflight) {
	if e.Kind == Logged {
		w.open--
	}
	e.State = StateDone
	w.undone--
	for w.n > 0 && w.At(0).State == StateDone {
		*w.At(0) = Inflight{}
		w.head = (w.head + 1) & (len(w.ring) - 1)
		w.n--
	}
}

// Oldest returns the lowest seq of the logged messages that are not acknowledged, 0 if all
// are. It is the first of them, but for messages that were restored.
func (w *Window) Oldest(restored bool) uint64 {
	var lowest uint64
	if w.open == 0 {
		return 0
	}
	for i := range w.n {
		e := w.At(i)
		if e.Kind != Logged || e.State == StateDone {
			continue
		}
		if !restored {
			return e.Seq
		}
		if lowest == 0 || e.Seq < lowest {
			lowest = e.Seq
		}
	}
	return lowest
}

// Restore fills an empty window with exchanges under the packet ids that they have, which
// are all different. The widest gap between ids, on their circle from 65,535 to 1, stays
// free for new ones; the ids in the other gaps are not given out.
func (w *Window) Restore(xs []Exchange) {
	if len(xs) == 0 {
		return
	}
	slices.SortFunc(xs, func(a, b Exchange) int { return cmp.Compare(a.ID, b.ID) })
	first, widest := 0, 0
	for i, x := range xs {
		before := int(xs[(i+len(xs)-1)%len(xs)].ID)
		if gap := (int(x.ID) - before + MaxPacketIDs) % MaxPacketIDs; gap > widest {
			first, widest = i, gap
		}
	}
	w.started = true
	for i := range xs {
		x := xs[(first+i)%len(xs)]
		w.next = x.ID
		w.Push(Inflight{Seq: x.Seq, Topic: x.Topic, QoS: 2, State: x.State, Sent: true})
	}
}
