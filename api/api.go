package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"mynah/authhook"
	"mynah/directory/changes"
	"mynah/groups"
	"mynah/internal/forwarded"
	"mynah/internal/loglimit"
	"mynah/internal/origin"
	"mynah/people"
	"mynah/people/contacts"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// API answers HTTP requests. Make it with New.
type API struct {
	cfg      Config
	origins  origin.List
	source   forwarded.Source
	log      *slog.Logger
	db       *pgtx.DB
	mux      *http.ServeMux
	huma     huma.API
	document []byte // openapi.json
	people   *people.Service
	contacts *contacts.Service
	groups   *groups.Service
	limits   limits
	barrier  *changes.Barrier

	refusedTokens *authhook.RefusalLog
	otherOrigins  *loglimit.Limiter // of pages whose scripts may not read answers

	ready atomic.Bool // between Start and Stop

	mu   sync.Mutex // guards what follows
	stop context.CancelFunc
	done chan struct{}
}

// New returns an API. It asks nobody anything yet: Start does.
func New(cfg Config) (*API, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	a := &API{cfg: cfg, log: cfg.Log, db: pgtx.New(cfg.DB), mux: http.NewServeMux(), limits: newLimits(cfg.AddressLimits, cfg.Now)}
	a.refusedTokens = authhook.NewRefusalLog(cfg.Now)
	a.otherOrigins = loglimit.New(originsAtOnce, originsEvery)
	cfg.People.PublicURL = cfg.PublicURL
	header, err := forwarded.ParseHeader(cfg.ForwardedHeader)
	if err != nil {
		return nil, fmt.Errorf("set up addresses: %w", err)
	}
	a.source = forwarded.Source{Header: header, Trusted: cfg.TrustedProxies}
	if a.origins, err = origin.Parse(cfg.Origins); err != nil {
		return nil, err
	}
	if a.people, err = people.New(a.db, cfg.Keys, cfg.People, cfg.Log, cfg.Now); err != nil {
		return nil, fmt.Errorf("set up people: %w", err)
	}
	a.contacts, a.groups = contacts.New(a.db, cfg.Contacts), groups.New(a.db, cfg.Groups)
	a.people.Accounts.OnDelete = a.forget
	a.barrier = changes.NewBarrier(cfg.DB, cfg.Log)
	a.huma = humago.New(a.mux, humaConfig())
	a.routes()
	if err := a.serveDocs(); err != nil {
		return nil, fmt.Errorf("describe the API: %w", err)
	}
	return a, nil
}

// Paths are the patterns under which Handler is to be mounted.
func Paths() []string {
	return []string{"/v1/", "/openapi.json", "/asyncapi.yaml", "/docs", "/docs/", "/.well-known/jwks.json"}
}

// Handler returns the handler of all of Paths. Before Start and after Stop it
// answers that the server is not ready. How long a client may take with its
// request is the http.Server's to say, with ReadTimeout.
func (a *API) Handler() http.Handler { return http.HandlerFunc(a.serve) }

// Start reads the signing keys, making one if there is none, and starts sending
// codes and sweeping. It returns an error if PostgreSQL cannot be asked. To start
// what is started does nothing.
func (a *API) Start(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stop != nil {
		return nil
	}
	if err := a.people.Start(ctx); err != nil {
		return fmt.Errorf("start people: %w", err)
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	a.stop, a.done = stop, make(chan struct{})
	go a.sweepRegularly(background, a.done)
	a.barrier.Start(background)
	a.ready.Store(true)
	return nil
}

// Stop ends what Start began and waits for it, at most until ctx ends. Codes that
// are being sent are sent. To stop what is stopped does nothing; after a Stop that gave
// up, another one waits again.
func (a *API) Stop(ctx context.Context) error {
	a.mu.Lock()
	if a.stop != nil {
		a.ready.Store(false)
		a.stop()
		a.stop = nil
	}
	done := a.done
	a.mu.Unlock() // not held while Stop waits: another Stop has a context of its own
	if done == nil {
		return nil
	}
	// Each is told to end, also if another one does not.
	errs := []error{a.barrier.Stop(ctx), a.people.Stop(ctx)}
	select {
	case <-done:
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("gave up on waiting until what has expired is deleted: %w", ctx.Err()))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop the API: %w", err)
	}
	return nil
}

// forget removes who deletes their account from groups and contacts, in the transaction of
// the deletion.
func (a *API) forget(ctx context.Context, account string) error {
	if err := a.groups.Forget(ctx, account); err != nil {
		return err
	}
	return a.contacts.Forget(ctx, account)
}

// sweepEvery is how often what has expired is deleted.
const sweepEvery = 5 * time.Minute

// sweepRegularly deletes what has expired. Several APIs on one database may do it at once.
func (a *API) sweepRegularly(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := a.Sweep(ctx); err != nil && ctx.Err() == nil {
			a.log.LogAttrs(ctx, slog.LevelWarn, "sweep failed; it is tried again", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Sweep deletes what has expired: kept answers after 24 hours, the feed of
// changes after a day, codes, tickets, sessions and revocations. It runs every
// five minutes by itself once the API is started.
func (a *API) Sweep(ctx context.Context) error {
	for _, statement := range slices.Concat(schema.Sweeps(), schema.SocialSweeps()) {
		if _, err := a.cfg.DB.Exec(ctx, statement); err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
	}
	return nil
}
