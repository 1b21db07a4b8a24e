package listener

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts connections, by listener. It is a [prometheus.Collector].
type Metrics struct {
	accepted *prometheus.CounterVec
	refused  *prometheus.CounterVec
	open     *prometheus.GaugeVec
	panics   *prometheus.CounterVec
	framing  *prometheus.CounterVec
	accept   *prometheus.CounterVec
}

// NewMetrics returns a Metrics with every count at zero. Listeners that share it
// are told apart by the label door.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "mynah", Subsystem: "listener", Name: name, Help: help,
		}, append([]string{"door"}, labels...))
	}
	return &Metrics{
		accepted: counter("accepted_total", "Connections that passed the guard and were handed to the broker."),
		refused:  counter("refused_total", "Connections that were closed before the broker saw them.", "reason"),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "mynah", Subsystem: "listener", Name: "open",
			Help: "Connections that are open, those that have not sent their CONNECT yet included.",
		}, []string{"door"}),
		panics:  counter("panics_total", "Connections that ended by a panic in the broker."),
		framing: counter("framing_errors_total", "Connections that ended by a malformed remaining length after CONNECT."),
		accept:  counter("accept_errors_total", "Failed attempts to accept a connection; they are retried."),
	}
}

// Describe implements [prometheus.Collector].
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements [prometheus.Collector].
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.accepted, m.refused, m.open, m.panics, m.framing, m.accept}
}

// meter is Metrics for one listener, with the label looked up.
type meter struct {
	accepted, panics, framing, accept prometheus.Counter
	open                              prometheus.Gauge
	refused                           *prometheus.CounterVec
}

func (m *Metrics) meterFor(id string) *meter {
	return &meter{
		accepted: m.accepted.WithLabelValues(id),
		panics:   m.panics.WithLabelValues(id),
		framing:  m.framing.WithLabelValues(id),
		accept:   m.accept.WithLabelValues(id),
		open:     m.open.WithLabelValues(id),
		refused:  m.refused.MustCurryWith(prometheus.Labels{"door": id}),
	}
}

func (m *meter) countRefusal(reason string) { m.refused.WithLabelValues(reason).Inc() }
