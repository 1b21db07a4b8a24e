package listener

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	// maxFrame is the payload of one WebSocket frame over TCP, in bytes: what
	// the two-byte form of its length can say. A receiver sees a message only
	// when it is complete, so a larger one would delay the packets at its front.
	maxFrame = 65_535
	// maxCopied is the same where frames are copied together with their header
	// (TLS): header and payload fill one TLS record.
	maxCopied = 16<<10 - maxHeader
	maxHeader = 4
	// controlWait bounds the writing of a ping, a pong, the answer to the
	// peer's close and the handshake's response. It matters only when the
	// socket's buffer is full.
	controlWait = 5 * time.Second
	// closeWait is the same for the close frame of Close, which others may wait
	// for.
	closeWait = 100 * time.Millisecond
	// missedPings is how many pings may go without a byte from the peer before it
	// is taken to be gone.
	missedPings = 2

	finBit = 0x80 // the first bit of a frame that is a whole message
)

// copied holds buffers for the frames that cannot be written with one writev.
var copied = sync.Pool{New: func() any { return new([maxHeader + maxCopied]byte) }}

// wire is the socket under a WebSocket. Gorilla reads the handshake, frames and
// control frames through it and writes its answers (pong, close) to it, each with
// one Write of a whole frame. Data frames do not go through Gorilla: writeData
// puts header and payload on the socket with one system call and no buffer.
//
// It also sends the server's pings, from the reading goroutine: the socket's
// read deadline is the earlier one of the owner's and the next ping's, and a
// Read that ends at the latter sends a ping and goes on. So an idle connection
// costs no second goroutine and no timer of its own.
//
// Lock order: wmu, dmu.
type wire struct {
	net.Conn // the socket, or TLS

	wmu    sync.Mutex // held while a frame is written; guards what follows
	tcp    *net.TCPConn
	closed bool  // a close frame was sent: nothing may follow
	broken error // a frame was written in part: nothing can follow
	header [maxHeader]byte
	vector [2][]byte
	bufs   net.Buffers

	dmu      sync.Mutex // guards what follows; held for a moment only
	readBy   time.Time  // the owner's deadlines
	writeBy  time.Time
	pingAt   time.Time // the next ping; zero without pings
	armed    time.Time // the socket's read deadline
	shutRead bool      // reads fail from now on
	closing  bool      // Close has begun: the write deadline is its own

	interval time.Duration // between pings
	heard    bool          // since the last ping; the reader's own
	missed   int           // pings without an answer; the reader's own
}

// Read reads from the socket, for Gorilla.
func (w *wire) Read(p []byte) (int, error) {
	for {
		n, err := w.Conn.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			w.heard = true
			return n, err
		}
		ping, err := w.expired(time.Now())
		if err != nil {
			return 0, err
		}
		if !ping {
			continue
		}
		if w.heard {
			w.heard, w.missed = false, 0
		}
		if w.missed >= missedPings {
			return 0, ErrNoPong
		}
		sent, err := w.ping()
		if err != nil {
			return 0, err
		}
		if sent {
			w.missed++
		}
	}
}

// expired tells what a read deadline that has passed was for: a ping, or the
// owner's deadline (an error), or nothing any more.
func (w *wire) expired(now time.Time) (ping bool, err error) {
	w.dmu.Lock()
	defer w.dmu.Unlock()
	if w.shutRead {
		return false, net.ErrClosed
	}
	if !w.readBy.IsZero() && !now.Before(w.readBy) {
		return false, os.ErrDeadlineExceeded
	}
	if !w.pingAt.IsZero() && !now.Before(w.pingAt) {
		ping = true
		w.pingAt = now.Add(w.interval)
	}
	w.armed = time.Time{}
	return ping, w.arm()
}

// arm sets the socket's read deadline, if it is another one. An owner that moves
// its deadline with every packet mostly moves it behind the next ping, and then
// costs no system timer. dmu is held.
func (w *wire) arm() error {
	by := w.readBy
	if by.IsZero() || (!w.pingAt.IsZero() && w.pingAt.Before(by)) {
		by = w.pingAt
	}
	if w.shutRead || by.Equal(w.armed) {
		return nil
	}
	w.armed = by
	return w.Conn.SetReadDeadline(by)
}

// startPings begins to ping every interval, from now on.
func (w *wire) startPings(interval time.Duration) error {
	w.dmu.Lock()
	defer w.dmu.Unlock()
	w.interval, w.pingAt = interval, time.Now().Add(interval)
	return w.arm()
}

// setReadDeadline and setWriteDeadline are the owner's deadlines. Gorilla's own
// go nowhere (SetDeadline and the like below), since it would clear the owner's
// with each of its answers.
func (w *wire) setReadDeadline(t time.Time) error {
	w.dmu.Lock()
	defer w.dmu.Unlock()
	w.readBy = t
	return w.arm()
}

func (w *wire) setWriteDeadline(t time.Time) error {
	w.dmu.Lock()
	defer w.dmu.Unlock()
	w.writeBy = t
	if w.closing {
		return nil
	}
	return w.Conn.SetWriteDeadline(t)
}

// SetDeadline does nothing: see setReadDeadline.
func (w *wire) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing: see setReadDeadline.
func (w *wire) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing: see setWriteDeadline.
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// Write writes what Gorilla has to say: the handshake's response or a whole
// control frame. It waits for a data frame that is being written, which the
// owner's write deadline bounds.
func (w *wire) Write(p []byte) (int, error) {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	if err := w.control(p, controlWait); err != nil {
		return 0, err
	}
	if len(p) > 0 && p[0] == finBit|websocket.CloseMessage {
		w.closed = true
	}
	return len(p), nil
}

// ping sends a ping, unless a frame is being written: the path is not idle then,
// and TCP itself finds out whether anybody takes the bytes.
func (w *wire) ping() (sent bool, err error) {
	if !w.wmu.TryLock() {
		return false, nil
	}
	defer w.wmu.Unlock()
	return true, w.control([]byte{finBit | websocket.PingMessage, 0}, controlWait)
}

// control writes a frame that is not the owner's, with a deadline of its own.
// wmu is held.
func (w *wire) control(frame []byte, wait time.Duration) error {
	if err := w.writable(); err != nil {
		return err
	}
	if err := w.Conn.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := w.Conn.Write(frame); err != nil {
		w.broken = err
		return err
	}
	w.dmu.Lock()
	defer w.dmu.Unlock()
	if w.closing {
		return nil
	}
	return w.Conn.SetWriteDeadline(w.writeBy)
}

func (w *wire) writable() error {
	if w.closed {
		return net.ErrClosed
	}
	return w.broken
}

// writeData writes p as binary messages of one frame each.
func (w *wire) writeData(p []byte) (int, error) {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	written := 0
	for len(p) > 0 {
		if err := w.writable(); err != nil {
			return written, err
		}
		var n int
		var err error
		if w.tcp != nil {
			n, err = w.writeVector(p[:min(len(p), maxFrame)])
		} else {
			n, err = w.writeCopy(p[:min(len(p), maxCopied)])
		}
		written += n
		if err != nil {
			w.broken = err
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

// putHeader puts the header of a binary message of n bytes into h and returns
// the header's length (RFC 6455, section 5.2: FIN, opcode 2, no mask).
func putHeader(h []byte, n int) int {
	h[0] = finBit | websocket.BinaryMessage
	if n < 126 {
		h[1] = byte(n) //nolint:gosec // n is less than 126
		return 2
	}
	h[1] = 126
	binary.BigEndian.PutUint16(h[2:], uint16(n)) //nolint:gosec // n is at most maxFrame
	return maxHeader
}

// writeVector writes one frame with one writev.
func (w *wire) writeVector(p []byte) (int, error) {
	h := putHeader(w.header[:], len(p))
	w.vector[0], w.vector[1] = w.header[:h], p
	w.bufs = w.vector[:]
	n, err := w.bufs.WriteTo(w.tcp)
	w.vector[1] = nil // do not hold the owner's buffer
	return max(int(n)-h, 0), err
}

// writeCopy writes one frame from a buffer that holds header and payload.
func (w *wire) writeCopy(p []byte) (int, error) {
	buf := copied.Get().(*[maxHeader + maxCopied]byte)
	defer copied.Put(buf)
	h := putHeader(buf[:], len(p))
	n, err := w.Conn.Write(buf[:h+copy(buf[h:], p)])
	return max(n-h, 0), err
}

// shut sends a close frame, if the peer still can take one within closeWait, and
// makes reads fail from then on. A Write that is blocked ends.
func (w *wire) shut(code int) error {
	w.dmu.Lock()
	if w.closing {
		w.dmu.Unlock()
		return net.ErrClosed
	}
	w.closing = true
	_ = w.Conn.SetWriteDeadline(time.Now().Add(closeWait)) // ends a blocked Write, which has the lock
	w.dmu.Unlock()

	w.wmu.Lock()
	err := w.control(frameClose(code), closeWait)
	w.closed = true
	w.wmu.Unlock()
	if errors.Is(err, net.ErrClosed) {
		err = nil // the peer's close was answered already
	}
	w.interrupt()
	return err
}

func frameClose(code int) []byte {
	const size = 2 // the code, without a text
	return append([]byte{finBit | websocket.CloseMessage, size}, websocket.FormatCloseMessage(code, "")...)
}

// interrupt makes reads fail from now on, the one that is waiting too.
func (w *wire) interrupt() {
	w.dmu.Lock()
	defer w.dmu.Unlock()
	w.shutRead = true
	_ = w.Conn.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed connection
}
