package waitfor

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// recorder is a TB that keeps the failure.
type recorder struct{ failure string }

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) { r.failure = fmt.Sprintf(format, args...) }

func TestWaitsUntilItHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		MustHold(t, "ten seconds are over", func() bool { return time.Since(began) >= 10*time.Second })
		if took := time.Since(began); took > 10*time.Second+maxPause {
			t.Errorf("took %v", took)
		}
		calls := 0
		MustSucceed(t, "the third call succeeds", func() error {
			if calls++; calls < 3 {
				return errors.New("not yet")
			}
			return nil
		})
		if calls != 3 {
			t.Errorf("%d calls, want 3", calls)
		}
	})
}

func TestFailsWhenTheTimeIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var r recorder
		MustHold(&r, "pigs fly", func() bool { return false })
		if !strings.Contains(r.failure, "pigs fly") {
			t.Errorf("failure %q", r.failure)
		}
		if took := time.Since(began); took < Timeout || took > Timeout+2*maxPause {
			t.Errorf("took %v, want %v", took, Timeout)
		}
		r = recorder{}
		MustSucceed(&r, "pigs fly", func() error { return errors.New("no wings") })
		if !strings.Contains(r.failure, "pigs fly: no wings") {
			t.Errorf("failure %q", r.failure)
		}
	})
}

// Guards against a failure because the process was suspended: there is one more check
// after the time-out.
func TestLooksOnceMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		MustHold(t, "held while the process stood still", func() bool {
			if calls++; calls == 1 {
				time.Sleep(2 * Timeout)
				return false
			}
			return true
		})
	})
}
