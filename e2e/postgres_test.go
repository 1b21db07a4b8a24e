package e2e_test

import (
	"context"
	"testing"

	"mynah/internal/postgres"
)

// ownPostgres is a PostgreSQL of a test's own, which the test may stop and start.
type ownPostgres struct {
	tb testing.TB
	*postgres.Server
	url string
}

// mustOwnPostgres starts one with Mynah's schema.
func mustOwnPostgres(tb testing.TB) *ownPostgres {
	tb.Helper()
	p := &ownPostgres{tb: tb, Server: postgres.New(postgres.Config{Dir: tb.TempDir()})}
	p.start()
	tb.Cleanup(p.stop)
	p.url = p.URL()
	if status, _, stderr := execute(tb, "migrate", "--database-url", p.url); status != 0 {
		tb.Fatalf("migrate: %s", stderr)
	}
	return p
}

func (p *ownPostgres) start() {
	p.tb.Helper()
	if err := p.Start(p.tb.Context()); err != nil {
		p.tb.Fatal(err)
	}
}

func (p *ownPostgres) stop() {
	p.tb.Helper()
	if err := p.Stop(context.Background()); err != nil {
		p.tb.Fatal(err)
	}
}
