// Package waitfor lets tests wait for a condition instead of sleeping.
//
// Each function looks at once, then again after short pauses, and fails the test when
// Timeout is over.
package waitfor

import "time"

// Timeout is how long a test waits. It is long, since it costs nothing when the condition
// comes true, and a machine that is busy or stands still for seconds is no failure.
const Timeout = time.Minute

// The pause between two looks grows from the first to the second: what comes soon is seen
// soon, and what takes long (a look may be a query) is not looked at all the time.
const (
	minPause = 100 * time.Microsecond
	maxPause = 20 * time.Millisecond
)

// TB is what is needed of testing.TB. rapid.T has it as well.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// MustHold waits until a condition holds. What names the condition, for the failure: "the
// session is live".
func MustHold(tb TB, what string, holds func() bool) {
	tb.Helper()
	if !poll(Timeout, holds) {
		tb.Fatalf("not within %v: %s", Timeout, what)
	}
}

// MustSucceed waits until try returns nil. The failure has the last error.
func MustSucceed(tb TB, what string, try func() error) {
	tb.Helper()
	var err error
	if !poll(Timeout, func() bool { err = try(); return err == nil }) {
		tb.Fatalf("not within %v: %s: %v", Timeout, what, err)
	}
}

// poll reports whether the condition held before the time was over. It looks once more
// after that, in case the process stood still meanwhile.
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
