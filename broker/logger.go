package broker

import (
	"context"
	"log/slog"
	"slices"
)

// mochiAttrs are what Mochi logs that may be logged: its other attributes hold packets
// with their payloads.
var mochiAttrs = []string{"error", "client", "remote", "listener", "hook", "old_remote", "new_remote", "reason", "method"}

// mochiHandler passes on what Mochi logs without payloads, and its warnings about what
// clients do wrong as what they are to an operator: details.
type mochiHandler struct{ slog.Handler }

// Enabled reports whether the record would be logged at its adjusted level.
func (h mochiHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, adjusted(level))
}

// Handle logs the record without what clients sent.
func (h mochiHandler) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, adjusted(r.Level), "mochi: "+r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if harmless(a) {
			clean.AddAttrs(a)
		}
		return true
	})
	return h.Handler.Handle(ctx, clean)
}

// WithAttrs returns a handler with those of the attributes that may be logged.
func (h mochiHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	may := slices.DeleteFunc(slices.Clone(attrs), func(a slog.Attr) bool { return !harmless(a) })
	return mochiHandler{h.Handler.WithAttrs(may)}
}

// WithGroup returns a handler with a group.
func (h mochiHandler) WithGroup(name string) slog.Handler {
	return mochiHandler{h.Handler.WithGroup(name)}
}

func harmless(a slog.Attr) bool { return slices.Contains(mochiAttrs, a.Key) }

func adjusted(level slog.Level) slog.Level {
	if level < slog.LevelError {
		return slog.LevelDebug
	}
	return level
}
