package outbox

import (
	"errors"
	"net"
	"runtime"
	"testing"
)

// nowhere is a connection that can only be closed.
type nowhere struct{ net.Conn }

func (nowhere) Close() error { return nil }

// Guards against a writers' queue that grows although it is never empty. Every connection
// leaves the queue once, in the order of its arrival.
func TestWritersQueueDoesNotGrow(t *testing.T) {
	t.Parallel()
	w := writers{running: runtime.GOMAXPROCS(0)} // as if they were there, so that none comes
	conns := make([]*Conn, 100)
	for i := range conns {
		conns[i] = &Conn{}
		w.enqueue(conns[i])
	}
	var out [writerTurn]*Conn
	next := 0
	for range 50_000 {
		n := w.takeLocked(&out)
		for _, c := range out[:n] {
			if c != conns[next%len(conns)] {
				t.Fatalf("connection %d is not the one whose turn it is", next)
			}
			next++
			w.enqueue(c)
		}
	}
	if waiting := len(w.queue) - w.head; waiting != len(conns) || cap(w.queue) > 8*len(conns) {
		t.Errorf("%d wait in room for %d, want %d in little more", waiting, cap(w.queue), len(conns))
	}
}

// When an outbox is full, a message that may be lost is, and any other ends the connection.
func TestWriteToAFullOutbox(t *testing.T) {
	t.Parallel()
	for head, lost := range map[byte]bool{0x30: true, 0x31: true, 0x32: false, 0x3A: false, 0x34: false, 0xD0: false} {
		c := NewConn(nowhere{}, &Limits{PerConn: 10, Total: 1 << 20})
		c.inFlight = 10 + controlReserve
		switch n, err := c.Write([]byte{head, 0}); {
		case lost && (err != nil || n != 2):
			t.Errorf("packet %x: %d bytes, error %v, want it to be lost", head, n, err)
		case !lost && !errors.Is(err, ErrSlowConsumer):
			t.Errorf("packet %x: error %v, want the end", head, err)
		}
	}
}
