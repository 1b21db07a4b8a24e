package delivery

// state is how far a message has got on its way to the client.
type state uint8

const (
	stateSent     state = iota // PUBLISH was sent, no acknowledgement yet
	stateReceived              // QoS 2: PUBREC came, PUBREL is due or sent
	stateDone                  // acknowledged; kept only until those before it are
)

// inflight is one message that was sent at QoS 1 or 2, or a packet id lent to
// Mochi for a message of a plain topic.
type inflight struct {
	seq   uint64 // 0 for a plain message
	topic string // delivery topic; "" for a plain message
	ident uint16 // Mochi's packet id of a plain message
	qos   byte
	state state
	wire  bool // it was sent on the present connection
}

// window holds the unacknowledged messages of a session in the order in which they
// were sent. Packet ids are given out in that order too, so the ids in the window
// are consecutive, and the entry of an id is found by subtraction. The ids of a
// client's own publishes are another space (MQTT 5, 2.2.1) and never meet these.
type window struct {
	ring    []inflight // power of two long, or nil
	head    int        // index of the oldest
	n       int        // entries in use
	first   uint16     // packet id of the oldest; meaningless if n is 0
	next    uint16     // packet id for the next one
	open    int        // messages not yet done, plain ones excepted: what Receive Maximum counts
	plain   int        // plain entries not yet done
	started bool
}

// maxWindow is how many packet ids there are.
const maxWindow = 65535

func nextPacketID(id uint16) uint16 {
	if id == maxWindow {
		return 1
	}
	return id + 1
}

func (w *window) at(i int) *inflight { return &w.ring[(w.head+i)&(len(w.ring)-1)] }

// push adds a message and returns its packet id. The caller has checked full.
func (w *window) push(e inflight) uint16 {
	if w.n == len(w.ring) {
		w.grow()
	}
	if !w.started {
		w.started, w.next = true, 1
	}
	if w.n == 0 {
		w.first = w.next
	}
	id := w.next
	w.next = nextPacketID(id)
	*w.at(w.n) = e
	w.n++
	switch {
	case e.state == stateDone:
	case e.seq == 0:
		w.plain++
	default:
		w.open++
	}
	return id
}

func (w *window) grow() {
	bigger := make([]inflight, max(8, 2*len(w.ring)))
	for i := range w.n {
		bigger[i] = *w.at(i)
	}
	w.ring, w.head = bigger, 0
}

// nextID returns the packet id that the next push gives.
func (w *window) nextID() uint16 {
	if !w.started {
		return 1
	}
	return w.next
}

// full reports whether no more packet ids can be given out.
func (w *window) full() bool { return w.n >= maxWindow-1 }

// get returns the entry of a packet id, nil if it is not in the window or done.
func (w *window) get(id uint16) *inflight {
	if w.n == 0 || id == 0 {
		return nil
	}
	i := int(id) - int(w.first)
	if i < 0 {
		i += maxWindow
	}
	if i >= w.n {
		return nil
	}
	e := w.at(i)
	if e.state == stateDone {
		return nil
	}
	return e
}

// done marks an entry as acknowledged and forgets the oldest that are.
func (w *window) done(e *inflight) {
	if e.seq == 0 {
		w.plain--
	} else {
		w.open--
	}
	e.state = stateDone
	for w.n > 0 && w.at(0).state == stateDone {
		*w.at(0) = inflight{}
		w.head = (w.head + 1) & (len(w.ring) - 1)
		w.n--
		w.first = nextPacketID(w.first)
	}
	if w.n == 0 && len(w.ring) > 1024 {
		w.ring, w.head = nil, 0
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

// find returns the packet id and the entry of a message that is not done, nil if it is
// not there.
func (w *window) find(seq uint64) (uint16, *inflight) {
	for i := range w.n {
		if e := w.at(i); e.seq == seq && e.state != stateDone {
			return w.idAt(i), e
		}
	}
	return 0, nil
}

// idAt returns the packet id of the i-th entry.
func (w *window) idAt(i int) uint16 {
	id := int(w.first) + i
	if id > maxWindow {
		id -= maxWindow
	}
	return uint16(id) //nolint:gosec // at most maxWindow by the line above
}

// restore adds a message under the packet id that it has, which is after those that
// are there. The ids in between count as done.
func (w *window) restore(id uint16, e inflight) {
	if w.n == 0 {
		w.started, w.next = true, id
	}
	for w.next != id && !w.full() {
		w.push(inflight{seq: e.seq, state: stateDone})
	}
	w.push(e)
}
