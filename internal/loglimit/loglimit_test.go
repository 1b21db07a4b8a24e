package loglimit_test

import (
	"testing"
	"time"

	"mynah/internal/loglimit"
)

// A burst is logged. Later lines are counted, and the count is returned with the
// next line that is logged.
func TestLimiter(t *testing.T) {
	t.Parallel()
	l := loglimit.New(2, 50*time.Millisecond)
	logged, told := 0, int64(0)
	for range 100 {
		if n, ok := l.Allow(); ok {
			logged, told = logged+1, told+n
		}
	}
	if logged < 2 || logged > 50 {
		t.Errorf("%d of 100 at once are logged, want about 2", logged)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		n, ok := l.Allow()
		if ok {
			logged, told = logged+1, told+n
			break
		}
		told-- // this one is left out as well
		if time.Now().After(deadline) {
			t.Fatal("nothing is logged any more")
		}
	}
	if told != int64(100-(logged-1)) {
		t.Errorf("%d left out are told, want %d", told, 100-(logged-1))
	}
}
