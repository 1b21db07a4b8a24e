package msglog_test

import (
	"testing"

	"mynah/broker/msglog"
	"mynah/broker/msglog/msglogtest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	msglogtest.Run(t, func(tb testing.TB, dir string) msglog.Log {
		tb.Helper()
		l, err := msglog.Open(dir, msglog.Options{})
		if err != nil {
			tb.Fatal(err)
		}
		return l
	})
}
