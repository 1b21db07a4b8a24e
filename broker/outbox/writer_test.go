package outbox_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"mynah/broker/outbox"
)

// direct is a connection as the TCP door hands it over.
type direct struct{ *net.TCPConn }

func (p direct) DirectSocket() syscall.RawConn {
	raw, err := p.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// tcpPair returns both ends of a TCP connection, with small socket buffers.
func tcpPair(tb testing.TB) (client *net.TCPConn, server direct) {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // both ends are there by then
	c, err := (&net.Dialer{}).DialContext(tb.Context(), "tcp", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	client, server = c.(*net.TCPConn), direct{s.(*net.TCPConn)} //nolint:forcetypeassert // they are TCP
	if err := errors.Join(client.SetReadBuffer(32<<10), server.SetWriteBuffer(32<<10)); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return client, server
}

// numbered returns a packet of n bytes or a few more that tells its sender and number.
func numbered(sender, number, n int) []byte {
	p := []byte{0x40} // a PUBACK for all that Conn knows: not to be dropped
	p = binary.AppendUvarint(p, uint64(8+n))
	p = binary.BigEndian.AppendUint32(p, uint32(sender)) //nolint:gosec // small
	p = binary.BigEndian.AppendUint32(p, uint32(number)) //nolint:gosec // small
	return append(p, bytes.Repeat([]byte{byte(number)}, n)...)
}

// checkNumbered reads what senders have sent until each has sent so many packets, and that
// they are whole and in order.
func checkNumbered(tb testing.TB, r io.Reader, senders, each int) {
	tb.Helper()
	next := make([]int, senders)
	head := make([]byte, 1)
	for left := senders * each; left > 0; left-- {
		if _, err := io.ReadFull(r, head); err != nil || head[0] != 0x40 {
			tb.Errorf("packet begins with %x, %v; %d packets lack", head, err, left)
			return
		}
		size, err := binary.ReadUvarint(byteReader{r})
		if err != nil {
			tb.Error(err)
			return
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(r, body); err != nil {
			tb.Errorf("packet of %d bytes: %v; %d packets lack", size, err, left)
			return
		}
		sender, number := binary.BigEndian.Uint32(body), binary.BigEndian.Uint32(body[4:])
		if int(sender) >= senders || int(number) != next[sender] {
			tb.Errorf("sender %d: packet %d, want %d", sender, number, next[sender])
			return
		}
		next[sender]++
		if !bytes.Equal(body[8:], bytes.Repeat([]byte{byte(number)}, len(body)-8)) { //nolint:gosec // the low byte is meant
			tb.Errorf("sender %d: packet %d is damaged", sender, number)
			return
		}
	}
}

type byteReader struct{ io.Reader }

func (r byteReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

// All bytes reach the client once and in order, however little its socket takes at a time.
// Guards against swapping the part that was written at once and the rest that had to wait.
func TestPlainSocketGetsAllInOrder(t *testing.T) {
	t.Parallel()
	const conns, senders, each = 16, 3, 400
	limits := outbox.Limits{PerConn: 64 << 20, Total: 1 << 30, Timeout: time.Minute}
	var all sync.WaitGroup
	for i := range conns {
		client, server := tcpPair(t)
		c := outbox.NewConn(server, &limits)
		for s := range senders {
			all.Go(func() {
				for n := range each {
					size := (n * 37) % 600
					if n%50 == 0 {
						size = 100_000 // more than the socket takes
					}
					if _, err := c.Write(numbered(s, n, size)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Go(func() {
			if i%2 == 0 {
				checkNumbered(t, client, senders, each)
				return
			}
			checkNumbered(t, io.MultiReader(io.LimitReader(slowly{client}, 2000), client), senders, each)
		})
	}
	all.Wait()
}

// slowly reads a byte at a time.
type slowly struct{ io.Reader }

func (s slowly) Read(p []byte) (int, error) { return s.Reader.Read(p[:1]) }

// Clients whose sockets are full delay no other client, however many they are.
func TestFullSocketsKeepNobodyWaiting(t *testing.T) {
	t.Parallel()
	limits := outbox.Limits{PerConn: 64 << 20, Total: 1 << 30, Timeout: time.Minute}
	const stuck = 50
	var full []*net.TCPConn
	for range stuck {
		client, server := tcpPair(t)
		c := outbox.NewConn(server, &limits)
		if _, err := c.Write(numbered(0, 0, 1<<20)); err != nil {
			t.Fatal(err)
		}
		full = append(full, client)
	}
	client, server := tcpPair(t)
	c := outbox.NewConn(server, &limits)
	if err := client.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for n := range 100 {
		if _, err := c.Write(numbered(0, n, 10)); err != nil {
			t.Fatal(err)
		}
	}
	checkNumbered(t, client, 1, 100)
	var all sync.WaitGroup
	for _, client := range full {
		all.Go(func() { checkNumbered(t, client, 1, 1) }) // and they get theirs
	}
	all.Wait()
}

// Flush returns when the outbox has been written, and the client gets it before the end
// of the connection.
func TestFlushSendsWhatWaits(t *testing.T) {
	t.Parallel()
	limits := outbox.Limits{PerConn: 1 << 20, Total: 1 << 30, Timeout: time.Minute}
	for range 200 {
		client, server := tcpPair(t)
		c := outbox.NewConn(server, &limits)
		var all sync.WaitGroup
		all.Go(func() {
			checkNumbered(t, client, 1, 20)
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("after the last packet: %v, want the end", err)
			}
		})
		for n := range 20 {
			if _, err := c.Write(numbered(0, n, 500)); err != nil {
				t.Fatal(err)
			}
		}
		c.Flush()
		if _, err := c.Write(numbered(0, 20, 0)); err == nil {
			t.Error("a closed connection takes packets")
		}
		all.Wait()
	}
}

// A client that reads nothing delays the end of its connection for a moment only.
func TestFlushGivesUp(t *testing.T) {
	t.Parallel()
	limits := outbox.Limits{PerConn: 64 << 20, Total: 1 << 30, Timeout: time.Minute}
	_, server := tcpPair(t)
	c := outbox.NewConn(server, &limits)
	if _, err := c.Write(numbered(0, 0, 1<<20)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.Flush()
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("Flush took %v", took)
	}
	if limits.Held() != 0 {
		t.Errorf("%d bytes are held for a connection that is over", limits.Held())
	}
}

// A client whose socket was full for a moment is not cut off when the deadline that was set
// for that moment has passed.
func TestDeadlineEndsWithTheCongestion(t *testing.T) {
	t.Parallel()
	const timeout = 4 * time.Second // in which the client reads, also on a busy machine
	limits := outbox.Limits{PerConn: 64 << 20, Total: 1 << 30, Timeout: timeout}
	client, server := tcpPair(t)
	c := outbox.NewConn(server, &limits)
	for n := range 3 {
		if n == 2 {
			time.Sleep(timeout + timeout/4) // the time that the deadline would have had
		}
		if _, err := c.Write(numbered(0, 0, 300_000)); err != nil {
			t.Fatalf("packet %d: %v", n, err)
		}
		checkNumbered(t, client, 1, 1)
	}
}
