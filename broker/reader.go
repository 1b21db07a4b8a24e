package broker

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Sizes of a connection's read buffer: while it waits for something to come, and when more
// has come than that holds.
const (
	idleBuffer = 128
	busyBuffer = 16 << 10
)

// busyBuffers lends buffers of busyBuffer bytes, of twice as many, and so on.
var busyBuffers [16]sync.Pool

// borrow returns a buffer of busyBuffer<<class bytes.
func borrow(class int) *[]byte {
	if b, ok := busyBuffers[class].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, busyBuffer<<class)
	return &b
}

// reader takes MQTT packets from a stream. One that waits for the next owns a buffer of 128
// bytes, whatever came before; one that has more to take borrows a larger one.
type reader struct {
	src  io.Reader
	most int // bytes of the largest packet that is accepted

	buf   []byte
	r, w  int     // unread bytes are buf[r:w]
	big   *[]byte // the borrowed buffer behind buf, nil if buf is idle
	class int     // of big
	fresh bool    // something has come since this was last looked at; see came
	idle  [idleBuffer]byte
}

// next returns the first byte and the body of the next packet (MQTT 5, 2.1). The body is
// valid until the next call. It returns packets.ErrMalformedVariableByteInteger or
// packets.ErrPacketTooLarge for what it does not accept.
func (r *reader) next() (head byte, body []byte, err error) {
	if err := r.need(2); err != nil {
		return 0, nil, err
	}
	head = r.buf[r.r]
	size, n := 0, 1
	for shift := 0; ; shift += 7 {
		if n > 4 {
			return 0, nil, packets.ErrMalformedVariableByteInteger
		}
		if err := r.need(n + 1); err != nil {
			return 0, nil, err
		}
		b := r.buf[r.r+n]
		n++
		size |= int(b&0x7F) << shift
		if b < 0x80 {
			break
		}
	}
	if n+size > r.most {
		return 0, nil, packets.ErrPacketTooLarge
	}
	if err := r.need(n + size); err != nil {
		return 0, nil, err
	}
	body = r.buf[r.r+n : r.r+n+size]
	r.r += n + size
	return head, body, nil
}

// buffered reports whether a further packet, or the beginning of one, has been read.
func (r *reader) buffered() bool { return r.r < r.w }

// came reports whether anything has come since it was last called.
func (r *reader) came() bool {
	fresh := r.fresh
	r.fresh = false
	return fresh
}

// need reads until there are n unread bytes.
func (r *reader) need(n int) error {
	for r.w-r.r < n {
		r.makeRoom()
		got, err := r.src.Read(r.buf[r.w:])
		r.w += got
		r.fresh = true
		if got == 0 && err == nil {
			err = io.ErrNoProgress
		}
		if err != nil && r.w-r.r < n {
			if errors.Is(err, io.EOF) && r.w > r.r {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read: %w", err)
		}
	}
	return nil
}

// makeRoom makes sure that the buffer is not full, and that who waits for the next packet
// does not keep a large one.
func (r *reader) makeRoom() {
	if r.r == r.w {
		r.r, r.w = 0, 0
		r.giveBack()
		r.buf = r.idle[:]
		return
	}
	if r.w < len(r.buf) {
		return
	}
	if r.r > 0 && r.w-r.r <= len(r.buf)/2 {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
		return
	}
	class := 0
	if r.big != nil {
		class = r.class + 1 // it grows with what really comes
	}
	bigger := borrow(class)
	n := copy(*bigger, r.buf[r.r:r.w])
	r.giveBack()
	r.buf, r.big, r.class, r.r, r.w = *bigger, bigger, class, 0, n
}

// giveBack lets go of a borrowed buffer.
func (r *reader) giveBack() {
	if r.big != nil {
		busyBuffers[r.class].Put(r.big)
		r.big = nil
	}
	r.buf = nil
}
