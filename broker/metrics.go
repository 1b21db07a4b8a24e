package broker

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"mynah/chat"
)

// metrics is the broker's figures for Prometheus.
type metrics struct {
	messages prometheus.Counter
	batches  prometheus.Histogram
	refusals *prometheus.CounterVec
	slowed   prometheus.Counter
	byCode   map[chat.Code]prometheus.Counter
}

func newMetrics(r prometheus.Registerer, b *Broker) *metrics {
	m := &metrics{
		messages: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mynah_messages_total", Help: "Messages stored in the log.",
		}),
		batches: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mynah_batch_size", Help: "Publishes committed with one fsync.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 8),
		}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mynah_refused_publishes_total", Help: "Publishes refused, by code.",
		}, []string{"code"}),
		slowed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mynah_slowed_publishes_total", Help: "Publishes that had to wait, since their sender was above the publish rate.",
		}),
		byCode: map[chat.Code]prometheus.Counter{},
	}
	for code := range reasons {
		m.byCode[code] = m.refusals.WithLabelValues(string(code))
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	counter := func(name, help string, parts ...*atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 {
			sum := uint64(0)
			for _, p := range parts {
				sum += p.Load()
			}
			return float64(sum)
		})
	}
	stats, plain := b.engine.Stats(), b.topics.Queues().Stats()
	collectors := []prometheus.Collector{
		m.messages, m.batches, m.refusals, m.slowed, b.listenerMetrics,
		gauge("mynah_connections", "Open connections.", func() float64 { return float64(b.endpoint.open.Load()) }),
		gauge("mynah_online_subjects", "Subjects with a connection.", func() float64 { return float64(b.presence.Online()) }),
		gauge("mynah_sessions", "Sessions, connected or not.", func() float64 { return float64(b.engine.Count()) }),
		gauge("mynah_outbox_bytes", "Memory of what waits to be written to clients.", func() float64 { return float64(b.engine.Limits().Held()) }),
		gauge("mynah_log_first_seq", "The oldest message in the log.", func() float64 { first, _ := b.log.Bounds(); return float64(first) }),
		gauge("mynah_log_last_seq", "The newest message in the log.", func() float64 { _, last := b.log.Bounds(); return float64(last) }),
		counter("mynah_deliveries_total", "Messages put into outboxes: one for each session that a message went to, not counting when it was sent again. Signals and notices are not counted.", &stats.Deliveries, &plain.Deliveries),
		counter("mynah_signals_total", "Signals handed to subscribers.", &stats.Signals),
		counter("mynah_signals_dropped_total", "Signals that found no room at a subscriber.", &stats.Dropped),
		counter("mynah_plain_dropped_total", "Messages of topics outside the chat that found no room at a session.", &plain.Dropped),
		gauge("mynah_plain_bytes", "Messages of topics outside the chat that wait for clients.", func() float64 { return float64(b.topics.Queues().Held()) }),
		counter("mynah_too_large_total", "Messages not sent because of a client's maximum packet size.", &stats.TooLarge, &plain.TooLarge),
	}
	if r != nil {
		for _, c := range collectors {
			r.MustRegister(c)
		}
	}
	return m
}

func (m *metrics) refused(code chat.Code) {
	if c := m.byCode[code]; c != nil {
		c.Inc()
	}
}
