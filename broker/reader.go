package broker

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Sizes of a connection's read buffer: while nothing much comes, and while it does.
const (
	idleBuffer = 128
	busyBuffer = 16 << 10
)

var busyBuffers = sync.Pool{New: func() any { b := make([]byte, busyBuffer); return &b }}

// reader takes MQTT packets from a stream. An idle one owns a buffer of 128 bytes; one
// that is busy borrows a larger one.
type reader struct {
	src  io.Reader
	most int // bytes of the largest packet that is accepted

	buf   []byte
	r, w  int     // unread bytes are buf[r:w]
	big   *[]byte // the borrowed buffer behind buf, nil if buf is another one
	small bool    // the last read brought less than an idle buffer holds
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

// need reads until there are n unread bytes.
func (r *reader) need(n int) error {
	for r.w-r.r < n {
		r.makeRoom()
		got, err := r.src.Read(r.buf[r.w:])
		r.w += got
		r.small = got < idleBuffer
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

// makeRoom makes sure that the buffer is not full, and that an idle connection does not
// keep a large one.
func (r *reader) makeRoom() {
	if r.r == r.w {
		r.r, r.w = 0, 0
		if r.buf == nil || r.small && len(r.buf) > idleBuffer {
			r.giveBack()
			r.buf = r.idle[:]
		}
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
	var bigger []byte
	var borrowed *[]byte
	if len(r.buf) < busyBuffer {
		borrowed, _ = busyBuffers.Get().(*[]byte)
		bigger = *borrowed
	} else {
		bigger = make([]byte, 2*len(r.buf)) // it grows with what really comes
	}
	n := copy(bigger, r.buf[r.r:r.w])
	r.giveBack()
	r.buf, r.big, r.r, r.w = bigger, borrowed, 0, n
}

// giveBack lets go of a borrowed buffer.
func (r *reader) giveBack() {
	if r.big != nil {
		busyBuffers.Put(r.big)
		r.big = nil
	}
	r.buf = nil
}
