package listener

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// Connections leave at least reservedDescriptors file descriptors, and at
	// least a reservedFraction-th of the limit, to the rest of the process.
	reservedDescriptors = 256
	reservedFraction    = 10
	// refusedLogInterval is the shortest time between two log lines about
	// connections that were refused for want of a descriptor.
	refusedLogInterval = time.Minute
)

// MaxConnections returns how many connections a process may have open, given its
// limit of file descriptors. They leave a tenth of the limit, and at least 256, for
// the message log, the database and the process's own connections. If 256 is more
// than half of the limit, they leave half.
func MaxConnections(limit int) int {
	return limit - min(max(reservedDescriptors, limit/reservedFraction), limit/2)
}

// Descriptors bounds the open connections of all listeners of a process, HTTP
// included. So there is always a file descriptor for the message log, which cannot
// work without one. Anybody can open connections, without a token. It is a
// [prometheus.Collector] and safe for concurrent use; a nil *Descriptors bounds
// nothing.
type Descriptors struct {
	max int64
	log *slog.Logger

	open    atomic.Int64
	refused *prometheus.CounterVec

	mu               sync.Mutex // guards what follows
	unloggedRefusals int        // refusals since the last log line
	lastLogged       time.Time
}

// NewDescriptors returns a Descriptors that allows most open connections for all
// listeners together. Refusals are logged at warn, at most once a minute. A nil log
// means no logging.
func NewDescriptors(most int, log *slog.Logger) *Descriptors {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Descriptors{
		max: int64(most), log: log,
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mynah_descriptors_refused_total",
			Help: "Connections that were closed at once because connections had all the file descriptors that they may take.",
		}, []string{"door"}),
	}
}

// Listener returns ln with its connections counted. A connection above the bound is
// closed at once, and Accept waits for the next. door names ln in the log and in
// the metrics. extra is the number of connections above the shared bound that ln
// may have, for a listener that must work when the others are full.
//
// Every error of Accept is temporary, unless ln is closed. The possible causes
// (too many open files in the whole system, a kernel out of memory) pass, and
// net/http retries temporary errors only.
func (d *Descriptors) Listener(ln net.Listener, door string, extra int) net.Listener {
	if d == nil {
		return ln
	}
	return &countedListener{Listener: ln, descriptors: d, name: door, max: d.max + int64(extra), refused: d.refused.WithLabelValues(door)}
}

// Describe implements [prometheus.Collector].
func (d *Descriptors) Describe(ch chan<- *prometheus.Desc) {
	d.refused.Describe(ch)
	ch <- descOpen
	ch <- descMax
}

// Collect implements [prometheus.Collector].
func (d *Descriptors) Collect(ch chan<- prometheus.Metric) {
	d.refused.Collect(ch)
	ch <- prometheus.MustNewConstMetric(descOpen, prometheus.GaugeValue, float64(d.open.Load()))
	ch <- prometheus.MustNewConstMetric(descMax, prometheus.GaugeValue, float64(d.max))
}

var (
	descOpen = prometheus.NewDesc("mynah_descriptors_open", "File descriptors that connections have taken, at all doors together.", nil, nil)
	descMax  = prometheus.NewDesc("mynah_descriptors_max", "File descriptors that connections may take, by the process's limit.", nil, nil)
)

// acquire counts one more connection, unless there are max.
func (d *Descriptors) acquire(most int64) bool {
	if d.open.Add(1) > most {
		d.open.Add(-1)
		return false
	}
	return true
}

// logRefusal logs a refused connection, with the number of refusals since the
// last line.
func (d *Descriptors) logRefusal(door string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unloggedRefusals++
	now := time.Now()
	if now.Sub(d.lastLogged) < refusedLogInterval {
		return
	}
	d.log.Warn("connections have all the file descriptors that they may take, new ones are closed at once; raise the limit: ulimit -n, or LimitNOFILE= in systemd",
		"door", door, "connections", d.max, "refused", d.unloggedRefusals)
	d.lastLogged, d.unloggedRefusals = now, 0
}

// countedListener is what Descriptors.Listener returns.
type countedListener struct {
	net.Listener
	descriptors *Descriptors
	name        string
	max         int64
	refused     prometheus.Counter
}

// Accept implements net.Listener.
func (l *countedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil, err
		case err != nil:
			return nil, temporaryError{err}
		case l.descriptors.acquire(l.max):
			return countConn(conn, l.descriptors), nil
		}
		l.refused.Inc()
		l.descriptors.logRefusal(l.name)
		resetConn(conn)
	}
}

// temporaryError marks an error of Accept as temporary.
type temporaryError struct{ error }

// Unwrap makes errors.Is work.
func (p temporaryError) Unwrap() error { return p.error }

// Timeout implements net.Error.
func (temporaryError) Timeout() bool { return false }

// Temporary implements net.Error. It is deprecated there, but net/http calls it.
func (temporaryError) Temporary() bool { return true }

// countConn returns conn, which releases its slot when it is closed. A TCP
// connection keeps all methods of *net.TCPConn.
func countConn(conn net.Conn, d *Descriptors) net.Conn {
	if tcp, ok := conn.(*net.TCPConn); ok {
		return &countedTCP{TCPConn: tcp, slot: slot{descriptors: d}}
	}
	return &countedConn{Conn: conn, slot: slot{descriptors: d}}
}

// slot is one connection's share of Descriptors.
type slot struct {
	descriptors *Descriptors
	released    atomic.Bool
}

// release releases the slot. Further calls do nothing.
func (p *slot) release() {
	if p.released.CompareAndSwap(false, true) {
		p.descriptors.open.Add(-1)
	}
}

type countedTCP struct {
	*net.TCPConn
	slot
}

// Close implements net.Conn.
func (c *countedTCP) Close() error {
	err := c.TCPConn.Close()
	c.release()
	return err
}

type countedConn struct {
	net.Conn
	slot
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}

// tcpOf returns the TCP connection behind conn, nil if there is none.
func tcpOf(conn net.Conn) *net.TCPConn {
	switch c := conn.(type) {
	case *net.TCPConn:
		return c
	case *countedTCP:
		return c.TCPConn
	}
	return nil
}

// resetConn closes a refused connection with RST, which leaves no TIME_WAIT.
func resetConn(conn net.Conn) {
	if tcp := tcpOf(conn); tcp != nil {
		_ = tcp.SetLinger(0) // fails only on a connection that is gone
	}
	_ = conn.Close()
}
