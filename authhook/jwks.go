package authhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// How a JWKS is kept fresh. jwkset's own HTTP storage is not used: it reads
// bodies of any length, makes CONNECTs queue for its rate limiter, loses the
// whole set over one bad key and, down at start, comes back only after a full
// interval.
const (
	fileReadInterval = 2 * time.Second  // a file is read anew; it is small
	minFileReadGap   = time.Second      // between two reads that unknown keys ask for
	fetchTimeout     = 10 * time.Second // one fetch, whole
	refreshWait      = 3 * time.Second  // how long a CONNECT waits for a fetch
	minRetryPause    = time.Second      // after a failure, doubling up to retryLimit
	maxRetryPause    = 30 * time.Second
)

// Defaults of VerifierConfig for URLs.
const (
	DefaultRefreshInterval = 5 * time.Minute  // a URL is fetched again
	DefaultRefreshGap      = 10 * time.Second // between two fetches that unknown keys ask for
)

// source is one JWKS, a file or a URL, that is read anew for as long as the
// Verifier lives. The last set that could be read stays in use.
type source struct {
	file     bool
	name     string // path, or URL without user, password and query, for logs
	read     func(context.Context) ([]byte, error)
	interval time.Duration
	minGap   time.Duration
	log      *slog.Logger

	set             atomic.Pointer[keySet] // nil until it was read once
	refreshRequests chan chan struct{}
	done            chan struct{} // closed when run has returned

	// Of run alone.
	raw               []byte // what set was read from
	lastLoggedFailure string // last failure that was logged
}

// newSource prepares a source for a file path or an http(s) URL.
func newSource(location string, cfg *VerifierConfig, client *http.Client) (*source, error) {
	s := &source{log: cfg.Log, refreshRequests: make(chan chan struct{}), done: make(chan struct{})}
	if !strings.Contains(location, "://") {
		s.name, s.interval, s.minGap = location, min(fileReadInterval, cfg.RefreshInterval), min(minFileReadGap, cfg.RefreshGap)
		s.file = true
		s.read = func(context.Context) ([]byte, error) { return readFile(location) }
		return s, nil
	}
	u, err := url.Parse(location)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		// Neither the text nor url.Parse's error: the address may hold a password.
		return nil, errors.New("a JWKS must be a file or an http or https URL")
	}
	bare := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	s.name, s.interval, s.minGap = bare.String(), cfg.RefreshInterval, cfg.RefreshGap
	s.read = func(ctx context.Context) ([]byte, error) { return fetch(ctx, client, location) }
	if u.Scheme == "http" && !loopbackHost(u.Hostname()) {
		s.log.Warn("JWKS is fetched without TLS: whoever is on the way can sign tokens", "jwks", s.name)
	}
	return s, nil
}

// run reads the source until the context ends. started is closed after the
// first attempt.
func (s *source) run(ctx context.Context, started chan<- struct{}) {
	defer close(s.done)
	ok := s.load(ctx)
	close(started)
	last := time.Now()
	backoff := minRetryPause
	timer := time.NewTimer(s.wait(ok, &backoff))
	defer timer.Stop()
	for {
		var asked chan struct{}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case asked = <-s.refreshRequests:
			if time.Since(last) < s.minGap {
				close(asked)
				continue
			}
		}
		ok = s.load(ctx)
		last = time.Now()
		timer.Reset(s.wait(ok, &backoff))
		if asked != nil {
			close(asked)
		}
	}
}

// wait returns how long to rest after an attempt and moves the backoff on.
func (s *source) wait(ok bool, backoff *time.Duration) time.Duration {
	if ok {
		*backoff = minRetryPause
		return s.interval
	}
	d := min(*backoff, s.interval)
	*backoff = min(*backoff*2, maxRetryPause)
	return d
}

// load reads the source once and reports whether that worked. A failure is
// logged when it is another than the one before.
func (s *source) load(ctx context.Context) bool {
	raw, err := s.read(ctx)
	if err == nil && s.set.Load() != nil && bytes.Equal(raw, s.raw) {
		s.recovered()
		return true
	}
	var (
		set     *keySet
		refused []refusedKey
	)
	if err == nil {
		set, refused, err = parseKeySet(raw)
	}
	if err != nil {
		if ctx.Err() == nil && err.Error() != s.lastLoggedFailure {
			s.lastLoggedFailure = err.Error()
			s.log.Warn("JWKS cannot be read; the keys read before stay in use", "jwks", s.name, "error", err)
		}
		return false
	}
	s.raw = raw
	s.set.Store(set)
	s.recovered()
	for _, r := range refused {
		level := slog.LevelWarn
		if errors.Is(r.err, errNotForSignatures) {
			level = slog.LevelDebug
		}
		s.log.Log(ctx, level, "key of JWKS not used", "jwks", s.name, "kid", r.kid, "reason", r.err)
	}
	s.log.Info("JWKS read", "jwks", s.name, "keys", len(set.all))
	return true
}

func (s *source) recovered() {
	if s.lastLoggedFailure != "" {
		s.lastLoggedFailure = ""
		s.log.Info("JWKS can be read again", "jwks", s.name)
	}
}

// requestRefresh reads the source again because a token named an unknown key, unless
// that was done within minGap. It waits for the result for at most refreshWait.
func (s *source) requestRefresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, refreshWait)
	defer cancel()
	answer := make(chan struct{})
	select {
	case s.refreshRequests <- answer:
	case <-s.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-answer:
	case <-s.done:
	case <-ctx.Done():
	}
}

// readFile reads a JWKS from a file of at most maxSetSize bytes.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // G304: the operator names the file
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	return readBounded(f)
}

// fetch reads a JWKS from a URL.
func fetch(ctx context.Context, client *http.Client, location string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, http.NoBody)
	if err != nil {
		return nil, errors.New("cannot make a request of the URL")
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", withoutURL(err))
	}
	defer func() { _ = resp.Body.Close() }() // read only
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch: the server answered %s", resp.Status)
	}
	return readBounded(resp.Body)
}

func readBounded(r io.Reader) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxSetSize+1))
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	if len(raw) > maxSetSize {
		return nil, fmt.Errorf("longer than %d bytes", maxSetSize)
	}
	return raw, nil
}

// withoutURL takes the URL out of an http.Client's error: it may hold a
// password in its query.
func withoutURL(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}

// stayEncrypted is the redirect policy: a few hops, never from https to http.
func stayEncrypted(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) >= 5:
		return errors.New("too many redirects")
	case via[0].URL.Scheme == "https" && req.URL.Scheme != "https":
		return errors.New("redirect from https to http")
	}
	return nil
}

func loopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
