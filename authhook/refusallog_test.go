package authhook_test

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mynah/authhook"
)

// TestRefusalsDoNotFloodTheLog guards the disk, and thus the message log, against
// somebody without a token: thousands of refused CONNECTs a second were as many lines
// at warn. What is left out is counted, and nobody's lines crowd out another's.
func TestRefusalsDoNotFloodTheLog(t *testing.T) {
	t.Parallel()
	var (
		passed atomic.Int64 // on the clock
		remote atomic.Value
	)
	now := func() time.Time { return time.Unix(1_800_000_000, passed.Load()) }
	b := serve(t, authhook.HookConfig{
		Now: now,
		// Who is throttled at every attempt, and let in again at the next.
		Limiter: authhook.NewLimiter(authhook.LimiterConfig{FailureRate: 100, FailureBurst: 1, Now: now}),
	}, func(c net.Conn) net.Conn { return from{c, remote.Load().(string)} }) //nolint:forcetypeassert // stored below
	// refused returns the lines about n refused CONNECTs from an address.
	refused := func(n int, address string) string {
		t.Helper()
		remote.Store(address)
		before := b.log.String()
		for range n {
			passed.Add(int64(10 * time.Millisecond))
			c, ack := b.connect(t, 5, "c", "x", nil)
			if ack.ReasonCode != 0x86 {
				t.Fatalf("CONNACK 0x%02x", ack.ReasonCode)
			}
			c.CloseAbruptly()
		}
		return strings.TrimPrefix(b.log.String(), before)
	}
	lines := func(log string) int { return strings.Count(log, "connect refused") }

	if n := lines(refused(150, "127.0.0.1:9")); n != 100 { // where a proxy's clients all come from
		t.Errorf("%d lines about 150 refusals, want 100", n)
	}
	if log := refused(1, "192.0.2.1:9"); lines(log) != 1 || !strings.Contains(log, "left_out=50") {
		t.Errorf("want a line that says that 50 were left out, got %q", log)
	}
	passed.Add(int64(20 * time.Second))
	if log := refused(5, "127.0.0.1:9"); lines(log) != 2 || strings.Contains(log, "left_out") {
		t.Errorf("want one line for each ten seconds that have passed, got %q", log)
	}
	// Many addresses are bounded together.
	all := 0
	for i := range 11 {
		all += lines(refused(100, fmt.Sprintf("198.51.100.%d:9", i)))
	}
	if all < 850 || all > 950 {
		t.Errorf("%d lines about 1,100 refusals of 11 addresses, want about 1,000 less those before", all)
	}
	if n := strings.Count(b.log.String(), "address throttled"); n < 2 || n > 12 {
		t.Errorf("%d lines about 12 throttled addresses", n)
	}
}
