package listener

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/gorilla/websocket"
)

const (
	// lingerTime and lingerBytes bound how long, and how much, the socket of a
	// WebSocket is read after our close frame. If it were closed with unread
	// bytes, TCP would reset it, and the peer could lose the last frames.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// stream is a WebSocket as one byte stream (MQTT 5, section 6: packets may span
// messages and share them).
type stream struct {
	*wire
	ws            *websocket.Conn
	server        *server
	message       io.Reader // the rest of the current message, or nil
	err           error     // why reading has ended; Gorilla must not be called again
	closeReceived bool      // the peer has sent a close frame, which was answered
}

// Read reads the payload of binary messages. The end of the WebSocket is io.EOF,
// whatever the close code.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.err == nil {
		if s.message == nil {
			kind, r, err := s.ws.NextReader()
			if err != nil {
				s.fail(err)
				break
			}
			if kind != websocket.BinaryMessage {
				_ = s.closeWith(websocket.CloseUnsupportedData)
				s.err = ErrTextMessage
				break
			}
			s.message = r
		}
		n, err := s.message.Read(p)
		switch {
		case errors.Is(err, io.EOF):
			s.message = nil
		case err != nil:
			s.fail(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, s.err
}

// fail converts Gorilla's errors to those of a net.Conn.
func (s *stream) fail(err error) {
	s.err = err
	if ce, ok := errors.AsType[*websocket.CloseError](err); ok {
		s.err = io.EOF
		s.closeReceived = ce.Code != websocket.CloseAbnormalClosure
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		s.err = os.ErrDeadlineExceeded // Gorilla hides which error it was
	}
	if errors.Is(err, websocket.ErrReadLimit) {
		s.err = fmt.Errorf("%w: WebSocket message over the limit", ErrMalformed)
	}
}

// Write writes p as binary messages of at most maxFrame bytes.
func (s *stream) Write(p []byte) (int, error) { return s.writeData(p) }

// Close sends a close frame: 1001 when the listener is closing, else 1000. It
// blocks for closeTimeout at most. The serving goroutine closes the socket.
func (s *stream) Close() error {
	code := websocket.CloseNormalClosure
	if s.server.isStopping() {
		code = websocket.CloseGoingAway
	}
	return s.closeWith(code)
}

// linger waits until the peer has read our last frames and answered the close
// frame, before the socket is closed.
func (s *stream) linger() {
	if s.closeReceived {
		return
	}
	half, ok := s.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || s.Conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, s.Conn, lingerBytes)
}

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.setReadDeadline(t), s.setWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error { return s.setReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error { return s.setWriteDeadline(t) }

var _ net.Conn = (*stream)(nil)
