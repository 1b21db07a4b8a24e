package broker_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
)

var secret = []byte("a secret for tests, 32 bytes or more")

// mustStart runs a broker on a free port for the test.
func mustStart(tb testing.TB, dir string, change func(*broker.Config)) *broker.Broker {
	tb.Helper()
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: secret})
	if err != nil {
		tb.Fatal(err)
	}
	cfg := broker.Config{
		DataDir: dir, MQTTAddr: "127.0.0.1:0", Verifier: verifier,
		Logger: slog.New(slog.NewTextHandler(testWriter{tb}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if change != nil {
		change(&cfg)
	}
	b, err := broker.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
		defer cancel()
		if err := b.Stop(ctx); err != nil {
			tb.Errorf("stop: %v", err)
		}
		verifier.Close()
	})
	if err := b.Start(context.Background()); err != nil {
		tb.Fatal(err)
	}
	return b
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.tb.Logf("%s", p)
	return len(p), nil
}

// mustToken mints a token.
func mustToken(tb testing.TB, claims authhook.TokenClaims) string {
	tb.Helper()
	if claims.TTL == 0 {
		claims.TTL = time.Hour
	}
	t, err := authhook.Mint(secret, claims)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// metric returns what one of the broker's gauges or counters says.
func metric(tb testing.TB, r prometheus.Gatherer, name string) float64 {
	tb.Helper()
	families, err := r.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	tb.Fatalf("no metric %s", name)
	return 0
}
