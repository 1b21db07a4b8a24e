// Package waitfor lets tests wait for a condition instead of sleeping.
//
// Each function checks the condition at once, then again after short pauses, and
// fails the test after Timeout.
package waitfor

import "time"

// Timeout is how long a test waits. It is long, since a wait costs nothing when the
// condition becomes true, and a busy machine must not fail a test.
const Timeout = time.Minute

// The pause between two checks grows from minPause to maxPause. So a quick condition is
// seen quickly, and a slow one is not checked too often (a check may be a query).
const (
	minPause = 100 * time.Microsecond
	maxPause = 20 * time.Millisecond
)

// TB is the part of testing.TB that this package needs. rapid.T implements it
// too.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// MustHold waits until a condition holds. what names the condition in the failure
// message: "the session is live".
func MustHold(tb TB, what string, holds func() bool) {
	tb.Helper()
	if !poll(Timeout, holds) {
		tb.Fatalf("not within %v: %s", Timeout, what)
	}
}

// MustSucceed waits until try returns nil. The failure message has the last
// error.
func MustSucceed(tb TB, what string, try func() error) {
	tb.Helper()
	var err error
	if !poll(Timeout, func() bool { err = try(); return err == nil }) {
		tb.Fatalf("not within %v: %s: %v", Timeout, what, err)
	}
}

// poll reports whether the condition held before the time-out. It checks once more
// after the time-out, in case the process was suspended meanwhile.
func poll(timeout time.Duration, holds func() bool) bool {
	deadline := time.Now().Add(timeout)
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		late := time.Now().After(deadline)
		if holds() {
			return true
		}
		if late {
			return false
		}
		time.Sleep(pause)
	}
}
