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
	// maxFrame is the largest payload of one WebSocket frame over TCP, in bytes:
	// the maximum of the two-byte form of its length. A receiver sees a message
	// only when it is complete, so a larger one would delay the packets at its
	// front.
	maxFrame = 65_535
	// maxCopiedFrame is the limit where frames are copied together with their
	// header (TLS): header and payload fill one TLS record.
	maxCopiedFrame = 16<<10 - maxHeader
	maxHeader      = 4
	// controlTimeout bounds the write of a ping, a pong, the answer to the
	// peer's close and the handshake's response. It matters only when the
	// socket's buffer is full.
	controlTimeout = 5 * time.Second
	// closeTimeout bounds the write of the close frame of Close, whose callers
	// may hold others up.
	closeTimeout = 100 * time.Millisecond
	// maxMissedPings is the number of pings without a byte from the peer after
	// which the peer counts as gone.
	maxMissedPings = 2

	finBit = 0x80 // the first bit of a frame that is a whole message
)

// copyBuffers holds buffers for frames that cannot be written with one writev.
var copyBuffers = sync.Pool{New: func() any { return new([maxHeader + maxCopiedFrame]byte) }}

// wire is the socket under a WebSocket. Gorilla reads the handshake, frames and
// writeControlLocked frames through it and writes its answers (pong, close) to it, each with
// one Write of a whole frame. Data frames do not go through Gorilla: writeData
// puts header and payload on the socket with one system call and no buffer.
//
// It also sends the server's pings, from the reading goroutine: the socket's
// read deadline is the earlier one of the owner's and the next ping's, and a
// Read that ends at the latter sends a ping and goes on. So an idle connection
// costs no second goroutine and no timer of its own.
//
// Lock order: writeMu, deadlineMu.
type wire struct {
	net.Conn // the socket, or TLS

	writeMu sync.Mutex // held while a frame is written; guards what follows
	tcp     *net.TCPConn
	closed  bool  // a close frame was sent: nothing may follow
	broken  error // a frame was written in part: nothing can follow
	header  [maxHeader]byte
	vector  [2][]byte
	bufs    net.Buffers

	deadlineMu     sync.Mutex // guards what follows; held for a moment only
	readDeadline   time.Time  // the broker's deadlines
	writeDeadline  time.Time
	pingAt         time.Time // time of the next ping; zero without pings
	socketDeadline time.Time // the socket's read deadline
	shutRead       bool      // reads fail from now on
	closing        bool      // Close has begun: the write deadline is its own

	interval       time.Duration // time between two pings
	heardSincePing bool          // since the last ping; used by the reading goroutine only
	missedPongs    int           // pings without an answer; used by the reading goroutine only
}

// Read reads from the socket, for Gorilla.
func (w *wire) Read(p []byte) (int, error) {
	for {
		n, err := w.Conn.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			w.heardSincePing = true
			return n, err
		}
		ping, err := w.onReadDeadline(time.Now())
		if err != nil {
			return 0, err
		}
		if !ping {
			continue
		}
		if w.heardSincePing {
			w.heardSincePing, w.missedPongs = false, 0
		}
		if w.missedPongs >= maxMissedPings {
			return 0, ErrNoPong
		}
		sent, err := w.ping()
		if err != nil {
			return 0, err
		}
		if sent {
			w.missedPongs++
		}
	}
}

// onReadDeadline returns what a passed read deadline was for: a ping, the
// owner's deadline (an error), or neither if it was moved meanwhile.
func (w *wire) onReadDeadline(now time.Time) (ping bool, err error) {
	w.deadlineMu.Lock()
	defer w.deadlineMu.Unlock()
	if w.shutRead {
		return false, net.ErrClosed
	}
	if !w.readDeadline.IsZero() && !now.Before(w.readDeadline) {
		return false, os.ErrDeadlineExceeded
	}
	if !w.pingAt.IsZero() && !now.Before(w.pingAt) {
		ping = true
		w.pingAt = now.Add(w.interval)
	}
	w.socketDeadline = time.Time{}
	return ping, w.setSocketDeadlineLocked()
}

// setSocketDeadlineLocked sets the socket's read deadline if it has changed. An
// owner that moves its deadline with every packet usually moves it behind the
// next ping, which costs no system timer. deadlineMu is held.
func (w *wire) setSocketDeadlineLocked() error {
	by := w.readDeadline
	if by.IsZero() || (!w.pingAt.IsZero() && w.pingAt.Before(by)) {
		by = w.pingAt
	}
	if w.shutRead || by.Equal(w.socketDeadline) {
		return nil
	}
	w.socketDeadline = by
	return w.Conn.SetReadDeadline(by)
}

// startPings starts the pings, one every interval.
func (w *wire) startPings(interval time.Duration) error {
	w.deadlineMu.Lock()
	defer w.deadlineMu.Unlock()
	w.interval, w.pingAt = interval, time.Now().Add(interval)
	return w.setSocketDeadlineLocked()
}

// setReadDeadline and setWriteDeadline are the broker's deadlines. Gorilla's
// own go nowhere (SetDeadline and the like below), since it would clear the
// owner's with each of its answers.
func (w *wire) setReadDeadline(t time.Time) error {
	w.deadlineMu.Lock()
	defer w.deadlineMu.Unlock()
	w.readDeadline = t
	return w.setSocketDeadlineLocked()
}

func (w *wire) setWriteDeadline(t time.Time) error {
	w.deadlineMu.Lock()
	defer w.deadlineMu.Unlock()
	w.writeDeadline = t
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

// Write writes Gorilla's bytes: the handshake's response or a whole control
// frame. It waits for a data frame that is being written, which the owner's
// write deadline bounds.
func (w *wire) Write(p []byte) (int, error) {
	w.writeMu.Lock()
	defer w.writeMu.Unlock()
	if err := w.writeControlLocked(p, controlTimeout); err != nil {
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
	if !w.writeMu.TryLock() {
		return false, nil
	}
	defer w.writeMu.Unlock()
	return true, w.writeControlLocked([]byte{finBit | websocket.PingMessage, 0}, controlTimeout)
}

// writeControlLocked writes a control frame, with its own deadline. writeMu is
// held.
func (w *wire) writeControlLocked(frame []byte, wait time.Duration) error {
	if err := w.writeErrLocked(); err != nil {
		return err
	}
	if err := w.Conn.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := w.Conn.Write(frame); err != nil {
		w.broken = err
		return err
	}
	w.deadlineMu.Lock()
	defer w.deadlineMu.Unlock()
	if w.closing {
		return nil
	}
	return w.Conn.SetWriteDeadline(w.writeDeadline)
}

func (w *wire) writeErrLocked() error {
	if w.closed {
		return net.ErrClosed
	}
	return w.broken
}

// writeData writes p as binary messages of one frame each.
func (w *wire) writeData(p []byte) (int, error) {
	w.writeMu.Lock()
	defer w.writeMu.Unlock()
	written := 0
	for len(p) > 0 {
		if err := w.writeErrLocked(); err != nil {
			return written, err
		}
		var n int
		var err error
		if w.tcp != nil {
			n, err = w.writeVector(p[:min(len(p), maxFrame)])
		} else {
			n, err = w.writeCopy(p[:min(len(p), maxCopiedFrame)])
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
	w.vector[1] = nil // do not keep the owner's buffer
	return max(int(n)-h, 0), err
}

// writeCopy writes one frame from a buffer that holds header and payload.
func (w *wire) writeCopy(p []byte) (int, error) {
	buf := copyBuffers.Get().(*[maxHeader + maxCopiedFrame]byte)
	defer copyBuffers.Put(buf)
	h := putHeader(buf[:], len(p))
	n, err := w.Conn.Write(buf[:h+copy(buf[h:], p)])
	return max(n-h, 0), err
}

// closeWith sends a close frame, if that is possible within closeTimeout, and
// makes reads fail from then on. A blocked Write ends.
func (w *wire) closeWith(code int) error {
	w.deadlineMu.Lock()
	if w.closing {
		w.deadlineMu.Unlock()
		return net.ErrClosed
	}
	w.closing = true
	_ = w.Conn.SetWriteDeadline(time.Now().Add(closeTimeout)) // ends a blocked Write, which has the lock
	w.deadlineMu.Unlock()

	w.writeMu.Lock()
	err := w.writeControlLocked(closeFrame(code), closeTimeout)
	w.closed = true
	w.writeMu.Unlock()
	if errors.Is(err, net.ErrClosed) {
		err = nil // the peer's close was answered already
	}
	w.interrupt()
	return err
}

func closeFrame(code int) []byte {
	const size = 2 // the code, without a text
	return append([]byte{finBit | websocket.CloseMessage, size}, websocket.FormatCloseMessage(code, "")...)
}

// interrupt makes reads fail from now on, including one that is waiting.
func (w *wire) interrupt() {
	w.deadlineMu.Lock()
	defer w.deadlineMu.Unlock()
	w.shutRead = true
	_ = w.Conn.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed connection
}
