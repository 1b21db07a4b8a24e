package archiver

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Lag is how far the archive is behind the broker.
type Lag struct {
	// Messages is how many messages the broker has that are not in
	// PostgreSQL yet. If the broker does not tell how far its log has come,
	// it is how many have been received and are not yet acknowledged.
	Messages uint64
	// Seconds is the age of the oldest of them that is known.
	Seconds float64
	// Committed is the greatest seq in PostgreSQL, 0 if it is not known.
	Committed uint64
	// Connected says whether there is a connection to the broker.
	Connected bool
	// Database says whether PostgreSQL is there: it took the last batch or
	// answered since.
	Database bool
}

// stats holds the counters of all stages, and collects the archiver's metrics.
type stats struct {
	now     func() time.Time
	pending atomic.Int64 // received, not acknowledged

	firstConnection chan struct{} // closed when there has been a connection to the broker

	mu         sync.Mutex // guards what follows
	building   int64      // ts of the first message of the batch that is being made, 0 if none
	committing int64      // the same of the batch that is being committed
	committed  uint64     // greatest seq in PostgreSQL
	logLast    uint64     // greatest seq in the broker's log, as it last said
	aheadSince time.Time  // since when logLast is above committed
	connected  bool
	database   bool

	stored, duplicates, dead prometheus.Counter
	retries, connections     prometheus.Counter
	batch, seconds           prometheus.Histogram

	lagMessages, lagSeconds, committedSeq, broker, postgres *prometheus.Desc
}

func newStats(now func() time.Time) *stats {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "mynah", Subsystem: "archiver", Name: name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "mynah", Subsystem: "archiver", Name: name, Help: help, Buckets: buckets})
	}
	gauge := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName("mynah", "archiver", name), help, nil, nil)
	}
	return &stats{
		now: now,

		firstConnection: make(chan struct{}),
		stored:          counter("messages_total", "Messages stored in PostgreSQL."),
		duplicates:      counter("duplicates_total", "Messages that were delivered again and were stored already."),
		dead:            counter("dead_letters_total", "Messages that could not be stored and went to dead_letters."),
		retries:         counter("retries_total", "Batches that PostgreSQL did not take and that were tried again."),
		connections:     counter("connections_total", "Connections made to the broker."),
		batch:           histogram("batch_messages", "Messages in a batch.", prometheus.ExponentialBuckets(1, 4, 8)),
		seconds:         histogram("commit_seconds", "Time to store a batch, from the first attempt to the commit.", prometheus.ExponentialBuckets(0.001, 4, 9)),
		lagMessages:     gauge("lag_messages", "Messages that the broker has and PostgreSQL has not."),
		lagSeconds:      gauge("lag_seconds", "Age of the oldest message that the broker has and PostgreSQL has not."),
		committedSeq:    gauge("committed_seq", "Greatest seq in PostgreSQL."),
		broker:          gauge("broker_connected", "1 if there is a connection to the broker."),
		postgres:        gauge("database_up", "1 if PostgreSQL took the last batch or answered since."),
	}
}

func (s *stats) received() { s.pending.Add(1) }

func (s *stats) acknowledged(n int) { s.pending.Add(-int64(n)) }

// forgetPending resets the counts of messages that were dropped at the stop.
func (s *stats) forgetPending() {
	s.pending.Store(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.building, s.committing = 0, 0
}

// batchBegun records a new batch. ts is the time of its first message.
func (s *stats) batchBegun(ts int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.building = ts
}

// batchHandedOver records that the committer has the batch now.
func (s *stats) batchHandedOver(ts int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.building == ts {
		s.building = 0 // else the next one has begun meanwhile
	}
	s.committing = ts
}

// batchCommitted records a committed batch. last is its greatest seq.
func (s *stats) batchCommitted(messages int, last uint64, began time.Time) {
	s.batch.Observe(float64(messages))
	s.seconds.Observe(time.Since(began).Seconds())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committing = 0
	s.committed = max(s.committed, last)
	s.database = true
	s.updateAheadLocked()
}

// setCommitted records the greatest seq in PostgreSQL.
func (s *stats) setCommitted(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committed = seq
	s.database = true
	s.updateAheadLocked()
}

// setLogEnd records the greatest seq in the broker's log.
func (s *stats) setLogEnd(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logLast = seq
	s.updateAheadLocked()
}

func (s *stats) updateAheadLocked() {
	switch {
	case s.logLast <= s.committed:
		s.aheadSince = time.Time{}
	case s.aheadSince.IsZero():
		s.aheadSince = s.now()
	}
}

func (s *stats) setConnected(is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connected = is
	if is {
		select {
		case <-s.firstConnection: // closed already
		default:
			close(s.firstConnection)
		}
	}
}

func (s *stats) databaseAway() {
	s.retries.Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.database = false
}

func (s *stats) lag() Lag {
	s.mu.Lock()
	defer s.mu.Unlock()
	lag := Lag{
		Messages:  uint64(max(0, s.pending.Load())),
		Committed: s.committed, Connected: s.connected, Database: s.database,
	}
	// seq counts by one. Before anything is known of PostgreSQL the
	// difference would be the whole number.
	if s.committed > 0 && s.logLast > s.committed {
		lag.Messages = max(lag.Messages, s.logLast-s.committed)
	}
	oldest := s.committing
	if oldest == 0 {
		oldest = s.building
	}
	switch {
	case oldest > 0:
		lag.Seconds = max(0, s.now().Sub(time.UnixMilli(oldest)).Seconds())
	case lag.Messages > 0 && !s.aheadSince.IsZero():
		lag.Seconds = max(0, s.now().Sub(s.aheadSince).Seconds())
	}
	return lag
}

func (s *stats) counters() []prometheus.Collector {
	return []prometheus.Collector{s.stored, s.duplicates, s.dead, s.retries, s.connections, s.batch, s.seconds}
}

// Describe implements prometheus.Collector.
func (s *stats) Describe(out chan<- *prometheus.Desc) {
	for _, c := range s.counters() {
		c.Describe(out)
	}
	for _, d := range []*prometheus.Desc{s.lagMessages, s.lagSeconds, s.committedSeq, s.broker, s.postgres} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (s *stats) Collect(out chan<- prometheus.Metric) {
	for _, c := range s.counters() {
		c.Collect(out)
	}
	lag := s.lag()
	gauge := func(d *prometheus.Desc, value float64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value)
	}
	gauge(s.lagMessages, float64(lag.Messages))
	gauge(s.lagSeconds, lag.Seconds)
	gauge(s.committedSeq, float64(lag.Committed))
	gauge(s.broker, boolValue(lag.Connected))
	gauge(s.postgres, boolValue(lag.Database))
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
