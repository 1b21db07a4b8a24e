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
	// WebSocket is read on after we said goodbye. Closed with unread bytes it
	// would be reset, and the peer could lose our last words.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// stream is a WebSocket as one byte stream (MQTT 5, section 6: packets may span
// messages and share them).
type stream struct {
	*wire
	ws      *websocket.Conn
	door    *door
	message io.Reader // the rest of the current message, or nil
	err     error     // what ended reading; Gorilla must not be asked again
	left    bool      // the peer has said goodbye, and was answered
}

// Read reads the payload of binary messages. The end of the WebSocket is io.EOF,
// whatever the peer's reason for it.
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
				_ = s.shut(websocket.CloseUnsupportedData)
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

// fail turns Gorilla's errors into those of a net.Conn.
func (s *stream) fail(err error) {
	s.err = err
	if ce, ok := errors.AsType[*websocket.CloseError](err); ok {
		s.err = io.EOF
		s.left = ce.Code != websocket.CloseAbnormalClosure
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

// Close says goodbye: 1001 when the door is closing, else 1000. It blocks for
// closeWait at most. The socket itself is closed by the serving goroutine.
func (s *stream) Close() error {
	code := websocket.CloseNormalClosure
	if s.door.refusing() {
		code = websocket.CloseGoingAway
	}
	return s.shut(code)
}

// linger gives the peer the time to read our last frames and to answer the
// close frame, before the socket is closed.
func (s *stream) linger() {
	if s.left {
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
