package leak

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Guards against reporting a goroutine that ends a moment later, as goleak does, and
// against a leak that is not found.
func TestFind(t *testing.T) {
	before := goleak.IgnoreCurrent()
	go time.Sleep(time.Second)
	if err := Find(before); err != nil {
		t.Errorf("of a goroutine that ends: %v", err)
	}
	stay := make(chan struct{})
	go func() { <-stay }()
	if err := find(time.Second, before); err == nil || !strings.Contains(err.Error(), "TestFind") {
		t.Errorf("of one that stays: %v", err)
	}
	close(stay)
}
