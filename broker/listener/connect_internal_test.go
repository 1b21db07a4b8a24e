package listener

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
)

// greedy is a peer that announces much and sends little; it records how large
// the buffers are that it is asked to fill.
type greedy struct {
	send  []byte
	asked int
}

func (g *greedy) Read(p []byte) (int, error) {
	g.asked = max(g.asked, len(p))
	if len(g.send) == 0 {
		return 0, io.EOF
	}
	n := copy(p, g.send)
	g.send = g.send[n:]
	return n, nil
}

// Guards against memory that is allocated for an announced size. At most twice
// the received bytes are allocated.
func TestConnectBufferGrowsWithWhatArrives(t *testing.T) {
	t.Parallel()
	announce := append([]byte{0x10, 0x80, 0x80, 0x08}, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60) // 128 KiB
	for _, arrived := range []int{14, 1000, 5000, 70_000} {
		g := &greedy{send: append(slices.Clone(announce), make([]byte, arrived-len(announce))...)}
		if _, _, err := readConnect(g, 128<<10); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d bytes arrived: %v", arrived, err)
		}
		if limit := max(connectInitialBuffer, arrived); g.asked > limit {
			t.Errorf("%d bytes arrived, room for %d more was made; want at most %d", arrived, g.asked, limit)
		}
	}
}

// FuzzReadConnect checks the guard with arbitrary first bytes. It never panics
// and never reads beyond the packet. What it accepts is an unchanged CONNECT
// within the limit, however the stream is cut.
func FuzzReadConnect(f *testing.F) {
	const limit = 2000
	valid := append([]byte{0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 0}, 0xc0, 0)
	f.Add(valid)
	f.Add([]byte{0x10, 0x8c, 0x80, 0x80, 0x00, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 60, 0, 0})
	f.Add([]byte{0x10, 14, 0, 6, 'M', 'Q', 'I', 's', 'd', 'p', 3, 2, 0, 60, 0, 0})
	f.Add([]byte{0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 0x84, 2, 0, 60, 0, 0})
	f.Add([]byte{0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 0x85, 2, 0, 60, 0, 0})
	f.Add([]byte{0x10, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{0x10, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80})
	f.Add([]byte("GET /mqtt HTTP/1.1\r\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		whole := bytes.NewReader(data)
		packet, level, err := readConnect(whole, limit)
		cut, cutLevel, cutErr := readConnect(iotest.OneByteReader(bytes.NewReader(data)), limit)
		if !bytes.Equal(packet, cut) || level != cutLevel || (err == nil) != (cutErr == nil) {
			t.Fatalf("in one piece %x, %d, %v; byte by byte %x, %d, %v", packet, level, err, cut, cutLevel, cutErr)
		}
		if err != nil {
			if packet != nil {
				t.Fatalf("%v, and yet a packet", err)
			}
			return
		}
		if !bytes.HasPrefix(data, packet) || whole.Len() != len(data)-len(packet) {
			t.Fatalf("took %x of %x, %d bytes unread", packet, data, whole.Len())
		}
		if len(packet) > limit+5 || packet[0] != 0x10 || !slices.Contains([]byte{3, 4, 5, 0x83, 0x84}, level) {
			t.Fatalf("let %x through at level %d", packet, level)
		}
		var follow framer
		if n, ok := follow.scan(packet); !ok || n != len(packet) || follow.body != 0 || follow.step != 0 {
			t.Fatalf("%x is not one whole packet", packet)
		}
	})
}

// FuzzFramer compares the framer with a simple implementation, however the
// stream is cut.
func FuzzFramer(f *testing.F) {
	f.Add([]byte{0xc0, 0, 0x30, 3, 1, 2, 3}, uint8(1))
	f.Add([]byte{0xc0, 0, 0xc0, 0x80, 0x80, 0x80, 0x80, 0}, uint8(3))
	f.Add([]byte{0x30, 0x80, 0x80, 0x80, 0x00, 0xc0, 0x80}, uint8(2))
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0xc0, 0x80, 0x80, 0x80, 0x80}, uint8(255))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		want, wantOK := wellFramed(data)
		var fr framer
		got, ok := 0, true
		for rest := data; len(rest) > 0 && ok; {
			piece := rest[:min(len(rest), int(size)+1)]
			rest = rest[len(piece):]
			var n int
			n, ok = fr.scan(piece)
			if got += n; got > want {
				t.Fatalf("%d bytes passed, only %d are well framed", got, want)
			}
		}
		if ok != wantOK {
			t.Fatalf("%x in pieces of %d: %v, want %v", data, int(size)+1, ok, wantOK)
		}
		if ok && got != len(data) {
			t.Fatalf("%d bytes passed of %d", got, len(data))
		}
	})
}

// wellFramed returns how many bytes of data come before a packet with an
// over-long length, plus those of its header that may have passed already.
func wellFramed(data []byte) (int, bool) {
	for at := 0; at < len(data); {
		value, i := 0, 1
		for {
			if i == 5 {
				return at + 4, false
			}
			if at+i >= len(data) {
				return len(data), true
			}
			b := data[at+i]
			value |= int(b&0x7f) << (7 * (i - 1))
			if b&0x80 == 0 {
				break
			}
			if i == 4 {
				return at + 4, false
			}
			i++
		}
		at += 1 + i + value
	}
	return len(data), true
}

// BenchmarkFramer shows the whole of the guard's cost after the CONNECT: for
// each packet of 128 bytes, to be compared with its share of a system call.
func BenchmarkFramer(b *testing.B) {
	packet := append([]byte{0x30, 126}, make([]byte, 126)...)
	read := bytes.Repeat(packet, 16) // 2 KiB, a read of Mochi's
	var f framer
	b.SetBytes(int64(len(packet)))
	for i := 0; i < b.N; i += 16 {
		if _, ok := f.scan(read); !ok {
			b.Fatal("malformed")
		}
	}
}
