package archiver

import (
	"errors"
	"io"
	"net"
	"testing"
)

var errCut = errors.New("broken pipe")

// cutConn is a connection whose writes fail and whose reads wait for its close, as
// when the peer's reset is first seen by a write.
type cutConn struct{ net.Conn }

func (cutConn) Write([]byte) (int, error) { return 0, errCut }

// Guards against an archiver that sits on a dead connection for the length of a
// keep-alive: paho must be told of the failed write by the read.
func TestReadTellsOfFailedWrite(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer func() { _ = theirs.Close() }()
	ended := make(chan struct{})
	c := newConn(cutConn{ours}, func() { close(ended) })
	if _, err := c.Write([]byte("acknowledgement")); err != nil {
		t.Fatalf("write: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, errCut) {
		t.Errorf("read: %v, want what the write failed with", err)
	}
	if _, err := c.Write([]byte("another")); !errors.Is(err, errCut) {
		t.Errorf("second write: %v, want what the first failed with", err)
	}
	for range 2 {
		_ = c.Close() // the second does nothing
	}
	<-ended
}

// Guards against acknowledgements that are lost when the archiver stops: what was
// written before Close must be on its way before the connection ends.
func TestCloseWritesWhatIsPending(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	got := make(chan string)
	go func() {
		text, _ := io.ReadAll(theirs) // its end is the end of the connection
		got <- string(text)
	}()
	c := newConn(ours, func() {})
	for _, word := range []string{"one ", "two ", "three"} {
		if _, err := c.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if text := <-got; text != "one two three" {
		t.Errorf("the peer got %q", text)
	}
	if _, err := c.Write([]byte("late")); err == nil {
		t.Error("a write after Close succeeds")
	}
}
