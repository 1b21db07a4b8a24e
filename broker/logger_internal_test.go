package broker

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// What Mochi logs of packets stays out of the log: they hold payloads. What it says
// otherwise is kept, as a detail unless it is an error. At present Mochi is given no packet
// that it could log; this holds if it is, or takes to logging others.
func TestMochiLogsNoPackets(t *testing.T) {
	t.Parallel()
	pk := &packets.Packet{TopicName: "plant/x", Payload: []byte("xyzzy")}
	for _, tc := range []struct {
		level slog.Level
		log   func(l *slog.Logger)
		want  string
	}{
		{slog.LevelDebug, func(l *slog.Logger) { l.Warn("failed", "client", "c", "packet", *pk, "pk", pk) }, "level=DEBUG msg=\"mochi: failed\" client=c\n"},
		{slog.LevelDebug, func(l *slog.Logger) { l.With("packet", pk, "listener", "l").Error("failed", "will", *pk) }, "level=ERROR msg=\"mochi: failed\" listener=l\n"},
		{slog.LevelInfo, func(l *slog.Logger) { l.Warn("failed", "client", "c") }, ""},
		{slog.LevelInfo, func(l *slog.Logger) { l.Error("failed", "error", "no") }, "level=ERROR msg=\"mochi: failed\" error=no\n"},
	} {
		var out strings.Builder
		tc.log(slog.New(mochiHandler{slog.NewTextHandler(&out, &slog.HandlerOptions{
			Level: tc.level,
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		})}))
		if out.String() != tc.want {
			t.Errorf("logged %q, want %q", out.String(), tc.want)
		}
	}
}
