package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/gorilla/websocket"

	"mynah/internal/mqttwire"
)

// transport carries whole packets. One goroutine calls read. One goroutine at a
// time calls write. Any goroutine may call close, more than once.
type transport interface {
	read() ([]byte, error) // the next packet, a copy
	write(b []byte) error
	close()
}

func dial(ctx context.Context, cfg *Config) (transport, error) {
	if !cfg.WebSocket {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", cfg.Addr)
		if err != nil {
			return nil, err
		}
		return &tcpTransport{conn: conn}, nil
	}
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}}
	conn, resp, err := d.DialContext(ctx, "ws://"+cfg.Addr+"/mqtt", http.Header{})
	if err != nil {
		if resp != nil {
			return nil, errors.Join(fmt.Errorf("WebSocket: %w: %s", err, resp.Status), resp.Body.Close())
		}
		return nil, fmt.Errorf("WebSocket: %w", err)
	}
	if conn.Subprotocol() != "mqtt" {
		return nil, errors.Join(errors.New("WebSocket: the broker does not speak the subprotocol mqtt"), conn.Close())
	}
	return &wsTransport{conn: conn}, nil
}

// frameCutter cuts a stream of bytes into packets.
type frameCutter struct{ buf []byte }

// cut returns the first whole packet, nil if there is none yet.
func (f *frameCutter) cut() ([]byte, error) {
	n, _, err := mqttwire.FrameSize(f.buf)
	if err != nil || n == 0 {
		return nil, err
	}
	packet := slices.Clone(f.buf[:n])
	f.buf = f.buf[:copy(f.buf, f.buf[n:])]
	return packet, nil
}

type tcpTransport struct {
	frameCutter
	conn  net.Conn
	chunk [16 << 10]byte
}

func (t *tcpTransport) read() ([]byte, error) {
	for {
		if p, err := t.cut(); p != nil || err != nil {
			return p, err
		}
		n, err := t.conn.Read(t.chunk[:])
		t.buf = append(t.buf, t.chunk[:n]...)
		if err != nil && n == 0 {
			return nil, err
		}
	}
}

func (t *tcpTransport) write(b []byte) error {
	if err := t.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := t.conn.Write(b)
	return err
}

func (t *tcpTransport) close() { _ = t.conn.Close() }

// wsTransport carries packets in WebSocket messages, cut anywhere (MQTT 5, section 6).
type wsTransport struct {
	frameCutter
	conn *websocket.Conn
}

func (w *wsTransport) read() ([]byte, error) {
	for {
		if p, err := w.cut(); p != nil || err != nil {
			return p, err
		}
		kind, b, err := w.conn.ReadMessage()
		if err != nil {
			return nil, err
		}
		if kind != websocket.BinaryMessage {
			return nil, fmt.Errorf("WebSocket message of type %d: %w", kind, mqttwire.ErrMalformed)
		}
		w.buf = append(w.buf, b...)
	}
}

func (w *wsTransport) write(b []byte) error {
	if err := w.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	return w.conn.WriteMessage(websocket.BinaryMessage, b)
}

func (w *wsTransport) close() { _ = w.conn.Close() }
