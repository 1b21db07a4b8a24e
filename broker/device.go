package broker

import (
	"sync"
	"time"

	"mynah/broker/msglog"
	"mynah/broker/session"
)

// A PUBLISH with DUP may be the retransmission of a message that is in the log, or a
// message of which the first PUBLISH never arrived. Without a mid they are told apart by
// packet id and content, which are alike too when a device says the same thing twice under
// one packet id: "on", and a while later "on". What is known here keeps an earlier message
// that its device has been done with for sure from being taken for the later one.

// settling is how long a device must have gone on talking after an acknowledgement was
// written to have received it for sure. TCP delivers in both directions or in none for
// long.
const settling = 10 * time.Second

// maxDevices bounds of how many devices something is remembered. Forgetting one is
// harmless but for what is said above.
const maxDevices = 1 << 17

// devices remembers what devices are done with, for as long as the broker runs.
type devices struct {
	mu    sync.Mutex
	known map[session.Key]*device
}

// device is what is known of one. Its fields are guarded by devices.mu.
type device struct {
	// settled is the seq up to which the device has its acknowledgements.
	settled uint64
	// released is the seq after which nothing that it published at QoS 2 is open
	// but what is in open; 0 if it has not published at QoS 2.
	released uint64
	// open holds the packet ids of QoS 2 publishes to chat topics that the client has
	// not released with PUBREL (MQTT 5, 4.3.3), in its present session; left holds
	// those of earlier sessions, which matter to a client that sends again after a
	// clean start, against the rules, but not to one that begins anew.
	open, left idSet
}

// maxLeft bounds how many exchanges of sessions that have ended are remembered of a device.
// More than these are forgotten all: no client has so many open in earnest, and anybody can
// begin session after session.
const maxLeft = 16

func newDevices() *devices { return &devices{known: make(map[session.Key]*device)} }

func (d *devices) ofLocked(k session.Key) *device {
	dev := d.known[k]
	if dev == nil {
		if len(d.known) >= maxDevices {
			for other := range d.known { // any
				delete(d.known, other)
				break
			}
		}
		dev = &device{}
		d.known[k] = dev
	}
	return dev
}

// again narrows down what a DUP at QoS 1 may be the retransmission of.
func (d *devices) again(k session.Key, r *msglog.Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if dev := d.known[k]; dev != nil {
		r.DupAfter = dev.settled
	}
}

// opened says that a QoS 2 publish has begun under a packet id, or goes on: until its
// PUBREL, whatever comes under the id is the same message. Anything else with DUP can only
// be the retransmission of what this broker does not know to have been released. last is
// the newest seq of the log.
func (d *devices) opened(k session.Key, r *msglog.Record, last uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dev := d.ofLocked(k)
	if dev.open.has(r.PacketID) || r.Dup && dev.left.has(r.PacketID) {
		r.Dup = true
		dev.left.remove(r.PacketID)
		dev.open.add(r.PacketID)
		return
	}
	r.DupAfter, r.DupUpTo = dev.settled, dev.released
	if dev.released == 0 {
		dev.released = max(last, 1)
	}
	dev.left.remove(r.PacketID)
	dev.open.add(r.PacketID)
}

// exchanges returns how many QoS 2 publishes of the present session are open.
func (d *devices) exchanges(k session.Key) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if dev := d.known[k]; dev != nil {
		return dev.open.len()
	}
	return 0
}

// over says that a session of a device has ended.
func (d *devices) over(k session.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dev := d.known[k]
	if dev == nil {
		return
	}
	dev.left.addAll(&dev.open)
	dev.open = idSet{}
	if dev.left.len() > maxLeft {
		dev.left = idSet{}
	}
}

// closed says that a QoS 2 publish has ended: by PUBREL, or by a PUBREC that refuses it.
func (d *devices) closed(k session.Key, id uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if dev := d.known[k]; dev != nil {
		dev.open.remove(id)
		dev.left.remove(id)
	}
}

// settle says that the device has the acknowledgements of all that it published up to seq.
func (d *devices) settle(k session.Key, seq uint64) {
	if seq == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	dev := d.ofLocked(k)
	dev.settled = max(dev.settled, seq)
}

// pace follows what a connection's device is done with, while it goes on talking. It
// belongs to the reading goroutine.
type pace struct {
	tracked bool      // it has published what a DUP could be taken for
	at      time.Time // when upTo was the newest seq of the log
	upTo    uint64
	settled uint64
}

// due reports whether it is time for heard.
func (p *pace) due(now time.Time) bool { return p.tracked && now.Sub(p.at) >= settling }

// heard says that the device has been heard of while nothing waited to be written to it.
// last is the newest seq of the log.
func (p *pace) heard(now time.Time, last uint64) {
	p.settled, p.upTo, p.at = p.upTo, last, now
}

// paused says that the device was not listened to until now. What is read next it may have
// sent before it could receive what has been written meanwhile.
func (p *pace) paused(now time.Time) { p.at = now }
