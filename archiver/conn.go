package archiver

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

const (
	readBuffer   = 64 << 10
	writeTimeout = 30 * time.Second
)

// dialer opens a connection, which it hands to opened as well. end is called when
// the connection is closed.
func dialer(ctx context.Context, config *tls.Config, end func(), opened func(net.Conn)) mqtt.OpenConnectionFunc {
	return func(broker *url.URL, _ mqtt.ClientOptions) (net.Conn, error) {
		limited, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		plain := &net.Dialer{}
		var raw net.Conn
		var err error
		switch broker.Scheme {
		case "tcp", "mqtt":
			raw, err = plain.DialContext(limited, "tcp", broker.Host)
		case "ssl", "tls", "mqtts":
			secure := &tls.Dialer{NetDialer: plain, Config: config}
			raw, err = secure.DialContext(limited, "tcp", broker.Host)
		case "ws", "wss":
			raw, err = mqtt.NewWebsocket(broker.String(), config, connectTimeout, nil, nil)
		default:
			err = fmt.Errorf("unknown scheme %q", broker.Scheme)
		}
		if err != nil {
			return nil, err
		}
		c := newConn(raw, end)
		opened(c)
		return c, nil
	}
}

// conn is a connection that gathers what is written while a write is on its way.
// paho writes each acknowledgement by itself and reads each packet in three
// pieces; a batch would cost thousands of system calls here and in the broker.
type conn struct {
	net.Conn
	reader     *bufio.Reader
	end        func()
	wake       chan struct{} // has a token when there may be something to write
	writerDone chan struct{} // closed when the writer has ended
	once       sync.Once     // guards Close

	mu      sync.Mutex // guards what follows
	pending []byte     // not yet written
	closing bool
	err     error // of a write
}

func newConn(raw net.Conn, end func()) *conn {
	c := &conn{
		Conn:       raw,
		reader:     bufio.NewReaderSize(raw, readBuffer),
		end:        end,
		wake:       make(chan struct{}, 1),
		writerDone: make(chan struct{}),
	}
	go c.write()
	return c
}

// Read reads from the buffer. When a write has failed it returns that failure:
// paho takes "use of closed network connection" for a close of its own and would
// believe in the connection until a ping's time-out.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.reader.Read(p)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err != nil {
			err = c.err
		}
	}
	return n, err
}

// Write takes p over and returns; an error is that of an earlier write.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if c.closing {
		return 0, net.ErrClosed
	}
	c.pending = append(c.pending, p...)
	c.signal()
	return len(p), nil
}

func (c *conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write writes what is pending until the connection is closed.
func (c *conn) write() {
	defer close(c.writerDone)
	var spare []byte
	for range c.wake {
		c.mu.Lock()
		out, closing := c.pending, c.closing
		c.pending = spare[:0]
		if !closing {
			_ = c.SetWriteDeadline(time.Now().Add(writeTimeout)) // Write tells
		}
		c.mu.Unlock()
		if len(out) > 0 {
			if _, err := c.Conn.Write(out); err != nil {
				c.mu.Lock()
				c.err = err
				c.mu.Unlock()
				_ = c.Conn.Close() // ends the read, which tells paho
				return
			}
		}
		if closing {
			return
		}
		spare = out
	}
}

// Close writes what is pending, for a short while if the other side does not read,
// and closes the connection.
func (c *conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		c.end()
		c.mu.Lock()
		c.closing = true
		_ = c.SetWriteDeadline(time.Now().Add(disconnectTimeout)) // of a write that is on its way, too
		c.mu.Unlock()
		c.signal()
		<-c.writerDone
		err = c.Conn.Close()
	})
	return err
}
