// Package archiver copies every chat message from the broker into PostgreSQL.
//
// It is an MQTT client with a persistent session, subscribed to all chat topics at
// QoS 1. It guarantees:
//
//   - A message is acknowledged to the broker only after the transaction that holds
//     it (or its dead letter) has been committed. Whatever dies, and whenever, the
//     broker delivers the rest again.
//   - A message that is delivered again is stored once: seq is the key.
//   - A message that PostgreSQL refuses goes to table dead_letters with the reason
//     and does not hold up the others.
//   - While PostgreSQL is away nothing is acknowledged, the MQTT session stays
//     alive and memory stays bounded: the messages wait in the broker's log.
//   - Two archivers at once do no harm.
//
// A message passes four stages, each a goroutine: paho's, which only enqueues; the
// batcher, which renders rows while the batch before is being committed; the
// committer; and the acknowledger. Acknowledgements leave in the order in which
// the messages came.
package archiver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"mynah/internal/pgdial"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
)

// Defaults of Config.
const (
	DefaultClientID  = "archiver"
	DefaultBatchSize = 4096
	DefaultLinger    = 5 * time.Millisecond
	DefaultMaxBytes  = 256 << 20
	DefaultKeepAlive = 30 * time.Second

	// queueLen is the maximum number of messages that wait for the batcher. It
	// is above any broker's window of messages in flight, see enqueue.
	queueLen = 1 << 16
	// batchBytes ends a batch of long messages early, so that its memory and
	// its transaction stay small.
	batchBytes = 8 << 20
	// disconnectTimeout is how long the last acknowledgements and DISCONNECT may take to
	// be written.
	disconnectTimeout = 2 * time.Second
	// lagLogInterval is how often a lag is logged.
	lagLogInterval = 10 * time.Second
	// lagLogThreshold is the lag in seconds from which it is logged.
	lagLogThreshold = 5
)

// Config says where messages come from and where they go.
type Config struct {
	// BrokerURL is the broker's address: tcp, mqtt, ssl, tls, mqtts, ws or
	// wss. Required.
	BrokerURL string
	// ClientID is the MQTT client id, which names the session. Default
	// "archiver". With another one a new session begins: the broker delivers
	// every message that it still has once more.
	ClientID string
	// Token returns the token to connect with. It is called for every
	// connection, so that a token may be short-lived. Nil connects without.
	Token func(context.Context) (string, error)
	// TLS is used for ssl, tls, mqtts and wss. Nil means Go's defaults.
	TLS *tls.Config
	// DatabaseURL is the address of a database with the schema's migrations.
	// Required.
	DatabaseURL string
	// BatchSize is how many messages are committed at once at most; default
	// 4096.
	BatchSize int
	// Linger is how long a message waits for others to share its transaction,
	// default 5 ms. While a transaction runs messages wait anyhow.
	Linger time.Duration
	// MaxBytes bounds the memory that unacknowledged messages take, default
	// 256 MiB. Above it, nothing is read from the broker.
	MaxBytes int64
	// Retention is how long messages stay in PostgreSQL at least. When all of a
	// partition are older it is dropped. 0, the default, keeps them for ever.
	Retention time.Duration
	// KeepAlive is MQTT's, default 30 s.
	KeepAlive time.Duration
	// Logger gets what happens. Nil discards it.
	Logger *slog.Logger
	// Now returns the time, for the lag and the retention. Nil means time.Now.
	Now func() time.Time
}

// validate fills in defaults and returns an error for what is wrong.
func (c *Config) validate() error {
	broker, err := url.Parse(c.BrokerURL)
	if err != nil || !slices.Contains(schemes, broker.Scheme) || broker.Host == "" {
		return fmt.Errorf("archiver: broker address %q: want %s and a host, like tcp://localhost:1883",
			c.BrokerURL, strings.Join(schemes, "://, "))
	}
	if _, err := pgdial.Parse(c.DatabaseURL, application); err != nil || c.DatabaseURL == "" {
		return errors.Join(errors.New("archiver: database address is missing or wrong"), err)
	}
	if c.BatchSize < 0 || c.Linger < 0 || c.MaxBytes < 0 || c.KeepAlive < 0 || c.Retention < 0 {
		return errors.New("archiver: batch size, linger, memory, keep-alive and retention cannot be negative")
	}
	if c.ClientID == "" {
		c.ClientID = DefaultClientID
	}
	if c.BatchSize == 0 {
		c.BatchSize = DefaultBatchSize
	}
	if c.Linger == 0 {
		c.Linger = DefaultLinger
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.KeepAlive == 0 {
		c.KeepAlive = DefaultKeepAlive
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// Archiver copies messages from a broker into PostgreSQL. It is safe for use by
// several goroutines.
type Archiver struct {
	cfg   Config
	stats *stats

	mu      sync.Mutex // guards what follows
	running *run       // nil if not started
}

// run is the state from Start to Stop.
type run struct {
	cfg   Config
	log   *slog.Logger
	stats *stats

	queue       chan message        // from paho to the batcher
	memory      *semaphore.Weighted // bytes of unacknowledged messages
	freeBatches chan *batch         // finished batches, whose memory is used again
	draining    chan struct{}       // closed by Stop: accept no more messages

	abandon    context.CancelFunc // cancels the work that is not committed
	disconnect context.CancelFunc // ends the MQTT connection
	stages     sync.WaitGroup     // batcher, committer, acknowledger
	others     sync.WaitGroup     // connection, report, maintenance

	stop    sync.Once
	drained chan struct{} // closed when the stages have ended
	ended   chan struct{} // closed when all has
}

// New returns an archiver that is not started, or an error that says what is
// wrong with cfg.
func New(cfg Config) (*Archiver, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Archiver{cfg: cfg, stats: newStats(cfg.Now)}, nil
}

// Start begins to archive and returns at once. Neither broker nor PostgreSQL need
// be there: it tries to reach them until Stop. It does nothing if the archiver is
// running. The end of ctx does not stop it. After a Stop that gave up, Start waits for what
// that gave up on, at most until ctx ends.
func (a *Archiver) Start(ctx context.Context) error {
	a.mu.Lock()
	for r := a.running; r != nil && !isClosed(r.ended); r = a.running {
		a.mu.Unlock() // not held while Start waits
		if !isClosed(r.draining) {
			return nil
		}
		select {
		case <-r.ended:
		case <-ctx.Done():
			return fmt.Errorf("archiver: start: gave up on waiting for the end of the last run: %w", ctx.Err())
		}
		a.mu.Lock()
	}
	defer a.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	work, abandon := context.WithCancel(ctx)
	connected, leave := context.WithCancel(ctx)
	r := &run{
		cfg: a.cfg, log: a.cfg.Logger, stats: a.stats,
		queue:       make(chan message, queueLen),
		memory:      semaphore.NewWeighted(a.cfg.MaxBytes),
		freeBatches: make(chan *batch, 4), // one for each place where one can be
		draining:    make(chan struct{}),
		abandon:     abandon, disconnect: leave,
		drained: make(chan struct{}), ended: make(chan struct{}),
	}
	batches := make(chan *batch) // without a buffer: while the committer is busy the batch grows
	committed := make(chan *batch, 1)
	r.stages.Go(func() {
		defer close(batches)
		r.makeBatches(work, batches)
	})
	r.stages.Go(func() {
		defer close(committed)
		r.commit(work, batches, committed)
	})
	r.stages.Go(func() { r.acknowledge(committed) })
	r.others.Go(func() { r.keepConnected(connected) })
	r.others.Go(func() { r.logLag(connected) })
	r.others.Go(func() { r.maintain(connected) })
	a.running = r
	return nil
}

// Stop accepts no more messages, commits and acknowledges the received ones, and
// disconnects without ending the MQTT session. Messages that are not committed
// when ctx ends are dropped; the broker delivers them again. Stop does nothing if
// the archiver is not running; after one that gave up, another one waits again.
func (a *Archiver) Stop(ctx context.Context) error {
	a.mu.Lock()
	r := a.running
	a.mu.Unlock() // not held while Stop waits: another Stop has a context of its own
	if r == nil {
		return nil
	}
	r.stop.Do(func() {
		close(r.draining)
		go func() {
			r.stages.Wait()
			close(r.drained)
			r.abandon()
			r.disconnect()
			r.others.Wait()
			r.stats.forgetPending()
			close(r.ended)
		}()
	})
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
	}
	what := "on ending the connection to the broker, or the maintenance of the table"
	if !isClosed(r.drained) {
		what = "on what is not committed or not acknowledged, which will be delivered again"
	}
	r.abandon()
	// An acknowledgement may be stuck behind a broker that does not read; only the end of
	// the connection frees it.
	r.disconnect()
	return fmt.Errorf("archiver: stop: gave up %s: %w", what, ctx.Err())
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Lag returns how far the archive is behind.
func (a *Archiver) Lag() Lag { return a.stats.lag() }

// AwaitConnected waits until there is a connection to the broker, and reports whether
// there is: not if ctx ends first.
func (a *Archiver) AwaitConnected(ctx context.Context) bool {
	select {
	case <-a.stats.firstConnection:
		return true
	case <-ctx.Done():
		return false
	}
}

// Collector returns the archiver's metrics.
func (a *Archiver) Collector() prometheus.Collector { return a.stats }

// memoryOf returns the memory that a message takes: its payload, its row and the
// overhead of Go and paho.
func (r *run) memoryOf(m message) int64 {
	return min(int64(2*len(m.Payload())+1024), r.cfg.MaxBytes)
}

// acknowledge tells the broker that batches have been committed.
func (r *run) acknowledge(committed <-chan *batch) {
	for b := range committed {
		for i := range b.items {
			m := b.items[i].message
			m.Ack() // of a connection that is gone: paho forgets it, the broker delivers again
			r.memory.Release(r.memoryOf(m))
		}
		r.stats.acknowledged(len(b.items))
		r.recycle(b)
	}
}

// logLag logs the lag repeatedly while there is one, and logs its end.
func (r *run) logLag(ctx context.Context) {
	tick := time.NewTicker(lagLogInterval)
	defer tick.Stop()
	behind := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		lag := r.stats.lag()
		switch {
		case lag.Seconds >= lagLogThreshold:
			behind = true
			r.log.WarnContext(ctx, "the archive is behind", "messages", lag.Messages, "seconds", lag.Seconds,
				"committed", lag.Committed, "broker", lag.Connected, "database", lag.Database)
		case behind && lag.Connected && lag.Database:
			behind = false
			r.log.InfoContext(ctx, "the archive has caught up", "committed", lag.Committed)
		}
	}
}
