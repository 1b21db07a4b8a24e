package session

import "testing"

// A client that has released all its exchanges leaves nothing behind: a map keeps the room
// that it once needed.
func TestInboundGivesItsMemoryBack(t *testing.T) {
	t.Parallel()
	var in Inbound
	mine := func() bool { return true }
	for id := range uint16(100) {
		in.Publish(id+1, mine, func() {})
		in.Release(id+1, mine)
	}
	if in.open != nil {
		t.Errorf("%d exchanges are kept", len(in.open))
	}
}
